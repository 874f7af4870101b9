//! Path of a steered packet: by preference, and by what its flow took before.
//!
//! The ruleset names a *preference*: one egress, several in order, or several with weights. The controller turns each of
//! them into [`BUCKETS`] choices for each address family and class, by what it knows of the egresses now. So
//! the data path only reads one byte. A *pin* remembers the choice of a flow, so that the flow stays where it is while that
//! works, whatever the controller writes here meanwhile.
//!
//! Flows of the class `media` are pinned by client: all of one client's flows share what one pin says, so they
//! move together.

use crate::egress::{EGRESS_WORDS, EgressWords, MAX_EGRESSES};
use crate::flows::{Limits, State};

mod settle;

pub use settle::{Flow, Settled, settle, unsteered, weigh};

/// The most preferences that rulesets can name at one time.
pub const MAX_PREFERENCES: usize = 32;
/// Choices of one preference for one address family and class.
pub const BUCKETS: usize = 64;
/// Words of one preference: one byte a bucket, for each address family and class.
pub const PREFERENCE_WORDS: usize = PLACES * BUCKETS / 4;
/// Combinations of address family and class; see [`place`].
pub const PLACES: usize = 4;
/// Stands for the ordinary path where an egress's index could be.
pub const ORDINARY: u8 = 0xff;

/// The table by which steered packets find their egress, and what the data path has to know of each. The map holds it in
/// the machine's byte order and it is replaced as a whole, so no packet sees half of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PathTable {
    /// Changes with each replacement that changes a choice.
    pub epoch: u32,
    /// Not zero if there may be pins of flows that the ruleset in force does not steer.
    pub pins_beyond_ruleset: u32,
    /// Preferences whose choices are not all the same, one bit each.
    pub spread: u32,
    /// For how many ticks of [`Pins::now`] after its last packet a client's media has a way.
    pub media_hold: u32,
    /// For how many after its last packet a TCP flow has a way.
    pub tcp_idle: u32,
    /// The same for UDP.
    pub udp_idle: u32,
    /// For how many after its last packet a TCP flow that is established keeps its place in a full table.
    pub tcp_established: u32,
    /// The same for UDP.
    pub udp_established: u32,
    /// Preferences whose choices go by flow, and not by client, one bit each: while few flows of anybody try a path again.
    pub by_flow: u32,
    /// Not used.
    pub reserved: [u32; 3],
    /// The egresses that work, one bit each, by [`place`].
    pub working: [u32; PLACES],
    /// The egresses.
    pub egresses: [EgressWords; MAX_EGRESSES],
    /// The choices of each preference.
    pub preferences: [[u32; PREFERENCE_WORDS]; MAX_PREFERENCES],
}

/// Words of a [`PathTable`].
pub const PATH_WORDS: usize = size_of::<PathTable>() / 4;

impl PathTable {
    /// No egress works, so everything takes the ordinary path.
    pub const EMPTY: PathTable = PathTable {
        epoch: 0,
        pins_beyond_ruleset: 0,
        spread: 0,
        media_hold: 0,
        tcp_idle: 0,
        udp_idle: 0,
        tcp_established: 0,
        udp_established: 0,
        by_flow: 0,
        reserved: [0; 3],
        working: [0; PLACES],
        egresses: [[0; EGRESS_WORDS]; MAX_EGRESSES],
        preferences: [[u32::MAX; PREFERENCE_WORDS]; MAX_PREFERENCES],
    };

    /// Returns what a table of flows may give up.
    #[inline(always)]
    pub const fn limits(&self) -> Limits {
        Limits {
            tcp_idle: self.tcp_idle,
            udp_idle: self.udp_idle,
            media_hold: self.media_hold,
            tcp_established: self.tcp_established,
            udp_established: self.udp_established,
            only_free: false,
        }
    }

    /// Writes the choices of a preference for an address family and class.
    pub fn set_choices(&mut self, preference: u8, place: usize, choices: &[u8; BUCKETS]) {
        let Some(words) = self.preferences.get_mut(usize::from(preference)) else {
            return;
        };
        let first = place * BUCKETS / 4;
        let (groups, _) = choices.as_chunks::<4>();
        for (word, group) in words[first..].iter_mut().zip(groups) {
            *word = u32::from_le_bytes(*group);
        }
        if choices.iter().any(|choice| *choice != choices[0]) {
            self.spread |= 1 << preference;
        }
    }

    /// The choice of a preference: the index of an egress, or [`ORDINARY`].
    #[inline(always)]
    pub const fn choice(&self, preference: u8, place: usize, bucket: u32) -> u8 {
        let at = (place & (PLACES - 1)) * (BUCKETS / 4) + (bucket as usize & (BUCKETS - 1)) / 4;
        let word = self.preferences[preference as usize & (MAX_PREFERENCES - 1)][at];
        (word >> ((bucket & 3) * 8) & 0xff) as u8
    }

