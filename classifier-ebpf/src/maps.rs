//! The maps other than the ruleset.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, DevMap, DevMapHash, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use breakout_common::counters::{Counter, REASON_SLOTS, SET_SLOTS};
use breakout_common::egress::{EgressWords, MAX_EGRESSES};
use breakout_common::fragment::{Key, Memory};
use breakout_common::path::{PIN_EVENTS, PathTable, Pin, PinKey};

use crate::opaque::opaque;

/// The most LAN interfaces that replies are redirected to.
const MAX_LANS: usize = 64;

/// The path table in force.
#[btf_map]
static PATHS: ArrayOfMaps<Array<PathTable, 1>, 1> = ArrayOfMaps::new();

/// The ways that flows have taken. The controller makes this map in the size that is configured; the kernel drops what was
/// used longest ago.
#[btf_map]
pub(crate) static PINS: LruHashMap<PinKey, Pin, 1024> = LruHashMap::new();

/// What happens to pins, by [`PinEvent`](breakout_common::path::PinEvent).
#[btf_map]
pub(crate) static PINNED: PerCpuArray<u64, PIN_EVENTS> = PerCpuArray::new();

/// The interfaces that XDP redirects to, by egress index.
#[btf_map]
pub(crate) static DEVICES: DevMap<MAX_EGRESSES> = DevMap::new();

/// The LAN interfaces that replies are redirected to, by their indices.
#[btf_map]
pub(crate) static LANS: DevMapHash<MAX_LANS> = DevMapHash::new();

/// Replies of steered flows: those that XDP forwarded, and those that it left to the kernel.
#[btf_map]
pub(crate) static REPLIES: PerCpuArray<Counter, 2> = PerCpuArray::new();

/// The ways of first fragments that are steered, by their packets. The kernel drops the least recently used ones.
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<Key, Memory, 1024> = LruHashMap::new();

/// Counters by reason.
#[btf_map]
pub(crate) static REASONS: PerCpuArray<Counter, REASON_SLOTS> = PerCpuArray::new();

/// Counters by endpoint set slot.
#[btf_map]
pub(crate) static SETS: PerCpuArray<Counter, SET_SLOTS> = PerCpuArray::new();

/// The path table in force. It holds for the run of the program: the kernel frees a replaced one after an RCU grace period.
#[inline(always)]
pub(crate) fn paths() -> Option<&'static PathTable> {
    PATHS.get_value(0, &0)
}

/// The words of the egress with this index in the table in force.
#[inline(always)]
pub(crate) fn egress(index: u8) -> Option<&'static EgressWords> {
    paths()?.egresses.get(opaque(usize::from(index)))
}
