//! Lookup, claim and release of entries while other CPUs do the same.

use super::{
    EPOCH, EPOCH_AT, Facts, Key, LONGEST, PER_SET, STATE_AT, Set, Sets, State, TCP, V6, is_zero,
};
use crate::table::after;

/// Ticks of silence after which an entry may be given up for a new flow when both its sets are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// After which a TCP flow has no way any more.
    pub tcp_idle: u32,
    /// The same for UDP.
    pub udp_idle: u32,
    /// The same for what a client's media flows share.
    pub media_hold: u32,
    /// After which an established TCP flow may make room for a new one.
    pub tcp_established: u32,
    /// The same for UDP.
    pub udp_established: u32,
    /// True if nothing is given up: a new flow gets a free place or none.
    pub only_free: bool,
}

/// Outcome of keeping a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is in a slot where it was before.
    There(u32),
    /// It is in a slot from now on.
    New(u32),
    /// Another CPU was about the same at the same time; the next packet sees what came of it.
    Overtaken,
    /// There is no room for it.
    No,
}

/// The slot of a flow, and what is known of it.
#[inline(always)]
pub fn find<S: Sets>(sets: &S, key: &Key) -> Option<(u32, Facts)> {
    let mask = sets.mask();
    let found = find_in(sets, key, key.set(mask));
    if found.is_some() {
        return found;
    }
    find_in(sets, key, key.other_set(mask))
}

#[inline(always)]
fn find_in<S: Sets>(sets: &S, key: &Key, index: u32) -> Option<(u32, Facts)> {
    let set = sets.set(index)?;
    let mut found = 0;
    let mut entry = 0;
    while entry < PER_SET {
        let this = (slot(index, entry) as u64) << 32 | matching(set, entry, key).0 as u64;
        found |= this & !is_zero(this & 0xffff_ffff) & is_zero(found);
        entry += 1;
    }
    if found == 0 {
        return None;
    }
    Some(((found >> 32) as u32, Facts::of(found)))
}

/// Returns what is known of an entry if it is of a flow and live; zero otherwise.
#[inline(always)]
fn matching<S: Set>(set: S, entry: u32, key: &Key) -> Facts {
    let second = set.word(at(entry) + 1);
    let is_its = is_its(set, entry, key, second);
    Facts::of(second & is_its)
}

/// All ones if an entry is of a flow and live, else zero. `second` is its second word as it was read.
#[inline(always)]
fn is_its<S: Set>(set: S, entry: u32, key: &Key, second: u64) -> u64 {
    const WHOSE: u64 = !0xffff_ffff | (TCP | V6) as u64;
    // Whoever writes an entry writes its first word before it makes the second one live, and has changed that one before.
    let first = set.word_after(at(entry), second);
    let again = set.word_after(at(entry) + 1, first);
    is_zero(
        first ^ key.first()
            | (second ^ (key.second() | key.kind() as u64)) & WHOSE
            | again ^ second
            | not_live((second & 0xffff_ffff) as u32) as u64,
    )
}

/// All ones if an entry is neither a flow's nor a client's, else zero.
#[inline(always)]
const fn not_live(facts: u32) -> u32 {
    after(State::Opening as u32, Facts(facts).state())
}

/// Returns where the first word of an entry is in its set.
#[inline(always)]
const fn at(entry: u32) -> usize {
    2 * (entry & (PER_SET - 1)) as usize
}

/// The number of an entry.
#[inline(always)]
const fn slot(set: u32, entry: u32) -> u32 {
    set * PER_SET + entry
}

