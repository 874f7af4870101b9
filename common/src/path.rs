//! Which egress a steered packet takes: by preference, and by what its flow took before.
//!
//! The ruleset names a *preference*: one egress, several in order, or several with weights. The controller turns each of
//! them into [`BUCKETS`] choices for each address family and class, by what it knows of the egresses now. So
//! the data path only reads one byte. A *pin* remembers the choice of a flow, so that the flow stays where it is while that
//! works, whatever the controller writes here meanwhile.
//!
//! Flows of the class `media` are pinned by client: all of one client's flows share what one pin says, so they
//! move together.

use crate::egress::{EGRESS_WORDS, MAX_EGRESSES};
use crate::table::{NO_PORT, NO_PREFIX, OWN, Outcome};
use crate::verdict::{Decision, Reason};

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

/// The table by which steered packets find their egress, and what the data path has to know of each. The map holds it in the
/// machine's byte order and it is replaced as a whole, so no packet sees half of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PathTable {
    /// Changes with each replacement that changes a choice.
    pub epoch: u32,
    /// Not zero if there may be pins of flows that the ruleset in force does not steer.
    pub pins_beyond_ruleset: u32,
    /// Preferences whose choices are not all the same, one bit each.
    pub spread: u32,
    /// For how many seconds after its last packet a client's media has a way.
    pub media_hold: u32,
    /// For how many seconds after its last packet a TCP flow has a way.
    pub tcp_idle: u32,
    /// The same for UDP.
    pub udp_idle: u32,
    /// Not used.
    pub reserved: [u32; 6],
    /// The egresses that work, one bit each, by [`place`].
    pub working: [u32; PLACES],
    /// The egresses; see [`Egress`](crate::egress::Egress).
    pub egresses: [[u32; EGRESS_WORDS]; MAX_EGRESSES],
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
        reserved: [0; 6],
        working: [0; PLACES],
        egresses: [[0; EGRESS_WORDS]; MAX_EGRESSES],
        preferences: [[u32::MAX; PREFERENCE_WORDS]; MAX_PREFERENCES],
    };

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

    /// Whether an egress works.
    #[inline(always)]
    pub const fn works(&self, egress: u8, place: usize) -> bool {
        (egress as usize) < MAX_EGRESSES
            && self.working[place & (PLACES - 1)] >> (egress & 31) & 1 != 0
    }

    /// Whether the choice of a preference depends on the flow.
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

/// What tells flows apart, or clients.
pub type PinKey = [u64; 5];

/// Where a flow, or a client's media, goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pin {
    /// When its last packet came, in whole seconds since boot.
    pub seen: u32,
    /// When its first packet came.
    pub since: u32,
    /// The [`PathTable::epoch`] in which it was looked at last.
    pub epoch: u32,
    /// The egress, or [`ORDINARY`]; above that, from bit 16 on, the slot of the endpoint set.
    pub way: u32,
}

impl Pin {
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

/// What happens to pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PinEvent {
    /// A flow was pinned.
    New = 0,
    /// A flow was moved, because its way did not work any more.
    Moved = 1,
    /// A flow could not be pinned.
    Failed = 2,
}

/// How many [`PinEvent`]s there are.
pub const PIN_EVENTS: usize = 3;

/// Where pins are kept.
pub trait Pins {
    /// The pin with this key.
    fn get(&self, key: &PinKey) -> Option<Pin>;
    /// Keeps a pin. `false` if it cannot be kept.
    fn put(&self, key: &PinKey, pin: &Pin) -> bool;
    /// Counts what happens.
    fn count(&self, event: PinEvent);

    /// Returns `value`. In the kernel, in a way that hides from the compiler what it knows of it, so that it leaves the
    /// bounds in place that the verifier wants to see.
    #[inline(always)]
    fn blur(&self, value: usize) -> usize {
        value
    }
}

/// Nothing is pinned.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPins;

impl Pins for NoPins {
    #[inline(always)]
    fn get(&self, _: &PinKey) -> Option<Pin> {
        None
    }

    #[inline(always)]
    fn put(&self, _: &PinKey, _: &Pin) -> bool {
        true
    }

