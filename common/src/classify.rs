//! The decision: what the ruleset says about a packet whose headers have been walked, and which way it takes then.

use crate::condition::Client;
use crate::frame::Frame;
use crate::packet::Headers;
use crate::path::{Flow, ORDINARY, PathTable, Way, place};
use crate::table::{Answer, Destination, Hold, Lookup, Outcome, Transport};
use crate::verdict::{Decision, Reason};

/// What the ruleset says about a packet, by its destination, protocol and destination port, and by its client where the
/// policy asks for that. `lan` is the number of the LAN interface that it came in by.
///
/// Without a ruleset that can be read the packet passes, with [`Reason::NoRuleset`].
#[inline(always)]
pub fn rule<L: Lookup + ?Sized, F: Frame + ?Sized>(
    ruleset: &L,
    frame: &F,
    headers: &Headers,
    lan: u32,
) -> Ruling {
    by_answer(ruleset.lookup(headers.destination(), headers.key, || {
        client(frame, headers, lan)
    }))
}

/// What the ruleset says about a packet. Where that is to steer, the egress is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The preference stands where the egress of a decision does.
    decision: Decision,
    /// [`Flow::MEDIA`] and [`Flow::HARD`].
    facts: u64,
}

impl Ruling {
    #[inline(always)]
    const fn new(decision: Decision) -> Self {
        Ruling { decision, facts: 0 }
    }

    /// The index of the preference, if the packet is to be steered.
    #[inline(always)]
    pub const fn preference(&self) -> Option<u8> {
        self.decision.egress()
    }

    /// The reason if the packet passes, else [`Reason::Steered`].
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        self.decision.reason()
    }

    /// The slot of the endpoint set, if there is one.
    #[inline(always)]
    pub const fn set(&self) -> Option<u16> {
        self.decision.set()
    }

    /// Whether the packet may belong to a flow that was steered before: not if it is for the gateway itself, or nothing is
    /// known of the ruleset.
    #[inline(always)]
    pub const fn may_be_pinned(&self) -> bool {
        matches!(
            self.decision.reason(),
            Reason::NoPrefix | Reason::NoPort | Reason::Policy
        )
    }

    /// Whether it is of the class `media`.
    #[inline(always)]
    pub const fn is_media(&self) -> bool {
        self.facts & Flow::MEDIA != 0
    }

    /// The same as facts on a [`Flow`].
    #[inline(always)]
    pub const fn facts(&self) -> u64 {
        let set = match self.decision.set() {
            Some(set) => set,
            None => 0,
        };
        let (preference, steered) = match self.preference() {
            Some(preference) => (preference, Flow::STEERED),
            None => (0, 0),
        };
        let held = match self.decision.reason() {
            Reason::Shadow | Reason::Bypass => Flow::HELD,
            _ => 0,
        };
        self.facts | Flow::ruled(preference, set) | steered | held
    }

    /// The decision if the packet takes the ordinary path for the ruleset's own reason, or for want of an egress.
    #[inline(always)]
    pub const fn pass(&self) -> Decision {
        match self.preference() {
            Some(_) => self.decision.but_pass(Reason::EgressDown),
            None => self.decision,
        }
    }

    /// The decision by the way that the packet's flow takes.
    #[inline(always)]
    pub const fn by_way(&self, way: Way) -> Decision {
        if way.egress() != ORDINARY {
            return Decision::steer(way.egress(), way.set());
        }
        if self.preference().is_some() && way.is_kept() {
            return self.decision.but_pass(Reason::Pinned);
        }
        self.pass()
    }

    /// The decision with the index of the preference where that of an egress would be.
    #[inline(always)]
    pub const fn by_preference(&self) -> Decision {
        self.decision
    }

    /// The decision without pins, by the choices of a table.
    #[inline(always)]
    pub fn by_choice(&self, table: &PathTable, v6: bool, bucket: u32) -> Decision {
        match self.preference() {
            Some(preference) => {
                let egress = table.choice(preference, place(v6, self.is_media()), bucket);
                self.by_way(Way::chosen(egress, self.set().unwrap_or_default()))
            }
            None => self.decision,
        }
    }
}

/// The flow of a packet, for [`settle`](crate::path::settle). `None` if the frame is not what the walk saw.
#[inline(always)]
pub fn flow<F: Frame + ?Sized>(frame: &F, headers: &Headers, ruling: &Ruling) -> Option<Flow> {
    let source = source(frame, headers)?;
    let ports = frame.read::<4>(headers.transport_offset)?;
    let is_tcp = headers.key & Transport::Udp.key(0) == 0;
    let mut facts = ruling.facts() | u64::from(u32::from_be_bytes(ports));
    if headers.is_v6() {
        facts |= Flow::V6;
    }
    if is_tcp {
        facts |= Flow::TCP;
        // RFC 9293, section 3.1: SYN is bit 1, ACK bit 4 of the flags.
        let flags = frame.read::<1>(headers.transport_offset.wrapping_add(13));
        if flags.is_some_and(|[flags]| flags & 0x12 == 0x02) {
            facts |= Flow::OPENS;
        }
    }
    Some(Flow {
        source,
        destination: headers.halves,
        facts,
    })
}

/// Who sends the packet. `None` if the frame is not what the walk saw.
#[inline(always)]
fn client<F: Frame + ?Sized>(frame: &F, headers: &Headers, lan: u32) -> Option<Client> {
    let (high, low) = source(frame, headers)?;
    Some(Client {
        source: Destination::from_halves(headers.is_v6(), high, low),
        lan,
        vlan: headers.vlan,
    })
}

/// The source address as two halves.
#[inline(always)]
fn source<F: Frame + ?Sized>(frame: &F, headers: &Headers) -> Option<(u64, u64)> {
    if headers.is_v6() {
        let half = |octets| Some(u64::from_be_bytes(octets));
        Some((
            frame.read(headers.ip_offset + 8).and_then(half)?,
            frame.read(headers.ip_offset + 16).and_then(half)?,
        ))
    } else {
        let octets = frame.read::<4>(headers.ip_offset + 12)?;
        Some((0, u64::from(u32::from_be_bytes(octets))))
    }
}

/// What a ruleset's answer stands for.
#[inline(always)]
pub const fn by_answer(answer: Option<Answer>) -> Ruling {
    let decision = match answer {
        None => Decision::pass(Reason::NoRuleset),
        Some(Answer::NoPrefix) => Decision::pass(Reason::NoPrefix),
        Some(Answer::NoPort) => Decision::pass(Reason::NoPort),
        Some(Answer::Match(outcome)) => return by_outcome(outcome),
        Some(Answer::Own) => Decision::pass(Reason::OwnAddress),
    };
    Ruling::new(decision)
}

#[inline(always)]
const fn by_outcome(outcome: Outcome) -> Ruling {
    let set = outcome.set;
    let decision = match (outcome.preference, outcome.hold) {
        (Some(preference), None) => Decision::steer(preference, set),
        (Some(_), Some(Hold::Shadow)) => Decision::pass_set(Reason::Shadow, set),
        (Some(_), Some(Hold::Bypass)) => Decision::pass_set(Reason::Bypass, set),
        (None, _) => Decision::pass_set(Reason::Policy, set),
    };
    let media = if outcome.media { Flow::MEDIA } else { 0 };
    let hard = if outcome.hard { Flow::HARD } else { 0 };
    Ruling {
        decision,
        facts: media | hard,
    }
}
