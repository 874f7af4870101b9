//! Place of a mapping, by its flow and by its public port.

use super::{FIRST_PORT, LEAST_SETS, PORTS, is_public};
use crate::flows::{Facts, Key, PER_SET, Set, SetSecret, Sets, State};

/// The key of the mapping of a flow: its source address and ports, and its destination, as the words of an entry; the second one with
/// its [kind](Key::kind).
#[inline(always)]
pub const fn key(first: u64, second: u64, secret: &SetSecret) -> Key {
    let flow = Key::from_words(first, second, secret);
    let (remote, port) = (second >> 32, first & 0xffff);
    let region = region(remote, port, second & Key::TCP, secret);
    let (one, other) = (flow.set(LEAST_SETS - 1), flow.other_set(LEAST_SETS - 1));
    flow.in_sets(region | one, region | other)
}

/// The first set of the region of a remote address, port and protocol, in a table of any size.
#[inline(always)]
const fn region(remote: u64, port: u64, protocol: u64, secret: &SetSecret) -> u32 {
    // Of the whole words none is zero, so that none of them is the same in all tables.
    let hash = Key::from_words(remote << 16 | port, protocol, secret);
    hash.set(u32::MAX) & !(LEAST_SETS - 1)
}

/// The public port of a slot.
#[inline(always)]
pub const fn port_of(slot: u32) -> u16 {
    FIRST_PORT | (slot & (PORTS - 1)) as u16
}

/// The second word of an entry whose flow has been answered.
#[inline(always)]
const fn established(second: u64) -> u64 {
    let facts = Facts::of(second);
    let facts = facts.with(facts.egress(), State::Established as u32);
    second >> 32 << 32 | facts.0 as u64
}

/// The client that has a public port for a remote address and port, and what is known of its flow: the address and the port above
/// [`Facts`]; zeros if nobody has. It is asked for a reply, which establishes the flow.
#[inline(always)]
pub fn owner<S: Sets>(
    sets: &S,
    remote: (u32, u16),
    protocol: u64,
    port: u16,
    secret: &SetSecret,
) -> (u64, Facts) {
    const NOBODY: (u64, Facts) = (0, Facts(0));
    if !is_public(port) {
        return NOBODY;
    }
    let (address, remote_port) = (remote.0 as u64, remote.1 as u64);
    let slot = (port as u32) & (PORTS - 1);
    let index = (region(address, remote_port, protocol, secret) + slot / PER_SET) & sets.mask();
    let Some(set) = sets.set(index) else {
        return NOBODY;
    };
    let at = 2 * (slot % PER_SET) as usize;
    let second = set.word(at + 1);
    let first = set.word_after(at, second);
    // Whoever takes an entry over changes its second word first.
    let again = set.word_after(at + 1, first);
    let facts = Facts::of(second);
    let is_its = second == again
        && second >> 32 == address
        && first & 0xffff == remote_port
        && second & Key::TCP == protocol
        && facts.is_live();
    if !is_its {
        return NOBODY;
    }
    if facts.state() == State::Opening as u32 {
        // If it changes meanwhile, another packet was faster, and the next one comes.
        let _ = set.swap(at + 1, second, established(second));
    }
    (first >> 16, facts)
}