/// Notes what is known of a flow, where it is or in a new slot. `now` is the tick by which others are silent.
#[inline(always)]
pub fn keep<S: Sets>(sets: &S, key: &Key, facts: Facts, now: u32, limits: &Limits) -> Kept {
    let mask = sets.mask();
    let (first, other) = (key.set(mask), key.other_set(mask));
    if let Some((slot, was)) = find(sets, key) {
        return match note(sets, key, slot, was, facts) {
            true => Kept::There(slot),
            false => Kept::Overtaken,
        };
    }
    let (in_first, in_other) = (
        cheapest(sets, first, now, limits, FEW_FREE),
        cheapest(sets, other, now, limits, OTHER_FREE),
    );
    let is_first = in_first.cost <= in_other.cost;
    let (index, best) = if is_first {
        (first, in_first)
    } else {
        (other, in_other)
    };
    let Some(set) = sets.set(index) else {
        return Kept::No;
    };
    if best.cost >= NEVER || limits.only_free && best.cost > FEW_FREE {
        return Kept::No;
    }
    let (at, mine) = (at(best.entry), slot(index, best.entry));
    let reserved = reserved(key);
    if !set.swap(at + 1, best.second, reserved) {
        return Kept::Overtaken;
    }
    set.write(at, key.first());
    if has_rival(sets, key, first, mine) || has_rival(sets, key, other, mine) {
        let _ = set.swap(at + 1, reserved, 0);
        return Kept::Overtaken;
    }
    if set.swap(at + 1, reserved, key.second() | facts.0 as u64) {
        Kept::New(mine)
    } else {
        Kept::Overtaken
    }
}

/// The second word of an entry while a flow claims it. It is not live, and tells nearly all flows apart.
#[inline(always)]
const fn reserved(key: &Key) -> u64 {
    let first = key.first() ^ key.first() >> 21 ^ key.first() >> 43;
    let facts = key.kind() | (State::Reserved as u32) << STATE_AT;
    key.second() | facts as u64 | first & (TCP - 1) as u64
}

/// Notes that a packet of a flow has come, if that is all there is to be noted: it was looked at in this epoch, and a
/// packet came at most `most` ticks ago. What is known of it then; zero otherwise.
#[inline(always)]
pub fn renew<S: Set>(set: S, key: &Key, now: u32, epoch: u32, most: u32) -> Facts {
    let wanted = Facts::new(key.kind(), 0, epoch);
    let mut entry = 0;
    let (mut found, mut at_entry) = (0, 0);
    while entry < PER_SET {
        let second = set.word(at(entry) + 1);
        let facts = Facts::of(second);
        let differs = (facts.0 ^ wanted.0) & (EPOCH << EPOCH_AT);
        let is_recent = !after(facts.silent(now), most);
        let is_it = is_its(set, entry, key, second) & is_zero(differs as u64) & wide(is_recent);
        found |= second & is_it;
        at_entry |= entry & (is_it & 0xffff_ffff) as u32;
        entry += 1;
    }
    if found == 0 {
        return Facts(0);
    }
    let was = Facts::of(found);
    let facts = Facts::new(key.kind(), now, epoch).with(was.egress(), State::Established as u32);
    let is_flow = was.state() != State::Client as u32;
    if is_flow && set.swap(at(at_entry) + 1, found, key.second() | facts.0 as u64) {
        facts
    } else {
        Facts(0)
    }
}

/// A mask of 32 bits as one of 64.
#[inline(always)]
const fn wide(mask: u32) -> u64 {
    mask as u64 | (mask as u64) << 32
}

/// Notes what is known of a flow whose slot and former facts are known. If they change meanwhile, another packet of the flow was faster,
/// and knows as much.
#[inline(always)]
pub fn note<S: Sets>(sets: &S, key: &Key, slot: u32, was: Facts, facts: Facts) -> bool {
    sets.set(slot / PER_SET).is_some_and(|set| {
        let [was, facts] = [was, facts].map(|facts| key.second() | facts.0 as u64);
        set.swap(at(slot % PER_SET) + 1, was, facts)
    })
}

/// Gives up the entry of a flow, if there is one.
pub fn forget<S: Sets>(sets: &S, key: &Key) -> bool {
    let Some((slot, facts)) = find(sets, key) else {
        return false;
    };
    let at = at(slot % PER_SET) + 1;
    let set = sets.set(slot / PER_SET);
    set.is_some_and(|set| set.swap(at, key.second() | facts.0 as u64, 0))
}

