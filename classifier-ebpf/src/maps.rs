//! The maps other than the ruleset.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, DevMap, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use breakout_common::counters::{Counter, REASON_SLOTS, SET_SLOTS};
use breakout_common::egress::{EGRESS_WORDS, EgressTable, MAX_EGRESSES};
use breakout_common::fragment::{Key, Memory};

use crate::opaque::opaque;

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

/// The words of the egress with this index in the table in force.
#[inline(always)]
pub(crate) fn egress(index: u8) -> Option<&'static [u32; EGRESS_WORDS]> {
    let table = EGRESSES.get_value(0, &0)?;
    table.get(opaque(usize::from(index)))
}