    #[inline(always)]
    fn count(&self, _: PinEvent) {}
}

/// A flow's packet and what the ruleset says about it.
///
/// Bits stand where booleans could: all of them go through one 64-bit register of a function call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The source address, as [`Destination::to_halves`](crate::table::Destination::to_halves) gives it.
    pub source: (u64, u64),
    /// The destination address.
    pub destination: (u64, u64),
    /// The word of the ruleset's answer (see [`Outcome`]), then the bits named here, then both ports in the upper half.
    pub facts: u64,
}

impl Flow {
    /// The packet is IPv6.
    pub const V6: u64 = 1 << 27;
    /// It is TCP; UDP otherwise.
    pub const TCP: u64 = 1 << 28;
    /// It opens a TCP connection.
    pub const OPENS: u64 = 1 << 29;
    /// Flows are pinned.
    pub const PINNED: u64 = 1 << 30;
    /// In the key of a client's pin, and in no flow's.
    pub const CLIENT: u64 = 1;

    const PORTS: u64 = 0xffff_ffff << 32;
    const HOLDS: u32 = Outcome::SHADOW | Outcome::BYPASS;

    /// The source port, then the destination port, as facts.
    #[inline(always)]
    pub const fn ports(source: u16, destination: u16) -> u64 {
        (source as u64) << 48 | (destination as u64) << 32
    }

    /// The word of the ruleset's answer.
    #[inline(always)]
    const fn word(&self) -> u32 {
        (self.facts & 0xffff_ffff) as u32 & Outcome::ALL
    }

    #[inline(always)]
    const fn is(&self, fact: u64) -> bool {
        self.facts & fact != 0
    }

    /// Whether the ruleset steers it, or would if it did not hold that back.
    #[inline(always)]
    const fn is_ruled(&self) -> bool {
        self.word() & Outcome::STEER != 0
    }

    #[inline(always)]
    const fn is_held(&self) -> bool {
        self.word() & Self::HOLDS != 0
    }

    #[inline(always)]
    const fn is_media(&self) -> bool {
        self.word() & Outcome::MEDIA != 0
    }

    #[inline(always)]
    const fn preference(&self) -> u8 {
        (self.word() >> Outcome::PREFERENCE & 31) as u8
    }

    #[inline(always)]
    const fn set(&self) -> u16 {
        (self.word() & Outcome::SET) as u16
    }

    /// The key of its pin: addresses, and ports with the bits [`V6`](Self::V6) and [`TCP`](Self::TCP).
    #[inline(always)]
    pub const fn key(&self) -> PinKey {
        [
            self.source.0,
            self.source.1,
            self.destination.0,
            self.destination.1,
            self.facts & (Self::PORTS | Self::V6 | Self::TCP),
        ]
    }

    /// What the weights are shared out by: the client for media, so that its flows stay together, the flow otherwise.
    #[inline(always)]
    pub const fn bucket(&self) -> u32 {
        let client = self.source.0.rotate_left(29) ^ self.source.1;
        let flow = if self.is_media() {
            0
        } else {
            self.destination.0.rotate_left(41)
                ^ self.destination.1.rotate_left(13)
                ^ self.facts & (Self::PORTS | Self::TCP)
        };
        // The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        let mixed = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ flow;
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 58) as u32
    }
}

/// Makes the key of a flow that of what all media flows of its client share.
#[inline(always)]
fn make_client_key(key: &mut PinKey, flow: &Flow) {
    // Two zeros in a row become a call of memset, which the stack has no room for.
    key[2] = Flow::CLIENT;
    key[3] = 0;
    key[4] = flow.facts & Flow::V6 | Flow::CLIENT;
}

