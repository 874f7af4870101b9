//! The evidence of a path's own traffic: whether flows are answered there. Seen by the programs, and looked at a few times a
//! second, without anything that waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::egress::EgressState;
use crate::datapath::{TrafficView, Unanswered};
use crate::health::{Ahead, Answers, Judge, Life, Measure, Silent, Standing, State, Traffic};
use crate::links::DeviceCounts;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);
/// Between two searches for new flows of a path where the first one found none.
const EMPTY: Duration = Duration::from_secs(2);

/// An egress and address family.
pub(super) type Key = (String, bool);

/// The evidence of one path.
#[derive(Clone, Default)]
pub(super) struct PathTraffic {
    traffic: Traffic,
    pub(super) ahead: Ahead<Unanswered>,
    /// True if flows have begun, on any path, since flows of this one were looked for.
    has_new: bool,
    /// Before that they are not looked for again.
    next_scan: Option<Instant>,
    /// Since when no probe is answered.
    silent: Option<Instant>,
}

impl PathTraffic {
    /// Weighs the evidence now; `is_silent` says whether probes find the link dead.
    pub(super) fn life(&mut self, now: Instant, is_silent: bool) -> Life {
        self.silent = is_silent.then(|| self.silent.unwrap_or(now));
        self.traffic.life(now, self.silent)
    }

    /// Tells whether flows were answered until just now, and are no longer.
    pub(super) fn has_ceased(&self, now: Instant) -> bool {
        self.traffic.has_ceased(now)
    }

    /// Tells how the path stands: as it is judged by its probes, unless it is broken ahead.
    pub(super) fn standing(&self, judge: &Judge) -> Standing {
        let standing = Standing {
            answers: self.traffic.answers(),
            ..judge.standing()
        };
        let since = standing.since.max(self.ahead.since());
        if !self.ahead.is_broken() || standing.state == State::Down {
            return Standing { since, ..standing };
        }
        Standing {
            state: State::Down,
            standard: false,
            media: false,
            score: 0.0,
            since,
            why: Some(
                "the link is well, but what clients begin there is not answered: something drops it on the way, as a rule for forwarded \
                 packets, missing translation, or a filter upstream; a few new flows try it again at growing intervals; see: \
                 breakout doctor"
                    .to_owned(),
            ),
            ..standing
        }
    }
}

/// The last look, and what it saw.
#[derive(Default)]
pub(super) struct Watching {
    at: Option<Instant>,
    /// Number of flows that had begun.
    begun: Option<u64>,
    /// Reason why nothing could be seen last.
    problem: Option<String>,
}

impl Watching {
    /// Looks at the flows of all paths, if the last look is long enough ago. Without a view nothing is known of any.
    pub(super) fn observe(
        &mut self,
        states: &[EgressState],
        view: Option<&TrafficView>,
        measures: &BTreeMap<Key, Measure>,
        paths: &mut BTreeMap<Key, PathTraffic>,
    ) {
        let now = Instant::now();
        if self.at.is_some_and(|at| now < at + INTERVAL) {
            return;
        }
        self.at = Some(now);
        let Some(view) = view else {
            paths.clear();
            return;
        };
        let problem = match self.look(now, states, view, measures, paths) {
            Ok(()) => None,
            Err(error) => {
                paths.clear();
                Some(format!("{error:#}"))
            }
        };
        if problem != self.problem {
            if let Some(problem) = &problem {
                tracing::warn!("cannot see which flows are answered: {problem}");
            }
            self.problem = problem;
        }
    }

    fn look(
        &mut self,
        now: Instant,
        states: &[EgressState],
        view: &TrafficView,
        measures: &BTreeMap<Key, Measure>,
        paths: &mut BTreeMap<Key, PathTraffic>,
    ) -> Result<()> {
        let devices = DeviceCounts::read()?;
        let begun = view.begun()?;
        let have_begun = self.begun.is_some_and(|before| before != begun);
        self.begun = Some(begun);
        // Of these it is to be seen whether what begins is answered.
        let mut waiting = Vec::new();
        for state in states {
            let interface = &state.config.interface;
            let is_shared = |other: &EgressState| {
                other.name != state.name && other.config.interface == *interface
            };
            let received = devices
                .received_packets(interface)
                .filter(|_| !states.iter().any(is_shared));
            for v6 in [false, true] {
                let key = (state.name.clone(), v6);
                let measure = measures.get(&key);
                let is_silent = measure.is_some_and(|measure| measure.alive == Some(false));
                let path = paths.entry(key.clone()).or_default();
                path.has_new |= have_begun;
                let [packets, flows] = view.answers(state.index, v6)?;
                path.traffic.note_answers(now, Answers { packets, flows });
                if let Some(received) = received {
                    path.traffic.note_received(now, received);
                }
                let is_answered = path.ahead.note_answered(now, flows);
                if state.problem(v6).is_some() || is_silent && !path.life(now, is_silent).is_alive {
                    path.ahead.give_up();
                    continue;
                }
                path.ahead.look(now, |flow| view.is_answered(flow));
                let is_due = path.next_scan.is_none_or(|next| now >= next);
                if path.has_new && path.ahead.wants_flows() && !is_answered && is_due {
                    waiting.push((key, state.index));
                }
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let begun = view.begun_lately()?;
        for ((egress, v6), index) in waiting {
            let its = begun
                .unanswered
                .iter()
                .filter(|flow| (flow.egress, flow.v6) == (index, v6));
            let its: Vec<_> = its.map(|flow| (flow.clone(), silent(flow))).collect();
            let path = paths.entry((egress, v6)).or_default();
            path.has_new = false;
            if begun.going_on.contains(&(index, v6)) {
                path.ahead.answer(now);
                continue;
            }
            // Others may have many new flows while there are none here.
            path.next_scan = its.is_empty().then(|| now + EMPTY);
            path.ahead.watch(now, its);
        }
        Ok(())
    }
}

fn silent(flow: &Unanswered) -> Silent {
    Silent {
        client: flow.client,
        destination: flow.destination,
        opens_tcp: flow.opens_tcp,
    }
}
