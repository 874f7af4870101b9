//! Entries as pins, and the way of a flow that nothing has changed for.

use super::{Facts, Key, Sets, State, known};
use crate::path::{Flow, ORDINARY, PathTable, Pin};

/// The pin that an entry and its note stand for. `now` is the tick in which it is read.
#[inline(always)]
pub const fn pin_of(facts: Facts, note: u64, now: u32) -> Pin {
    Pin {
        seen: now.wrapping_sub(facts.silent(now)),
        since: (note & 0xffff_ffff) as u32,
        epoch: facts.epoch(),
        way: Pin::way_of(facts.egress(), (note >> 32 & 0xffff) as u16),
        state: facts.state(),
    }
}

/// Returns what the entry of a pin says, by the kind of its key.
#[inline(always)]
pub const fn facts_of(kind: u32, pin: &Pin) -> Facts {
    Facts::new(kind, pin.seen, pin.epoch).with(pin.egress(), pin.state)
}

/// Returns what stands beside the entry of a pin: when the flow began, and above that the slot of its endpoint set, and when it
/// was [answered](super::answered) last, which is not.
#[inline(always)]
pub const fn note_of(pin: &Pin) -> u64 {
    (pin.set() as u64) << 32 | pin.since as u64
}

/// The egress of a flow that was looked at in this tick and epoch: what [`settle`](crate::path::settle) would say, found
/// without anything waiting for the entry. `None` if that is to be asked.
///
/// Nearly always it is the choice that the path table has now, so what follows goes on with that while the entry is still
/// on its way from memory. `blur` keeps the compiler from seeing that the two are equal.
#[inline(always)]
pub fn predict<S: Sets>(
    flow: &Flow,
    key: &Key,
    sets: &S,
    table: &PathTable,
    now: u32,
    blur: impl Fn(u8) -> u8,
) -> Option<u8> {
    let mask = sets.mask();
    let mut facts = known(sets.set(key.set(mask))?, key, now, table.epoch);
    if facts.0 == 0 {
        facts = known(sets.set(key.other_set(mask))?, key, now, table.epoch);
    }
    // Whoever answers a SYN-ACK establishes a TCP connection, which is to be noted.
    let least = if facts.is_tcp() {
        State::Established
    } else {
        State::Opening
    };
    if facts.state() < least as u32 {
        return None;
    }
    let (choice, egress) = (flow.choice(table, &blur), facts.egress());
    let way = if choice == egress {
        blur(choice)
    } else {
        egress
    };
    (way != ORDINARY).then_some(way)
}
