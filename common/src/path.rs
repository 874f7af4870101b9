//! Which egress a steered packet takes: by preference, and by what its flow took before.
//!
//! The ruleset names a *preference*: one egress, several in order, or several with weights. The controller turns each of
//! them into [`BUCKETS`] choices for each address family and class, by what it knows of the egresses now. So
//! the data path only reads one byte. A *pin* remembers the choice of a flow, so that the flow stays where it is while that
//! works, whatever the controller writes here meanwhile.
//!
//! Flows of the class `media` are pinned by client: all of one client's flows share what [`client_key`] leads to, so they
//! move together.

use crate::egress::{EGRESS_WORDS, MAX_EGRESSES};

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
}

/// A flow's packet and what the ruleset says about it, as [`settle`] wants it.
///
/// Bits stand where booleans could: all of them go through one 64-bit register of a function call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The source address, as [`Destination::to_halves`](crate::table::Destination::to_halves) gives it.
    pub source: (u64, u64),
    /// The destination address.
    pub destination: (u64, u64),
    /// See the associated constants.
    pub facts: u64,
}

impl Flow {
    /// The packet is IPv6.
    pub const V6: u64 = 1 << 39;
    /// It is TCP; UDP otherwise.
    pub const TCP: u64 = 1 << 40;
    /// It opens a TCP connection.
    pub const OPENS: u64 = 1 << 41;
    /// The ruleset steers it.
    pub const STEERED: u64 = 1 << 42;
    /// The ruleset would steer it, but holds that back.
    pub const HELD: u64 = 1 << 43;
    /// It is of the class `media`.
    pub const MEDIA: u64 = 1 << 37;
    /// It takes what is best now, and is not pinned.
    pub const HARD: u64 = 1 << 38;
    /// Flows are pinned.
    pub const PINNED: u64 = 1 << 60;

    /// The source port, then the destination port, in the lowest 32 bits.
    #[inline(always)]
    pub const fn ports(source: u16, destination: u16) -> u64 {
        (source as u64) << 16 | destination as u64
    }

    /// The preference that the ruleset names, and the endpoint set's slot.
    #[inline(always)]
    pub const fn ruled(preference: u8, set: u16) -> u64 {
        ((preference & 31) as u64) << 32 | (set as u64) << 44
    }

    #[inline(always)]
    const fn is(&self, fact: u64) -> bool {
        self.facts & fact != 0
    }

    #[inline(always)]
    const fn preference(&self) -> u8 {
        (self.facts >> 32 & 31) as u8
    }

    #[inline(always)]
    const fn set(&self) -> u16 {
        (self.facts >> 44 & 0xffff) as u16
    }

    /// The key of its pin.
    #[inline(always)]
    pub const fn key(&self) -> PinKey {
        let kind = self.facts & (Self::V6 | Self::TCP) | self.facts & 0xffff_ffff;
        [
            self.source.0,
            self.source.1,
            self.destination.0,
            self.destination.1,
            kind,
        ]
    }

    /// What the weights are shared out by: the client for media, so that its flows stay together, the flow otherwise.
    #[inline(always)]
    pub const fn bucket(&self) -> u32 {
        let client = self.source.0.rotate_left(29) ^ self.source.1;
        let flow = if self.is(Self::MEDIA) {
            0
        } else {
            self.destination.0.rotate_left(41) ^ self.destination.1.rotate_left(13) ^ self.key()[4]
        };
        // The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        let mixed = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ flow;
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 58) as u32
    }
}

/// The key of what all media flows of a flow's client share.
#[inline(always)]
pub const fn client_key(flow: &Flow) -> PinKey {
    [
        flow.source.0,
        flow.source.1,
        0,
        0,
        flow.facts & Flow::V6 | CLIENT,
    ]
}

/// Is in the last word of the keys of clients, and in no flow's.
pub const CLIENT: u64 = 1 << 63;

/// Where a packet goes, as one word, for the same reason as in [`Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way(pub u32);

impl Way {
    const KEPT: u32 = 1 << 8;

    #[inline(always)]
    const fn new(egress: u8, set: u16, kept: bool) -> Self {
        Way(Pin::way_of(egress, set) | (kept as u32) << 8)
    }

