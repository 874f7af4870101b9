//! The table of flows: which way each one took, in arrays that a lookup reads with one or two loads and that the controller
//! maps into its memory.
//!
//! ```text
//! set      64 bytes, a cache line: four entries of two words
//! entry    word 0  source address and both ports; of IPv6 and of clients, half of a keyed hash
//!          word 1  destination address, or 32 bits more of the hash, above 32 bits that say what is known of the flow
//! ```
//!
//! A flow has two candidate sets, by a keyed hash, so that nobody can aim at a set. The lower half of word 1 is, from its
//! lowest bit on: the tick of the last packet (13 bits, see [`Pins::now`](crate::path::Pins::now)), the epoch of the path
//! table in which the flow was looked at last (9 bits), whether it is TCP, whether it is IPv6, its egress (5 bits), and its
//! state (3 bits). An entry of zeros is free.
//!
//! The entry of a flow that was looked at in this tick and epoch holds nothing that is not known beforehand but its way and
//! state, so that [`known`] compares all four entries of a set without a branch. All else is rare, and is [`find`] and
//! [`keep`].
//!
//! Several CPUs change the table at once, without a lock. Word 1 only ever changes by compare-and-swap; who has made it
//! [`State::Reserved`] may write word 0. Who then finds the same flow elsewhere gives way.

mod answer;
mod claim;
mod key;
mod pin;

#[cfg(target_has_atomic = "64")]
use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::table::after;

pub use answer::{ANSWERED, answered, answered_flow, with_answer};
pub use claim::{Kept, Limits, find, forget, keep, note, renew};
pub use key::{Key, KeySecret, Secret, SetSecret};
pub use pin::{facts_of, note_of, pin_of, predict};

/// Entries of a set.
pub const ENTRIES: usize = PER_SET as usize;
/// The same as the numbers of slots have it: set by set.
pub const PER_SET: u32 = 4;
/// Words of a set.
pub const SET_WORDS: usize = 2 * ENTRIES;
/// In the first word behind the last set; its low byte is the version of the layout. Behind it are the words of the
/// [`Secret`].
pub const MAGIC: u64 = 0x4252_4b46_4c4f_5702;

/// The most ticks for which a flow can be said to be silent. More are taken for a packet of the future, which has come
/// while the clock was read.
pub const LONGEST: u32 = 8000;

/// Bits of a tick.
const TICK: u32 = 0x1fff;
/// Bits of an epoch, and where they are.
const EPOCH: u32 = crate::path::EPOCHS;
const EPOCH_AT: u32 = 13;
/// The flow is TCP.
const TCP: u32 = 1 << 22;
/// It is IPv6.
const V6: u32 = 1 << 23;
/// Bit position of the egress.
const EGRESS_AT: u32 = 24;
/// Value for the ordinary path.
const ORDINARY: u32 = 31;
/// Bit position of the state.
const STATE_AT: u32 = 29;
/// Bits that are not known beforehand of a flow that was looked at just now.
const UNKNOWN: u64 = 0xff << EGRESS_AT;

/// State of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Somebody is about to write the entry.
    Reserved = 1,
    /// The first packets of a flow have come.
    Opening = 2,
    /// It has gone on for longer than a tick, or answers its peer.
    Established = 3,
    /// One side has ended the TCP connection.
    Closing = 4,
    /// No flow, but what all media flows of a client share.
    Client = 5,
}

/// The lower half of an entry's second word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts(pub u32);

impl Facts {
    /// Of an entry by its second word.
    #[inline(always)]
    pub const fn of(second: u64) -> Self {
        Facts((second & 0xffff_ffff) as u32)
    }

    /// Of a flow by the [kind](Key::kind) of its key, seen in a tick and epoch.
    #[inline(always)]
    pub const fn new(kind: u32, tick: u32, epoch: u32) -> Self {
        Facts(kind & (TCP | V6) | tick & TICK | (epoch & EPOCH) << EPOCH_AT)
    }

