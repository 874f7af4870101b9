//! The maps other than the ruleset.

use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, DevMap, DevMapHash, HashMap, LruHashMap, PerCpuArray,
};
use aya_ebpf::macros::btf_map;
use breakout_common::counters::{Counter, REASON_SLOTS, SET_SLOTS};
use breakout_common::egress::{EgressWords, MAX_EGRESSES};
use breakout_common::flows::{ENTRIES, SET_WORDS};
use breakout_common::fragment::{Key, Memory};
use breakout_common::path::{PIN_EVENTS, PathTable, PinKey};

use crate::opaque::opaque;

/// The most LAN interfaces that replies are redirected to.
const MAX_LANS: usize = 64;

/// `BPF_F_MMAPABLE` (Linux 5.5).
const MMAPABLE: usize = 1 << 10;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: usize = 1;

/// The path table in force.
#[btf_map]
static PATHS: ArrayOfMaps<Array<PathTable, 1>, 1> = ArrayOfMaps::new();

/// The table of flows, one set an entry. The controller makes it in the size that is configured. The last entry is not a
/// set, but says what the table is; see [`MAGIC`](breakout_common::flows::MAGIC).
#[btf_map]
pub(crate) static FLOWS: Array<[u64; SET_WORDS], 2, MMAPABLE> = Array::new();

/// Notes beside the entries of [`FLOWS`], for each set.
#[btf_map]
pub(crate) static NOTES: Array<[u64; ENTRIES], 1, MMAPABLE> = Array::new();

/// The addresses and ports of flows over IPv6, by their slots: an entry holds only a hash of them.
#[btf_map]
pub(crate) static ADDRESSES: HashMap<u32, PinKey, 4, NO_PREALLOC> = HashMap::new();

/// The mappings of translated flows, laid out as [`FLOWS`]; see [`breakout_common::nat`]. The last entry is not a set here either.
#[btf_map]
pub(crate) static MAPPINGS: Array<[u64; SET_WORDS], 2, MMAPABLE> = Array::new();

/// Events of pins, by [`PinEvent`](breakout_common::path::PinEvent).
#[btf_map]
pub(crate) static PINNED: PerCpuArray<u64, PIN_EVENTS> = PerCpuArray::new();

/// The interfaces that XDP redirects to, by egress index.
#[btf_map]
pub(crate) static DEVICES: DevMap<MAX_EGRESSES> = DevMap::new();

/// The interfaces that TC redirects to, by egress index. The kernel takes out those that go. It wants such maps used by programs of
/// one type only (`bpf_prog_map_compatible`), so this is not [`DEVICES`].
#[btf_map]
pub(crate) static TC_DEVICES: DevMap<MAX_EGRESSES> = DevMap::new();

/// The LAN interfaces that replies are redirected to, by their indices.
#[btf_map]
pub(crate) static LANS: DevMapHash<MAX_LANS> = DevMapHash::new();

/// The LAN interfaces, by their indices: TC sends replies of translated flows nowhere else. The controller makes it as large as it has to
/// be.
#[btf_map]
pub(crate) static TC_LANS: HashMap<u32, u32, MAX_LANS> = HashMap::new();

/// Replies of steered flows: those that XDP forwarded, and those that it left to the kernel.
#[btf_map]
pub(crate) static REPLIES: PerCpuArray<Counter, 2> = PerCpuArray::new();

/// The ways of first fragments that are steered, by their packets. The kernel drops the least recently used ones.
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<Key, Memory, 1024> = LruHashMap::new();

/// Packets of peers to clients by the egress of their flow, two for each: of IPv4 and of IPv6. And for how many flows it was
/// the first one.
#[btf_map]
pub(crate) static ANSWERS: PerCpuArray<Counter, { 2 * MAX_EGRESSES }> = PerCpuArray::new();

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

/// The words of the egress with this index.
#[inline(always)]
pub(crate) fn egress(paths: &PathTable, index: u8) -> Option<&EgressWords> {
    paths.egresses.get(opaque(usize::from(index)))
}
