//! The decision: what the ruleset says about a packet whose headers have been walked.

use crate::condition::Client;
use crate::frame::Frame;
use crate::packet::Headers;
use crate::table::{Answer, Destination, Hold, Lookup, Outcome};
use crate::verdict::{Decision, Reason};

/// Decides a packet by its destination, protocol and destination port, and by its client where the policy asks for that.
/// `lan` is the number of the LAN interface that it came in by.
///
/// Without a ruleset that can be read the packet passes, with [`Reason::NoRuleset`].
#[inline(always)]
pub fn decide<L: Lookup + ?Sized, F: Frame + ?Sized>(
    ruleset: &L,
    frame: &F,
    headers: &Headers,
    lan: u32,
) -> Decision {
    by_answer(ruleset.lookup(headers.destination(), headers.key, || {
        client(frame, headers, lan)
    }))
}

/// Who sends the packet. `None` if the frame is not what the walk saw.
#[inline(always)]
fn client<F: Frame + ?Sized>(frame: &F, headers: &Headers, lan: u32) -> Option<Client> {
    let (high, low) = if headers.is_v6() {
        let half = |octets| Some(u64::from_be_bytes(octets));
        (
            frame.read(headers.ip_offset + 8).and_then(half)?,
            frame.read(headers.ip_offset + 16).and_then(half)?,
        )
    } else {
        let octets = frame.read::<4>(headers.ip_offset + 12)?;
        (0, u64::from(u32::from_be_bytes(octets)))
    };
    Some(Client {
        source: Destination::from_halves(headers.is_v6(), high, low),
        lan,
        vlan: headers.vlan,
    })
}

/// The decision that a ruleset's answer stands for.
#[inline(always)]
pub const fn by_answer(answer: Option<Answer>) -> Decision {
    match answer {
        None => Decision::pass(Reason::NoRuleset),
        Some(Answer::NoPrefix) => Decision::pass(Reason::NoPrefix),
        Some(Answer::NoPort) => Decision::pass(Reason::NoPort),
        Some(Answer::Match(outcome)) => by_outcome(outcome),
        Some(Answer::Own) => Decision::pass(Reason::OwnAddress),
    }
}

/// The decision that an outcome of the ruleset stands for.
#[inline(always)]
pub const fn by_outcome(outcome: Outcome) -> Decision {
    let set = outcome.set;
    match (outcome.egress, outcome.hold) {
        (Some(egress), None) => Decision::steer(egress, set),
        (Some(_), Some(Hold::Shadow)) => Decision::pass_set(Reason::Shadow, set),
        (Some(_), Some(Hold::Bypass)) => Decision::pass_set(Reason::Bypass, set),
        (None, _) => Decision::pass_set(Reason::Policy, set),
    }
}
