//! Times that are moved along when the system's clock is set.

use super::Controller;
use super::sources::Sources;
use super::state::Persistent;
use crate::clock::Clock;
use crate::timestamp::Timestamp;

impl Controller {
    /// Moves along what is due when the clock has been set.
    pub(super) fn follow_clock(&mut self) {
        let Some(step) = self.clock.step() else {
            return;
        };
        tracing::warn!(
            "the system's clock was set by {step} s; what is due is due after the same time as before"
        );
        self.events.note(
            "clock",
            "the system's clock",
            "was set",
            format!("by {step} s"),
        );
        self.persistent.clock = Some(self.clock.ahead());
        self.persistent.move_by(step);
        self.sources.move_by(step);
        for set in self.lists.iter_mut().flat_map(|list| &mut list.sets) {
            set.move_by(step);
        }
        for rule in &mut self.ruleset.rules {
            rule.withdrawn = rule.withdrawn.map(|since| since.moved_by(step));
        }
        self.as_of = self.as_of.moved_by(step);
        self.failover.paths().health.move_by(step);
        self.save("after a restart what is due may be late or early");
    }
}

/// The clock that goes on from an earlier controller of this boot. Moves along what the state has if the clock was set since, or, at a
/// boot before the time is known, is behind what was seen already.
pub(super) fn resume(persistent: &mut Persistent, sources: &mut Sources) -> Clock {
    let mut clock = Clock::resume(persistent.clock);
    let latest = [
        sources.latest(),
        persistent.bypass.as_ref().map(|bypass| bypass.since),
    ];
    let latest = latest.into_iter().flatten().max();
    let behind = latest.map_or(0, |latest| {
        let behind = latest.since(Timestamp::now()).as_secs();
        -i64::try_from(behind).unwrap_or(0)
    });
    let step = clock.step().unwrap_or(behind);
    if step != 0 {
        persistent.move_by(step);
        sources.move_by(step);
    }
    persistent.clock = Some(clock.ahead());
    clock
}
