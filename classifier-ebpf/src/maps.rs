//! The maps, and how the tables in them are read.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, DevMap, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use breakout_common::counters::{Counter, REASON_SLOTS, SET_SLOTS};
use breakout_common::egress::{Egress, EgressTable, MAX_EGRESSES};
use breakout_common::fragment::{Key, Memory};
use breakout_common::table::Table;

use crate::globals;
use crate::opaque::opaque;

/// The ruleset in force. The controller creates this map with inner maps of the size it needs
/// and hands it to the loader; the value type here only names the word.
#[btf_map]
pub(crate) static RULESET: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

/// The egress table in force.
#[btf_map]
static EGRESSES: ArrayOfMaps<Array<EgressTable, 1>, 1> = ArrayOfMaps::new();

/// The interfaces that XDP redirects to, by egress index.
#[btf_map]
pub(crate) static DEVICES: DevMap<MAX_EGRESSES> = DevMap::new();

/// The ways of first fragments that are steered, by their packets. The kernel drops the least recently used ones.
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<Key, Memory, 1024> = LruHashMap::new();

/// Counters by reason.
#[btf_map]
pub(crate) static REASONS: PerCpuArray<Counter, REASON_SLOTS> = PerCpuArray::new();

/// Counters by endpoint set slot.
#[btf_map]
pub(crate) static SETS: PerCpuArray<Counter, SET_SLOTS> = PerCpuArray::new();

/// One published table. The reference holds for the run of the program: the kernel
/// frees a replaced table only after an RCU grace period.
pub(crate) struct LiveTable {
    words: *const u32,
    zero: u32,
}

impl LiveTable {
    /// The table in force, if one has been published.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
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

/// The egress with this index in the table in force.
#[inline(always)]
pub(crate) fn egress(index: u8) -> Option<Egress> {
    let table = EGRESSES.get_value(0, &0)?;
    table
        .get(opaque(usize::from(index)))
        .map(Egress::from_words)
}
