//! The decision: what the ruleset says about a packet whose headers have been walked.

use crate::packet::Headers;
use crate::table::{Answer, Lookup, Outcome};
use crate::verdict::{Decision, Reason, Verdict};

/// Decides a packet by its destination, protocol and destination port.
///
/// Without a ruleset that can be read the packet passes, with [`Reason::NoRuleset`].
#[inline(always)]
pub fn decide<L: Lookup + ?Sized>(ruleset: &L, headers: &Headers) -> Decision {
    by_answer(ruleset.lookup(headers.destination, headers.key))
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
    match outcome.egress {
        Some(egress) => Decision {
            verdict: Verdict::Steer(egress),
            reason: Reason::Steered,
            set: Some(outcome.set),
        },
        None => Decision {
            verdict: Verdict::Pass,
            reason: Reason::Policy,
            set: Some(outcome.set),
        },
    }
}
