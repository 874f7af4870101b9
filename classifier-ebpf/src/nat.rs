//! The mappings of translated flows in the kernel's memory.

use breakout_common::classify::source;
use breakout_common::egress::{EgressWords, nat};
use breakout_common::flows::{Facts, Kept, Key, Limits, Sets, find, keep, note};
use breakout_common::frame::Frame;
use breakout_common::nat::{Assignment, assignment, idle, key, limits, owner, port_of};
use breakout_common::packet::Headers;

use crate::clock::now;
use crate::flows::KernelSet;
use crate::globals;
use crate::maps::{MAPPINGS, egress, paths};

/// The table.
struct Mappings;

impl Sets for Mappings {
    type Set = KernelSet;

    #[inline(always)]
    fn mask(&self) -> u32 {
        globals::nat_mask()
    }

    #[inline(always)]
    fn set(&self, index: u32) -> Option<KernelSet> {
        MAPPINGS.get_ptr_mut(index).map(KernelSet::new)
    }
}

/// Returns the lifetimes of mappings.
#[inline(always)]
fn live_limits() -> Limits {
    limits(
        u32::from(globals::nat_tcp_idle()),
        u32::from(globals::nat_udp_idle()),
    )
}

/// No public port is free.
pub(crate) const FULL: u32 = 0;
/// The connection began without a mapping.
pub(crate) const UNKNOWN: u32 = 1;
/// The flow has no public port yet; [`port_for`] gives it one.
const NEW: u32 = 2;

/// The flags of a TCP header as these functions take them, above the egress's index: those of RFC 9293, section 3.1.
const FLAGS: u32 = 8;
const SYN_ACK: u32 = 0x12;
const SYN: u32 = 0x02;
const FIN_RST: u32 = 0x05;

/// Decides what is to be done for a packet, by what is known of its flow. `way` is its egress with the [`FLAGS`] above it.
#[inline(always)]
fn assignment_of(was: Facts, second: u64, way: u32) -> Assignment {
    let kind = (second & Key::TCP) as u32;
    let flags = way >> FLAGS;
    let says = (flags & SYN_ACK == SYN, flags & FIN_RST != 0);
    assignment(was, kind, (way & 31) as u8, says, now())
}

/// The public port of a packet's flow as a number in the machine's byte order, [`UNKNOWN`] or [`NEW`]. Takes the words of its
/// [key](breakout_common::nat::key).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_assign(first: u64, second: u64, way: u32) -> u32 {
    let key = key(first, second, &globals::nat_secret());
    let (slot, was) = find(&Mappings, &key).unwrap_or((0, Facts(0)));
    match assignment_of(was, second, way) {
        Assignment::Known => {}
        Assignment::Note(facts) => {
            note(&Mappings, &key, slot, was, facts);
        }
        Assignment::New(_) => return NEW,
        Assignment::Unknown => return UNKNOWN,
    }
    u32::from(port_of(slot))
}

/// The sets of a mapping, the second one above the first. A function of its own, whose stack is not needed beside that of others.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_places(first: u64, second: u64) -> u64 {
    let key = key(first, second, &globals::nat_secret());
    u64::from(key.other_set(u32::MAX)) << 32 | u64::from(key.set(u32::MAX))
}

/// Keeps a mapping in these sets. Returns its port, [`FULL`], or [`NEW`] if another CPU was faster with this flow or another one.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_map(first: u64, second: u64, places: u64) -> u32 {
    let (one, other) = ((places & 0xffff_ffff) as u32, (places >> 32) as u32);
    let key = Key::from_words(first, second, &globals::nat_secret()).in_sets(one, other);
    match keep(&Mappings, &key, Facts::of(second), now(), &live_limits()) {
        Kept::There(slot) | Kept::New(slot) => u32::from(port_of(slot)),
        Kept::Overtaken => NEW,
        Kept::No => FULL,
    }
}

