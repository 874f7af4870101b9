//! What becomes of one packet: by the ruleset's answer, by the choices of its preference, and by what its flow did before.

use super::{ORDINARY, PathTable, Pin, PinEvent, PinKey, Pins, place};
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
            self.ports_and_kind(),
        ]
    }

    #[inline(always)]
    const fn ports_and_kind(&self) -> u64 {
        self.facts & (Self::PORTS | Self::V6 | Self::TCP)
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

/// Makes the key of what all media flows of a client share that of one of its flows again.
#[inline(always)]
fn make_flow_key(key: &mut PinKey, flow: &Flow) {
    (key[2], key[3]) = flow.destination;
    key[4] = flow.ports_and_kind();
}

/// Makes the key of a flow that of what all media flows of its client share.
#[inline(always)]
fn make_client_key(key: &mut PinKey, flow: &Flow) {
    key[2] = Flow::CLIENT;
    // Rules that prefer other egresses do not lead each other.
    key[3] = flow.preference() as u64;
    key[4] = flow.facts & Flow::V6 | Flow::CLIENT;
}

/// Decides a packet by what the ruleset says and by what its flow did before.
///
/// A packet that the ruleset does not steer goes on by an egress only if its flow did before and that still works.
#[inline(always)]
pub fn settle<P: Pins>(flow: &Flow, table: &PathTable, pins: &P) -> Decision {
    let place = pins.blur(place(flow.is(Flow::V6), flow.is_media()));
    let (mut set, is_ruled) = (flow.set(), flow.is_ruled());
    let is_pinned = flow.is(Flow::PINNED) && (flow.word() & Outcome::HARD == 0 || flow.is_held());
    if !is_pinned {
        return match fresh(flow, flow.source, table, place) {
            ORDINARY => unsteered(flow.word()),
            egress => Decision::steer(egress, set),
        };
    }
    let now = pins.now();
    // One key for everything: the stack of an eBPF program has 512 bytes.
    let mut key = flow.key();
    let idle = if flow.is(Flow::TCP) {
        table.tcp_idle
    } else if flow.is_media() && table.media_hold < table.udp_idle {
        // A call that begins with the ports of one before must not be split between that one's way and its client's.
        table.media_hold
    } else {
        table.udp_idle
    };
    let (mut pin, is_found) = recent(pins, &key, now, idle);
    pins.spill(&mut pin);
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
            return unsteered(flow.word());
        }
    } else if flow.is_held() {
        ORDINARY
    } else if is_own && pin.epoch == table.epoch {
        pin.egress()
    } else {
        // It has no way yet, or was not looked at since something changed.
        let mut before = is_own.then_some(pin.egress());
        if flow.is_media() {
            make_client_key(&mut key, flow);
            let (shared, is_shared) = recent(pins, &key, now, table.media_hold);
            if is_shared {
                before = Some(shared.egress());
            }
        }
        match before {
            Some(egress) if egress == ORDINARY || table.works(egress, place) => egress,
            // The key has the source's address; from there it takes no room on the stack twice.
            _ => fresh(flow, (key[0], key[1]), table, place),
        }
    };
    let is_kept = is_own && pin.egress() == egress;
    let decision = match egress {
        ORDINARY if is_kept && !flow.is_held() => Decision::pass_set(Reason::Pinned, set),
        ORDINARY => unsteered(flow.word()),
        egress => Decision::steer(egress, set),
    };
    if is_own {
        if is_kept && pin.epoch == table.epoch && pin.seen == now {
            return decision;
        }
        if !is_kept {
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
    pin.epoch = table.epoch;
    pin.way = Pin::way_of(egress, set);
    make_flow_key(&mut key, flow);
    if !pins.put(&key, &pin) {
        pins.count(PinEvent::Failed);
    }
    // What is only shown shall not lead what is steered.
    if is_ruled && flow.is_media() && flow.word() & Outcome::SHADOW == 0 {
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
fn fresh(flow: &Flow, source: (u64, u64), table: &PathTable, place: usize) -> u8 {
    if !flow.is_ruled() || flow.is_held() {
        return ORDINARY;
    }
    let preference = flow.preference();
    let bucket = if table.is_spread(preference) {
        Flow { source, ..*flow }.bucket()
    } else {
        0
    };
    table.choice(preference, place, bucket)
}

/// A pin that was used not too long ago, and whether there is one. Another CPU may have used it a tick later than this one has
/// read the clock.
#[inline(always)]
fn recent<P: Pins>(pins: &P, key: &PinKey, now: u32, idle: u32) -> (Pin, bool) {
    match pins.get(key) {
        Some(pin) if now.saturating_sub(pin.seen) <= idle => (pin, true),
        _ => (Pin::NONE, false),
    }
}
