//! Decision on one packet: by the ruleset's answer, by the choices of its preference, and by what its flow did before.

use super::{EPOCHS, KeepsPins, ORDINARY, PathTable, Pin, PinEvent, PinKey, Pins, place};
use crate::flows::State;
use crate::table::{NO_PORT, NO_PREFIX, OWN, Outcome};
use crate::verdict::{Decision, Reason};

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

/// For so many ticks the bits of an epoch are trusted: there are no 512 epochs in that time.
const TRUSTED: u32 = 4;

impl Flow {
    /// The packet is IPv6.
    pub const V6: u64 = 1 << 27;
    /// It is TCP; UDP otherwise.
    pub const TCP: u64 = 1 << 28;
    /// It opens a TCP connection.
    pub const OPENS: u64 = 1 << 29;
    /// Flows are pinned.
    pub const PINNED: u64 = 1 << 30;
    /// It ends a TCP connection.
    pub const CLOSES: u64 = 1 << 31;
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

    /// Returns whether it takes its way by what is known of it, or else by a choice that depends on nothing but the path table: the
    /// ruleset steers it, it may stay where it is, and this packet neither begins nor ends it.
    #[inline(always)]
    pub const fn is_settled(&self) -> bool {
        self.word() & (Outcome::STEER | Outcome::HARD) == Outcome::STEER
            && !self.is_held()
            && self.facts & (Flow::PINNED | Flow::OPENS | Flow::CLOSES) == Flow::PINNED
    }

    /// For how many ticks it may have been silent, if nothing else is to be noted of it than that it goes on. Not at all
    /// for media, whose client goes on with it.
    #[inline(always)]
    pub const fn may_be_silent(&self, table: &PathTable) -> u32 {
        let idle = if self.is_media() {
            0
        } else if self.is(Self::TCP) {
            table.tcp_idle
        } else {
            table.udp_idle
        };
        if idle < TRUSTED { idle } else { TRUSTED }
    }

    /// The choice of its preference now. `blur` hides a place in the path table from the compiler, as [`Pins::blur`] does.
    #[inline(always)]
    pub fn choice(&self, table: &PathTable, blur: impl Fn(u8) -> u8) -> u8 {
        let place = (self.is(Flow::V6) as u8) << 1 | self.is_media() as u8;
        fresh(self, table, usize::from(blur(place)))
    }

    /// The decision for it to leave by an egress.
    #[inline(always)]
    pub const fn steered(&self, egress: u8) -> Decision {
        Decision::steer(egress, self.set())
    }

    /// Returns whether the ruleset steers it, or would if it did not hold that back.
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

    /// The preference that the ruleset names.
    #[inline(always)]
    pub const fn preference(&self) -> u8 {
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
            self.ports_and_kind(),
        ]
    }

    #[inline(always)]
    const fn ports_and_kind(&self) -> u64 {
        self.facts & (Self::PORTS | Self::V6 | Self::TCP)
    }

    /// The key of what all media flows of its client share.
    #[inline(always)]
    pub const fn client_key(&self) -> PinKey {
        Self::client_key_of(self.source, self.preference() as u64, self.facts)
    }

    /// The same by the client's address, the preference and the flow's facts. Rules that prefer other egresses do not lead
    /// each other.
    #[inline(always)]
    pub const fn client_key_of(source: (u64, u64), preference: u64, facts: u64) -> PinKey {
        let kind = facts & Self::V6 | Self::CLIENT;
        [source.0, source.1, Self::CLIENT, preference, kind]
    }

    /// Returns the bucket by which choices are shared out: that of the client, so that services see it at one address, or of the flow, so
    /// that somebody's flows are in each bucket also where there are few clients. Media goes by client in any case.
    #[inline(always)]
    pub const fn bucket(&self, by_flow: bool) -> u32 {
        let client = self.source.0.rotate_left(29) ^ self.source.1;
        // The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        let flow = if by_flow && !self.is_media() {
            self.destination.0.rotate_left(41)
                ^ self.destination.1.rotate_left(13)
                ^ self.facts & (Self::PORTS | Self::TCP)
        } else {
            0
        };
        let mixed = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ flow;
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 58) as u32
    }
}

/// Outcome for a packet and its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Decision on the packet.
    pub decision: Decision,
    /// State of the flow from now on.
    pub pin: Pin,
    /// True if that is to be kept, because it is not what was known before.
    pub is_kept: bool,
    /// True if it leads the other media of the client.
    pub is_shared: bool,
}

impl Settled {
    /// Nothing is to be kept.
    #[inline(always)]
    const fn at_once(decision: Decision) -> Self {
        Settled {
            decision,
            pin: Pin::NONE,
            is_kept: false,
            is_shared: false,
        }
    }
}

/// Decides a packet by what the ruleset says and by what its flow did before, and keeps what is to be known of it.
#[inline(always)]
pub fn settle<P: KeepsPins>(flow: &Flow, table: &PathTable, pins: &P) -> Decision {
    let settled = weigh(flow, table, pins);
    if settled.is_kept && !pins.keep(flow, &settled.pin) {
        pins.count(PinEvent::Failed);
    }
    if settled.is_shared {
        pins.share(flow, &settled.pin);
    }
    settled.decision
}