    /// The same with an egress's index, or [`path::ORDINARY`](crate::path::ORDINARY), and a state.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, egress: u8, state: u32) -> Self {
        let known = self.0 & !((UNKNOWN & 0xffff_ffff) as u32);
        Facts(known | (egress as u32 & ORDINARY) << EGRESS_AT | (state & 7) << STATE_AT)
    }

    /// The egress's index, or [`path::ORDINARY`](crate::path::ORDINARY).
    #[inline(always)]
    pub const fn egress(self) -> u8 {
        let egress = self.0 >> EGRESS_AT & ORDINARY;
        if egress == ORDINARY {
            crate::path::ORDINARY
        } else {
            egress as u8
        }
    }

    /// The state, as a number.
    #[inline(always)]
    pub const fn state(self) -> u32 {
        self.0 >> STATE_AT
    }

    /// Returns whether there is a flow, or a client.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.state() >= State::Opening as u32
    }

    /// Returns whether it is TCP.
    #[inline(always)]
    pub const fn is_tcp(self) -> bool {
        self.0 & TCP != 0
    }

    /// Returns whether it is IPv6.
    #[inline(always)]
    pub const fn is_v6(self) -> bool {
        self.0 & V6 != 0
    }

    /// The bits of the epoch.
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        self.0 >> EPOCH_AT & EPOCH
    }

    /// For how many ticks the flow has been silent, [`LONGEST`] at most. Another CPU may have used it later than this one
    /// has read the clock.
    #[inline(always)]
    pub const fn silent(self, now: u32) -> u32 {
        let ticks = now.wrapping_sub(self.0) & TICK;
        ticks & !after(ticks, LONGEST)
    }
}

/// The memory of a table.
pub trait Sets {
    /// Access to a set.
    type Set: Set;

    /// The number of sets, a power of two, less one.
    fn mask(&self) -> u32;

    /// A set, by its index.
    fn set(&self, index: u32) -> Option<Self::Set>;
}

/// The memory of a set.
pub trait Set: Copy {
    /// One of its words.
    fn word(&self, at: usize) -> u64;

    /// One of its words, read after another one that was `seen`, whatever the processor would do otherwise.
    fn word_after(&self, at: usize, seen: u64) -> u64;

    /// Writes a word.
    fn write(&self, at: usize, word: u64);

    /// Writes a word if it is what it was, in one step, with a full memory barrier behind it. Returns whether it was.
    fn swap(&self, at: usize, was: u64, word: u64) -> bool;
}

/// A set in memory that is shared by ordinary atomic operations: each word is read with acquire semantics.
#[cfg(target_has_atomic = "64")]
impl Set for &[AtomicU64; SET_WORDS] {
    fn word(&self, at: usize) -> u64 {
        self[at].load(Ordering::Acquire)
    }

    fn word_after(&self, at: usize, _: u64) -> u64 {
        self.word(at)
    }

    fn write(&self, at: usize, word: u64) {
        self[at].store(word, Ordering::Release);
    }

    fn swap(&self, at: usize, was: u64, word: u64) -> bool {
        let order = Ordering::SeqCst;
        let outcome = self[at].compare_exchange(was, word, order, order);
        fence(order);
        outcome.is_ok()
    }
}

/// Returns what is known of a flow that was looked at in this tick and epoch; [`Facts`] of zero otherwise.
///
/// Nothing here waits for anything but the words themselves.
#[inline(always)]
pub fn known<S: Set>(set: S, key: &Key, tick: u32, epoch: u32) -> Facts {
    let wanted = key.second() | Facts::new(key.kind(), tick, epoch).0 as u64;
    let mut found = 0;
    let mut entry = 0;
    while entry < ENTRIES {
        let second = set.word(2 * entry + 1);
        let differs = set.word(2 * entry) ^ key.first() | (second ^ wanted) & !UNKNOWN;
        found |= second & is_zero(differs);
        entry += 1;
    }
    Facts::of(found)
}

/// All ones if a word is zero, else zero.
#[inline(always)]
const fn is_zero(word: u64) -> u64 {
    ((word | word.wrapping_neg()) >> 63).wrapping_sub(1)
}

#[cfg(test)]
pub(crate) mod tests;