    /// A choice that no pin has a part in.
    #[inline(always)]
    pub const fn chosen(egress: u8, set: u16) -> Self {
        Way::new(egress, set, false)
    }

    /// The egress's index, or [`ORDINARY`].
    #[inline(always)]
    pub const fn egress(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// The endpoint set's slot, for packets that leave by an egress.
    #[inline(always)]
    pub const fn set(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether that is because the flow went there before.
    #[inline(always)]
    pub const fn is_kept(self) -> bool {
        self.0 & Self::KEPT != 0
    }
}

/// Where a packet goes. `now` is in seconds since boot.
///
/// A packet that the ruleset does not steer goes on by an egress only if its flow did before and that still works.
#[inline(always)]
pub fn settle<P: Pins>(flow: &Flow, table: &PathTable, pins: &P, now: u32) -> Way {
    let place = place(flow.is(Flow::V6), flow.is(Flow::MEDIA));
    let set = flow.set();
    if !flow.is(Flow::PINNED) || flow.is(Flow::STEERED) && flow.is(Flow::HARD) {
        return Way::chosen(fresh(flow, table, place), set);
    }
    let key = flow.key();
    let idle = if flow.is(Flow::TCP) {
        table.tcp_idle
    } else {
        table.udp_idle
    };
    // A connection that is opened anew takes the new way, though the ports were used before.
    let own = if flow.is(Flow::OPENS) {
        None
    } else {
        pins.get(&key).filter(|pin| is_recent(pin, now, idle))
    };
    if !flow.is(Flow::STEERED | Flow::HELD) {
        return match own {
            Some(pin) if table.works(pin.egress(), place) => {
                Way::new(pin.egress(), pin.set(), true)
            }
            _ => Way::chosen(ORDINARY, 0),
        };
    }
    let egress = match own {
        _ if flow.is(Flow::HELD) => ORDINARY,
        Some(pin) if pin.epoch == table.epoch => pin.egress(),
        _ => reconcile(flow, table, pins, own, place, now),
    };
    let kept = own.is_some_and(|pin| pin.egress() == egress);
    match own {
        Some(pin) if kept && pin.epoch == table.epoch && pin.seen == now => {}
        _ => keep(flow, table, pins, own, egress, now),
    }
    Way::new(egress, set, kept)
}

/// The way of a flow that has none yet, or was not looked at since something changed.
#[inline(always)]
fn reconcile<P: Pins>(
    flow: &Flow,
    table: &PathTable,
    pins: &P,
    own: Option<Pin>,
    place: usize,
    now: u32,
) -> u8 {
    let shared = if flow.is(Flow::MEDIA) {
        pins.get(&client_key(flow))
            .filter(|pin| is_recent(pin, now, table.media_hold))
    } else {
        None
    };
    match shared.or(own) {
        Some(pin) if pin.egress() == ORDINARY || table.works(pin.egress(), place) => pin.egress(),
        _ => fresh(flow, table, place),
    }
}

/// What is best now.
#[inline(always)]
fn fresh(flow: &Flow, table: &PathTable, place: usize) -> u8 {
    if !flow.is(Flow::STEERED) {
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

/// Pins a flow, and with it its client's media.
#[inline(always)]
fn keep<P: Pins>(flow: &Flow, table: &PathTable, pins: &P, own: Option<Pin>, egress: u8, now: u32) {
    let mut pin = Pin {
        seen: now,
        since: now,
        epoch: table.epoch,
        way: Pin::way_of(egress, flow.set()),
    };
    match own {
        None => pins.count(PinEvent::New),
        Some(before) => {
            pin.since = before.since;
            if before.egress() != egress {
                pins.count(PinEvent::Moved);
            }
        }
    }
    if !pins.put(&flow.key(), &pin) {
        pins.count(PinEvent::Failed);
    }
    if flow.is(Flow::MEDIA) {
        pins.put(&client_key(flow), &pin);
    }
}

#[inline(always)]
const fn is_recent(pin: &Pin, now: u32, idle: u32) -> bool {
    now.wrapping_sub(pin.seen) <= idle
}

#[cfg(test)]
mod tests;
