//! The decision: what the ruleset says about a packet whose headers have been walked.

use crate::packet::Headers;
use crate::table::{Answer, Outcome, Table, lookup};
use crate::verdict::{Decision, Reason, Verdict};

/// Decides a packet by its destination, protocol and destination port.
///
/// A table that cannot be read passes the packet, with [`Reason::NoRuleset`].
#[inline(always)]
pub fn decide<T: Table + ?Sized>(table: &T, headers: &Headers) -> Decision {
    match lookup(table, headers.destination, headers.key) {
        None => Decision::pass(Reason::NoRuleset),
        Some(Answer::NoPrefix) => Decision::pass(Reason::NoPrefix),
        Some(Answer::NoPort) => Decision::pass(Reason::NoPort),
        Some(Answer::Match(outcome)) => by_outcome(outcome),
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