/// Step of the cost of entries above the ticks of silence: the longer one is silent, the less it costs.
const STEP: u32 = 13;
/// A free one where there are more.
const FREE: u32 = 0;
/// A free one of the other set: it is taken before the first set's last one.
const OTHER_FREE: u32 = 1 << STEP;
/// The last free one of the first set.
const FEW_FREE: u32 = 2 << STEP;
/// One that has been silent for too long.
const EXPIRED: u32 = 3 << STEP;
/// One that is about to end.
const CLOSING: u32 = 4 << STEP;
/// One that has just begun.
const OPENING: u32 = 5 << STEP;
/// One that goes on, but has been silent for long.
const SILENT: u32 = 6 << STEP;
/// One that is not given up.
const NEVER: u32 = 7 << STEP;

/// The entry that costs least.
#[derive(Clone, Copy)]
struct Candidate {
    cost: u32,
    entry: u32,
    second: u64,
}

/// The cheapest entry of a set for a flow that is seen now. `last_free` is what a set's only free one costs.
#[inline(always)]
fn cheapest<S: Sets>(sets: &S, index: u32, now: u32, limits: &Limits, last_free: u32) -> Candidate {
    let mut best = Candidate {
        cost: NEVER,
        entry: 0,
        second: 0,
    };
    let Some(set) = sets.set(index) else {
        return best;
    };
    let mut free = 0;
    let mut entry = 0;
    while entry < PER_SET {
        let second = set.word(at(entry) + 1);
        let cost = cost(Facts::of(second), now, limits);
        free += after(1, cost) & 1;
        let is_cheaper = after(best.cost, cost);
        best.cost = either(is_cheaper, cost, best.cost);
        best.entry = either(is_cheaper, entry, best.entry);
        let is_cheaper = wide(is_cheaper);
        best.second = second & is_cheaper | best.second & !is_cheaper;
        entry += 1;
    }
    if best.cost == FREE && (free == 1 || last_free == OTHER_FREE) {
        best.cost = last_free;
    }
    best
}

/// Returns what it costs to give an entry up. Without branches: the verifier would follow those of eight entries in all their
/// combinations.
#[inline(always)]
const fn cost(entry: Facts, now: u32, limits: &Limits) -> u32 {
    let silent = entry.silent(now);
    let state = entry.state();
    let is_client = equal(state, State::Client as u32);
    let is_tcp = equal(entry.0 & TCP, TCP);
    let idle = either(is_tcp, limits.tcp_idle, limits.udp_idle);
    let idle = either(is_client, limits.media_hold, idle);
    let idle = either(after(idle, LONGEST), LONGEST, idle);
    let established = either(is_tcp, limits.tcp_established, limits.udp_established);
    let established = either(is_client, LONGEST, established);
    let step = either(after(silent, established), SILENT, NEVER);
    let step = either(equal(state, State::Opening as u32), OPENING, step);
    let step = either(equal(state, State::Closing as u32), CLOSING, step);
    let step = either(after(silent, idle), EXPIRED, step);
    let step = either(equal(state, State::Reserved as u32), NEVER, step);
    let cost = step + LONGEST - silent;
    cost & !equal(entry.0, 0)
}

/// One of two numbers, by a mask of ones or zeros.
#[inline(always)]
const fn either(mask: u32, one: u32, other: u32) -> u32 {
    one & mask | other & !mask
}

/// All ones if two numbers are equal, else zero.
#[inline(always)]
const fn equal(a: u32, b: u32) -> u32 {
    !(after(a, b) | after(b, a))
}

/// Returns whether another slot of a set has the flow, or is about to.
#[inline(always)]
fn has_rival<S: Sets>(sets: &S, key: &Key, index: u32, mine: u32) -> bool {
    let Some(set) = sets.set(index) else {
        return true;
    };
    let reserved = reserved(key);
    let mut is_there = 0;
    let mut entry = 0;
    while entry < PER_SET {
        let is_other = !equal(slot(index, entry), mine);
        let second = set.word(at(entry) + 1);
        let is_same = is_its(set, entry, key, second) | is_zero(second ^ reserved);
        is_there |= is_same & is_other as u64;
        entry += 1;
    }
    is_there != 0
}
