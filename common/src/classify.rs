//! The decision: what the ruleset says about a packet whose headers have been walked.

use crate::packet::Headers;
use crate::table::{Answer, Table, lookup};
use crate::verdict::{Decision, Reason, Verdict};

/// Decides a packet by its destination, protocol and destination port.
///
/// A table that cannot be read passes the packet, with [`Reason::NoRuleset`].
#[inline(always)]
pub fn decide<T: Table + ?Sized>(table: &T, headers: &Headers) -> Decision {
    let key = headers.transport.key(headers.port);
    match lookup(table, headers.destination, key) {
        None => Decision::pass(Reason::NoRuleset),
        Some(Answer::NoPrefix) => Decision::pass(Reason::NoPrefix),
        Some(Answer::NoPort) => Decision::pass(Reason::NoPort),
        Some(Answer::Match(outcome)) => match outcome.egress {
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
        },
    }
}