/// Decides a packet by what the ruleset says and by what its flow did before.
///
/// A packet that the ruleset does not steer goes on by an egress only if its flow did before and that still works.
#[inline(always)]
pub fn weigh<P: Pins>(flow: &Flow, table: &PathTable, pins: &P) -> Settled {
    let place = pins.blur(place(flow.is(Flow::V6), flow.is_media()));
    let (mut set, is_ruled) = (flow.set(), flow.is_ruled());
    let is_pinned = flow.is(Flow::PINNED) && (flow.word() & Outcome::HARD == 0 || flow.is_held());
    if !is_pinned {
        return Settled::at_once(match fresh(flow, table, place) {
            ORDINARY => unsteered(flow.word()),
            egress => Decision::steer(egress, set),
        });
    }
    let now = pins.now();
    let idle = if flow.is(Flow::TCP) {
        table.tcp_idle
    } else if flow.is_media() && table.media_hold < table.udp_idle {
        // A call that begins with the ports of one before must not be split between that one's way and its client's.
        table.media_hold
    } else {
        table.udp_idle
    };
    let (mut pin, is_found) = recent(pins.flow(flow), now, idle);
    // A connection that is opened anew takes the new way, though the ports were used before.
    let is_own = is_found && !flow.is(Flow::OPENS);
    let egress = if !is_ruled {
        if is_own && table.works(pin.egress(), place) {
            set = pin.set();
            pin.egress()
        } else if is_found && !is_own {
            // What was pinned before shall not lead the rest of a connection that is opened on the ordinary path.
            ORDINARY
        } else {
            return Settled::at_once(unsteered(flow.word()));
        }
    } else if flow.is_held() {
        ORDINARY
    } else if is_own && is_current(&pin, table, now) {
        pin.egress()
    } else {
        // It has no way yet, or was not looked at since something changed.
        let mut before = is_own.then_some(pin.egress());
        if flow.is_media() {
            let (shared, is_shared) = recent(pins.client(flow), now, table.media_hold);
            if is_shared {
                before = Some(shared.egress());
            }
        }
        match before {
            Some(egress) if egress == ORDINARY || table.works(egress, place) => egress,
            _ => fresh(flow, table, place),
        }
    };
    let stays = is_own && pin.egress() == egress;
    let state = if flow.is(Flow::CLOSES) {
        State::Closing as u32
    } else if !is_own {
        State::Opening as u32
    } else if pin.state == State::Opening as u32 && flow.is(Flow::TCP) || pin.seen != now {
        // Whoever ends his side of a connection may go on to acknowledge what the other one sends.
        State::Established as u32
    } else {
        pin.state
    };
    let decision = match egress {
        ORDINARY if stays && !flow.is_held() => Decision::pass_set(Reason::Pinned, set),
        ORDINARY => unsteered(flow.word()),
        egress => Decision::steer(egress, set),
    };
    if is_own {
        let is_the_same = pin.epoch == table.epoch & EPOCHS && pin.seen == now;
        if stays && is_the_same && pin.state == state {
            return Settled::at_once(decision);
        }
        if !stays {
            pins.count(PinEvent::Moved);
        }
    } else {
        pin.since = now;
        if is_ruled {
            pins.count(PinEvent::New);
            // It began before, so it had a pin, unless nothing was pinned then.
            if flow.is(Flow::TCP) && !flow.is(Flow::OPENS) {
                pins.count(PinEvent::Unknown);
            }
        }
    }
    pin.seen = now;
    pin.epoch = table.epoch & EPOCHS;
    pin.way = Pin::way_of(egress, set);
    pin.state = state;
    Settled {
        decision,
        pin,
        is_kept: true,
        // What is only shown shall not lead what is steered.
        is_shared: is_ruled && flow.is_media() && flow.word() & Outcome::SHADOW == 0,
    }
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

/// Returns what is best now.
#[inline(always)]
fn fresh(flow: &Flow, table: &PathTable, place: usize) -> u8 {
    if !flow.is_ruled() || flow.is_held() {
        return ORDINARY;
    }
    let preference = flow.preference();
    let bucket = if table.is_spread(preference) {
        flow.bucket(table.is_by_flow(preference))
    } else {
        0
    };
    table.choice(preference, place, bucket)
}

/// Returns whether a flow was looked at since something changed last. One that was silent for longer is looked at again, for its
/// few bits of an epoch may have come round.
#[inline(always)]
fn is_current(pin: &Pin, table: &PathTable, now: u32) -> bool {
    pin.epoch == table.epoch & EPOCHS && now.saturating_sub(pin.seen) <= TRUSTED
}

/// A pin that was used not too long ago, and whether there is one. Another CPU may have used it a tick later than this one
/// has read the clock.
#[inline(always)]
fn recent(pin: Option<Pin>, now: u32, idle: u32) -> (Pin, bool) {
    match pin {
        Some(pin) if now.saturating_sub(pin.seen) <= idle => (pin, true),
        _ => (Pin::NONE, false),
    }
}