/// The address and port of the client whose mapping has a public port for a remote; 0 if there is none that lives. Takes the remote's
/// address, its port and the public port, in one word, and the bit of the protocol.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_owner(remote: u64, protocol: u64) -> u64 {
    let address = (remote >> 32) as u32;
    let (remote_port, port) = ((remote >> 16 & 0xffff) as u16, (remote & 0xffff) as u16);
    let secret = globals::nat_secret();
    let (client, facts) = owner(&Mappings, (address, remote_port), protocol, port, &secret);
    if facts.silent(now()) > idle(facts, &live_limits()) {
        return 0;
    }
    client
}

/// The public address of the egress with this index, in network byte order; 0 if nothing is translated there.
#[inline(always)]
pub(crate) fn address_of(index: u8) -> u32 {
    if globals::nat_mask() == 0 {
        return 0;
    }
    let words = paths().and_then(|paths| egress(paths, index));
    words.map_or(0, nat)
}

/// The port that a plain packet over IPv4 has at an egress: 0 if it needs none, and `None` if it has none, or none yet.
#[inline(always)]
pub(crate) fn port<F: Frame>(
    frame: &F,
    headers: &Headers,
    egress_words: &EgressWords,
    index: u8,
) -> Option<u32> {
    if globals::nat_mask() == 0 || headers.is_v6() || nat(egress_words) == 0 {
        return Some(0);
    }
    let (_, from) = source(frame, headers)?;
    let ports = u32::from_be_bytes(frame.read(headers.transport_offset)?);
    let is_tcp = headers.key >> 16 == 0;
    let flags = if is_tcp {
        let [flags] = frame.read::<1>(headers.transport_offset.wrapping_add(13))?;
        flags
    } else {
        0
    };
    let [first, second] = words(from, headers.halves.1, ports, is_tcp);
    let port = breakout_assign(first, second, way(index, flags));
    (port > NEW).then_some(port)
}

/// The port that a flow has by its parts, or [`UNKNOWN`]. Its mapping does not live longer for it.
#[inline(always)]
pub(crate) fn known_port(from: u64, to: u64, ports: u32, is_tcp: bool) -> u32 {
    let [first, second] = words(from, to, ports, is_tcp);
    breakout_known(first, second)
}

/// The same by the words of the flow's key.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_known(first: u64, second: u64) -> u32 {
    let key = key(first, second, &globals::nat_secret());
    match find(&Mappings, &key) {
        Some((slot, facts)) if facts.silent(now()) <= idle(facts, &live_limits()) => {
            u32::from(port_of(slot))
        }
        _ => UNKNOWN,
    }
}

/// The port that a packet gets by its parts; or [`FULL`], or [`UNKNOWN`].
#[inline(always)]
pub(crate) fn port_for(
    from: u64,
    to: u64,
    ports: u32,
    is_tcp: bool,
    (index, flags): (u8, u8),
) -> u32 {
    let [first, second] = words(from, to, ports, is_tcp);
    match breakout_assign(first, second, way(index, flags)) {
        NEW => {}
        port => return port,
    }
    let Assignment::New(facts) = assignment_of(Facts(0), second, way(index, flags)) else {
        return UNKNOWN;
    };
    let places = breakout_places(first, second);
    let is = second >> 32 << 32 | u64::from(facts.0);
    match breakout_map(first, is, places) {
        NEW => {}
        port => return port,
    }
    let mut port = breakout_assign(first, second, way(index, flags));
    if port == NEW {
        port = breakout_map(first, is, places);
    }
    if port == NEW { FULL } else { port }
}

/// The words of a flow's key, by its addresses, and its ports as they stand in the packet.
#[inline(always)]
fn words(from: u64, to: u64, ports: u32, is_tcp: bool) -> [u64; 2] {
    let kind = if is_tcp { Key::TCP } else { 0 };
    [from << 32 | u64::from(ports), to << 32 | kind]
}

#[inline(always)]
fn way(index: u8, flags: u8) -> u32 {
    u32::from(flags) << FLAGS | u32::from(index)
}