/// Decides a packet by what the ruleset says and by what its flow did before. `now` is in seconds since boot.
///
/// A packet that the ruleset does not steer goes on by an egress only if its flow did before and that still works.
#[inline(always)]
pub fn settle<P: Pins>(flow: &Flow, table: &PathTable, pins: &P, now: u32) -> Decision {
    let place = pins.blur(place(flow.is(Flow::V6), flow.is_media()));
    let (set, is_ruled) = (flow.set(), flow.is_ruled());
    let is_pinned = flow.is(Flow::PINNED) && (flow.word() & Outcome::HARD == 0 || flow.is_held());
    if !is_pinned {
        return match fresh(flow, table, place) {
            ORDINARY => unsteered(flow.word()),
            egress => Decision::steer(egress, set),
        };
    }
    // One key for everything: the stack of an eBPF program has 512 bytes.
    let mut key = flow.key();
    let idle = if flow.is(Flow::TCP) {
        table.tcp_idle
    } else {
        table.udp_idle
    };
    // A connection that is opened anew takes the new way, though the ports were used before.
    let own = if flow.is(Flow::OPENS) {
        None
    } else {
        recent(pins, &key, now, idle)
    };
    if !is_ruled {
        return match own {
            Some(pin) if table.works(pin.egress(), place) => {
                Decision::steer(pin.egress(), pin.set())
            }
            _ => unsteered(flow.word()),
        };
    }
    let egress = match own {
        _ if flow.is_held() => ORDINARY,
        Some(pin) if pin.epoch == table.epoch => pin.egress(),
        // It has no way yet, or was not looked at since something changed.
        _ => {
            let shared = if flow.is_media() {
                make_client_key(&mut key, flow);
                recent(pins, &key, now, table.media_hold)
            } else {
                None
            };
            match shared.or(own) {
                Some(pin) if pin.egress() == ORDINARY || table.works(pin.egress(), place) => {
                    pin.egress()
                }
                _ => fresh(flow, table, place),
            }
        }
    };
    let is_kept = own.is_some_and(|pin| pin.egress() == egress);
    let decision = match egress {
        ORDINARY if is_kept && !flow.is_held() => Decision::pass_set(Reason::Pinned, set),
        ORDINARY => unsteered(flow.word()),
        egress => Decision::steer(egress, set),
    };
    let mut pin = Pin {
        seen: now,
        since: now,
        epoch: table.epoch,
        way: Pin::way_of(egress, set),
    };
    match own {
        Some(own) if is_kept && own.epoch == table.epoch && own.seen == now => return decision,
        Some(own) => {
            pin.since = own.since;
            if !is_kept {
                pins.count(PinEvent::Moved);
            }
        }
        None => pins.count(PinEvent::New),
    }
    key = flow.key();
    if !pins.put(&key, &pin) {
        pins.count(PinEvent::Failed);
    }
    if flow.is_media() {
        make_client_key(&mut key, flow);
        pins.put(&key, &pin);
    }
    decision
}

/// The decision on a packet that takes the ordinary path, by the word of the ruleset's answer.
#[inline(always)]
pub const fn unsteered(word: u32) -> Decision {
    if word & Outcome::PRESENT == 0 {
        return Decision::pass(match word {
            NO_PREFIX => Reason::NoPrefix,
            NO_PORT => Reason::NoPort,
            OWN => Reason::OwnAddress,
            _ => Reason::NoRuleset,
        });
    }
    let reason = if word & Outcome::STEER == 0 {
        Reason::Policy
    } else if word & Outcome::BYPASS != 0 {
        Reason::Bypass
    } else if word & Outcome::SHADOW != 0 {
        Reason::Shadow
    } else {
        Reason::EgressDown
    };
    Decision::pass_set(reason, (word & Outcome::SET) as u16)
}

/// What is best now.
#[inline(always)]
fn fresh(flow: &Flow, table: &PathTable, place: usize) -> u8 {
    if !flow.is_ruled() || flow.is_held() {
        return ORDINARY;
    }
    let preference = flow.preference();
    let bucket = if table.is_spread(preference) {
        flow.bucket()
    } else {
        0
    };
    table.choice(preference, place, bucket)
}

/// A pin that was used not too long ago.
#[inline(always)]
fn recent<P: Pins>(pins: &P, key: &PinKey, now: u32, idle: u32) -> Option<Pin> {
    pins.get(key)
        .filter(|pin| now.wrapping_sub(pin.seen) <= idle)
}

#[cfg(test)]
mod tests;