    /// Returns whether an egress works.
    #[inline(always)]
    pub const fn works(&self, egress: u8, place: usize) -> bool {
        (egress as usize) < MAX_EGRESSES
            && self.working[place & (PLACES - 1)] >> (egress & 31) & 1 != 0
    }

    /// Returns whether the choices of a preference go by flow, and not by client.
    #[inline(always)]
    pub const fn is_by_flow(&self, preference: u8) -> bool {
        self.by_flow >> (preference & 31) & 1 != 0
    }

    /// Returns whether the choice of a preference depends on the client or the flow.
    #[inline(always)]
    pub const fn is_spread(&self, preference: u8) -> bool {
        self.spread >> (preference & 31) & 1 != 0
    }
}

/// The index of what holds for an address family and class.
#[inline(always)]
pub const fn place(v6: bool, media: bool) -> usize {
    (v6 as usize) << 1 | media as usize
}

/// Key of a flow or a client.
pub type PinKey = [u64; 5];

/// Path of a flow, or of a client's media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Time of its last packet, by [`Pins::now`].
    pub seen: u32,
    /// Time of its first packet.
    pub since: u32,
    /// The lower bits of the [`PathTable::epoch`] in which it was looked at last: those of [`EPOCHS`].
    pub epoch: u32,
    /// The egress, or [`ORDINARY`]; above that, from bit 16 on, the slot of the endpoint set.
    pub way: u32,
    /// Number of its [`State`].
    pub state: u32,
}

/// The bits of an epoch that a pin holds.
pub const EPOCHS: u32 = 0x1ff;

impl Pin {
    /// Stands for a pin where there is none. All its fields have values, because the verifier refuses what is not set.
    pub const NONE: Pin = Pin {
        seen: 0,
        since: 0,
        epoch: 0,
        way: 0,
        state: State::Opening as u32,
    };

    /// The egress, or [`ORDINARY`].
    #[inline(always)]
    pub const fn egress(&self) -> u8 {
        (self.way & 0xff) as u8
    }

    /// The endpoint set's slot.
    #[inline(always)]
    pub const fn set(&self) -> u16 {
        (self.way >> 16) as u16
    }

    /// The last word for an egress and an endpoint set.
    #[inline(always)]
    pub const fn way_of(egress: u8, set: u16) -> u32 {
        (set as u32) << 16 | egress as u32
    }
}

/// Event of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PinEvent {
    /// A flow was pinned.
    New = 0,
    /// A flow was moved, because its way did not work any more.
    Moved = 1,
    /// A flow could not be pinned.
    Failed = 2,
    /// A TCP flow had no pin in its middle, so it went by the ruleset alone: it was forgotten, because the table of pins
    /// was full or the flow silent for long, or began while nothing was steered.
    Unknown = 3,
}

/// Number of [`PinEvent`]s.
pub const PIN_EVENTS: usize = 4;

/// Store in which pins are found.
pub trait Pins {
    /// The pin of a flow.
    fn flow(&self, flow: &Flow) -> Option<Pin>;
    /// The pin that all media flows of its client share.
    fn client(&self, flow: &Flow) -> Option<Pin>;
    /// Counts what happens.
    fn count(&self, event: PinEvent);
    /// The time in ticks of about two seconds: the kernel's jiffies, shifted by
    /// [`clock_shift`](crate::constants::Constants::clock_shift).
    fn now(&self) -> u32;

    /// Returns `value`. In the kernel, in a way that hides from the compiler what it knows of it, so that it leaves the
    /// bounds in place that the verifier wants to see.
    #[inline(always)]
    fn blur(&self, value: usize) -> usize {
        value
    }
}

/// Store in which pins are kept.
pub trait KeepsPins: Pins {
    /// Keeps the pin of a flow. `false` if it cannot be kept.
    fn keep(&self, flow: &Flow, pin: &Pin) -> bool;
    /// Keeps it for the other media flows of its client.
    fn share(&self, flow: &Flow, pin: &Pin);
}

/// Nothing is pinned.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPins;

impl Pins for NoPins {
    #[inline(always)]
    fn flow(&self, _: &Flow) -> Option<Pin> {
        None
    }

    #[inline(always)]
    fn client(&self, _: &Flow) -> Option<Pin> {
        None
    }

    #[inline(always)]
    fn count(&self, _: PinEvent) {}

    #[inline(always)]
    fn now(&self) -> u32 {
        0
    }
}

impl KeepsPins for NoPins {
    fn keep(&self, _: &Flow, _: &Pin) -> bool {
        true
    }

    fn share(&self, _: &Flow, _: &Pin) {}
}

#[cfg(test)]
mod tests;
