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
///
/// Each question is a call of a function of its own: the kernel's verifier looks at those once, and not again for every
/// way through the header walk that leads to them (global functions, Linux 5.6).
pub(crate) struct LiveRuleset;

impl Lookup for LiveRuleset {
    #[inline(always)]
    fn lookup(&self, destination: Destination, key: u32) -> Option<Answer> {
        let code = match destination {
            Destination::V4(address) => breakout_lookup_v4(address, key),
            Destination::V6(high, low) => breakout_lookup_v6(high, low, key),
        };
        Answer::from_code(code)
    }
}

/// [`lookup_v4`] in the table in force; zero if there is no answer.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_lookup_v4(address: u32, key: u32) -> u64 {
    let answer = LiveTable::current().and_then(|table| lookup_v4(&table, address, key));
    answer.map_or(0, Answer::to_code)
}

/// [`lookup_v6`] in the table in force; zero if there is no answer.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_lookup_v6(high: u64, low: u64, key: u32) -> u64 {
    let answer = LiveTable::current().and_then(|table| lookup_v6(&table, high, low, key));
    answer.map_or(0, Answer::to_code)
}

/// One published table. The reference holds for the run of the program: the kernel
/// frees a replaced table only after an RCU grace period.
struct LiveTable {
    words: *const u32,
    zero: u32,
}

impl LiveTable {
    /// The table in force, if one has been published.
    #[inline(always)]
    fn current() -> Option<Self> {
        RULESET.get_value_ptr_mut(0, &0).map(|first| LiveTable {
            words: first.cast_const(),
            zero: globals::zero(),
        })
    }
}

impl Table for LiveTable {
    #[inline(always)]
    fn blur(&self, value: u32) -> u32 {
        value ^ self.zero
    }

    #[inline(always)]
    fn word(&self, index: u32) -> Option<u32> {
        // With what it knows of one index the verifier would tell apart all ways that lead here: see `Frame::blur`.
        let index = opaque((index ^ self.zero) as usize);
        if index >= globals::table_words() as usize {
            return None;
        }
        // SAFETY: the map value behind `words` has `table_words()` words, which the verifier checks at load
        // against the map's real value size, and `index` is below that.
        Some(unsafe { *self.words.add(index) })
    }
}
