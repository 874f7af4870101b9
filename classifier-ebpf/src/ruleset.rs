//! The ruleset in force, and how it is asked.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use breakout_common::table::{Answer, Destination, Lookup, Table, lookup_v4, lookup_v6};

use crate::globals;
use crate::opaque::opaque;

/// The ruleset in force. The controller creates this map with inner maps of the size it needs
/// and hands it to the loader; the value type here only names the word.
#[btf_map]
static RULESET: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

/// The ruleset in force at the time of each question.
pub(crate) struct LiveRuleset;

impl Lookup for LiveRuleset {
    #[inline(always)]
    fn lookup(&self, destination: Destination, key: u32) -> Option<Answer> {
        Answer::from_word(ask(destination, key)?)
    }
}

/// The word of the ruleset's answer.
#[inline(always)]
pub(crate) fn ask(destination: Destination, key: u32) -> Option<u32> {
    let table = LiveTable::current()?;
    match destination {
        Destination::V4(address) => lookup_v4(&table, address, key),
        Destination::V6(high, low) => lookup_v6(&table, high, low, key),
    }
}

/// One published table. The reference holds for the run of the program: the kernel
/// frees a replaced table only after an RCU grace period.
struct LiveTable {
    words: *const u32,
    size: usize,
}

impl LiveTable {
    /// The table in force, if one has been published.
    #[inline(always)]
    fn current() -> Option<Self> {
        RULESET.get_value_ptr_mut(0, &0).map(|first| LiveTable {
            words: first.cast_const(),
            size: globals::table_words() as usize,
        })
    }
}

impl Table for LiveTable {
    #[inline(always)]
    fn blur(&self, value: u32) -> u32 {
        value ^ globals::zero()
    }

    #[inline(always)]
    fn words<const N: usize>(&self, index: u32) -> Option<[u32; N]> {
        let index = opaque(index as usize);
        if index >= self.size.saturating_sub(N - 1) {
            return None;
        }
        // SAFETY: the map value behind `words` has `size` words, which the verifier checks at load
        // against the map's real value size, and `index + N` is at most that. `[u32; N]` has the alignment of a word.
        Some(unsafe { *self.words.add(index).cast() })
    }
}
