//! The probes of an egress and address family: when which target is tried.

mod attempt;
mod names;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use attempt::{Attempt, Outcome};
use names::Names;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::bound::Bound;
use super::budget::{Allowance, Pace, pace};
use super::meter::{DEAD_AFTER, Meter, SLOW_DEAD_AFTER};
use super::peer::{Trust, read_beside};
use super::probe::{Answered, Failure};
use super::report::{Path, Report, Reports};
use super::routes::ProbeRoutes;
use super::stun::Method;
use super::{Kind, Measure};
use crate::links::Links;

/// Between the further quick probes that a lost one is followed by, to tell loss from death.
const BURST: Duration = Duration::from_millis(40);
/// Quick probes in a row without an answer after which the next hop is asked for its MAC address.
const DOUBT: u32 = 2;
/// Between the tries of a slow target that does not answer.
const RETRY: Duration = Duration::from_millis(300);
/// Interval at which slow targets are tried while no quick one answers.
const UNAIDED: Duration = Duration::from_secs(2);
/// A quick target that has never answered gets one of so many probes while others answer.
const UNPROVEN: u64 = 20;
/// While a target that does not answer is tried at growing intervals, the longest.
const AGAIN: Duration = Duration::from_secs(300);
/// At most one probe in that time is sent on suspicion where probes have a budget.
const SUSPICION: Duration = Duration::from_secs(5);
/// Delay after which certificates are read again while somebody else answers: they may have been what was wrong.
const TRUST_AGAIN: Duration = Duration::from_secs(60);
/// Delay after which a probe is tried again that waits for the certificates.
const SOON: Duration = Duration::from_millis(50);

/// Prober of one path.
pub(super) struct Prober {
    path: Arc<Path>,
    bound: Bound,
    /// Certificates that are trusted; none before they were read.
    trust: Option<Trust>,
    /// Time at which they were read last.
    trust_read: Instant,
    pace: Pace,
    allowance: Option<Allowance>,
    /// Time at which a suspicion was followed last.
    suspected: Option<Instant>,
    routes: Option<ProbeRoutes>,
    meters: Vec<Meter>,
    names: Names,
    /// Time at which each slow target is tried next; none for quick ones.
    next_slow: Vec<Option<Instant>>,
    next_quick: Instant,
    /// Method that each relay has answered before.
    methods: Vec<Option<Method>>,
    /// The address that a STUN server has seen last.
    public: Option<(IpAddr, std::time::Instant)>,
    /// Number of quick probes that were sent.
    sent: u64,
    /// The number of each target's last quick probe; 0 before the first.
    asked: Vec<u64>,
    /// Further quick probes to send at short intervals.
    burst: u32,
    /// Quick probes without an answer since the last one with.
    silence: u32,
    /// True if a slow target has answered in that silence.
    door_opened: bool,
    /// Outcomes of the attempts.
    outcomes: (UnboundedSender<Outcome>, UnboundedReceiver<Outcome>),
    reports: Arc<Reports>,
}

impl Prober {
    /// Knows nothing yet, and reports there.
    pub(super) fn new(path: Arc<Path>, links: Option<Links>, reports: Arc<Reports>) -> Self {
        let now = Instant::now();
        let meters: Vec<Meter> = path.targets.iter().cloned().map(Meter::new).collect();
        Prober {
            pace: pace(&path.health, &path.targets, path.budget),
            allowance: path.budget.map(|budget| Allowance::new(budget, now)),
            suspected: None,
            trust: None,
            trust_read: now,
            bound: Bound {
                interface: Some(path.interface.clone()),
                mark: path.mark,
                way: path.way,
            },
            routes: path
                .way
                .zip(links)
                .map(|(way, links)| ProbeRoutes::new(links, way)),
            names: Names::new(&path.targets, path.v6),
            next_slow: meters
                .iter()
                .map(|meter| (!meter.target.kind.is_quick()).then_some(now))
                .collect(),
            next_quick: now,
            methods: vec![None; meters.len()],
            public: None,
            sent: 0,
            asked: vec![0; meters.len()],
            burst: 0,
            silence: 0,
            door_opened: false,
            outcomes: unbounded_channel(),
            meters,
            path,
            reports,
        }
    }

    /// Probes for ever. A suspicion has it probe at once.
    pub(super) async fn run(mut self, suspicion: Arc<Notify>) {
        let mut tries: JoinSet<()> = JoinSet::new();
        let mut reading = JoinSet::new();
        self.read_trust(&mut reading);
        loop {
            let now = Instant::now();
            while tries.try_join_next().is_some() {}
            let targets = self.meters.iter().map(|meter| &meter.target);
            if self.names.look_up(targets) && !self.names.is_looking() {
                self.retain_routes();
            }
            if self.next_quick <= now {
                self.quick(&mut tries);
            }
            for index in 0..self.meters.len() {
                if self.next_slow[index].is_some_and(|next| next <= now) {
                    let is_early =
                        self.trust.is_none() && self.meters[index].target.kind == Kind::Tls;
                    if is_early {
                        self.next_slow[index] = Some(now + SOON);
                        continue;
                    }
                    self.next_slow[index] = Some(now + jittered(self.slow_interval(index)));
                    self.start(index, &mut tries);
                }
            }
            let next = self
                .next_slow
                .iter()
                .copied()
                .flatten()
                .fold(self.next_quick.min(self.names.next()), Instant::min);
            tokio::select! {
                () = sleep_until(next) => continue,
                Some((index, is_new)) = self.names.found(), if self.names.is_looking() => {
                    let meter = &self.meters[index];
                    let is_wanted = !meter.is_proven || meter.misses > 0;
                    if is_new && is_wanted && self.may_hurry() {
                        self.next_slow[index] = self.next_slow[index].map(|_| now);
                    }
                    // While there are others to come, nobody knows yet that there is nothing to ask.
                    if self.names.is_looking() {
                        continue;
                    }
                    self.retain_routes();
                }
                Some(outcome) = self.outcomes.1.recv() => {
                    let is_foreign = matches!(outcome.answer, Err(Failure::Foreign(_)));
                    self.note(outcome);
                    if is_foreign && self.trust_read.elapsed() > TRUST_AGAIN && reading.is_empty() {
                        self.read_trust(&mut reading);
                    }
                }
                Some(read) = reading.join_next(), if !reading.is_empty() => {
                    self.trust = read.ok().flatten().or(self.trust.take());
                    continue;
                }
                () = suspicion.notified() => {
                    self.suspect();
                    continue;
                }
            }
            let known = self.known();
            let is_doubtful = self.silence >= DOUBT
                || (!known.is_empty() && known.iter().all(|meter| meter.misses > 0));
            self.reports.put(Report {
                public: self.public,
                path: Arc::clone(&self.path),
                measure: Measure::of(&known, self.silence, self.door_opened),
                is_doubtful,
            });
        }
    }

    /// The meters of targets that have an address of the family, or may have one that is yet to be shown as theirs.
    fn known(&self) -> Vec<Meter> {
        let targets = self.meters.iter().enumerate();
        targets
            .filter(|(index, meter)| {
                let is_awaited = self.names.is_awaited(*index) && meter.target.is_verifiable();
                self.names.address(*index).is_some() || is_awaited
            })
            .map(|(_, meter)| meter.clone())
            .collect()
    }

    /// Reads the certificates to trust, if any target needs them.
    fn read_trust(&mut self, reading: &mut JoinSet<Option<Trust>>) {
        self.trust_read = Instant::now();
        if self
            .meters
            .iter()
            .any(|meter| meter.target.kind == Kind::Tls)
        {
            let file = self.path.health.ca_file.clone();
            reading.spawn(read_beside(file, self.trust.clone()));
        }
    }

    /// Removes routes to what is no longer probed.
    fn retain_routes(&self) {
        if let Some(routes) = &self.routes {
            routes.retain(&self.names.all());
        }
    }

    /// Sends the next quick probe, to the targets in turn.
    fn quick(&mut self, tries: &mut JoinSet<()>) {
        let interval = if self.burst > 0 && self.may_hurry() {
            BURST
        } else {
            jittered(self.pace.quick)
        };
        self.burst = self.burst.saturating_sub(1);
        self.next_quick = Instant::now() + interval;
        match self.next_target() {
            Some(index) => {
                self.sent += 1;
                self.asked[index] = self.sent;
                self.start(index, tries);
            }
            None => self.next_quick = Instant::now() + UNAIDED,
        }
    }

    /// The quick target that was asked longest ago. Those that have never answered are rarely asked where others have.
    fn next_target(&self) -> Option<usize> {
        let quick = (0..self.meters.len()).filter(|index| {
            self.meters[*index].target.kind.is_quick() && self.names.address(*index).is_some()
        });
        let is_due = |index: &usize| {
            let last = self.asked[*index];
            self.meters[*index].is_proven || last == 0 || self.sent - last >= UNPROVEN
        };
        quick.min_by_key(|index| (!is_due(index), self.asked[*index]))
    }

    fn start(&mut self, index: usize, tries: &mut JoinSet<()>) {
        let Some(address) = self.names.address(index) else {
            return;
        };
        if let Some(allowance) = &mut self.allowance {
            allowance.spend(self.meters[index].target.kind, Instant::now());
        }
        let meter = &self.meters[index];
        let attempt = Attempt {
            index,
            target: meter.target.clone(),
            address,
            method: self.methods[index],
            bound: self.bound.clone(),
            trust: self.trust.clone(),
            routes: self.routes.clone(),
            patience: meter.timeout(),
            was_silent: meter.is_silent(),
        };
        tries.spawn(attempt.run(self.outcomes.0.clone()));
    }

    fn note(&mut self, outcome: Outcome) {
        let Outcome {
            index,
            was_silent,
            is_late,
            answer,
        } = outcome;
        let is_answered = answer.is_ok();
        let is_foreign = matches!(answer, Err(Failure::Foreign(_)));
        if let (false, Some(routes), Some(address)) =
            (is_answered, &self.routes, self.names.address(index))
        {
            routes.lead_again(address.ip());
        }
        // It was sent while nothing came back, which is known; a later one has been answered by now.
        if !is_answered && was_silent && !self.meters[index].is_silent() {
            return;
        }
        let is_quick = self.meters[index].target.kind.is_quick();
        if is_answered && self.was_dead(is_quick) {
            self.meters.iter_mut().for_each(Meter::forgive);
            // They are well again too, as far as they were not.
            self.ask_doors(|meter| meter.is_proven && meter.misses > 0);
        }
        if let Ok(Answered {
            mapped: Some(mapped),
            ..
        }) = &answer
        {
            self.public = Some((*mapped, std::time::Instant::now()));
        }
        if let Ok(Answered {
            method: Some(method),
            ..
        }) = &answer
        {
            self.methods[index] = Some(*method);
        }
        match answer {
            Ok(answered) if is_late => self.meters[index].note_late(answered.took),
            answer => self.meters[index].note(answer.map(|answered| answered.took)),
        }
        if self.meters[index].is_silent() {
            // Another relay may have the name, or the address, by now.
            self.methods[index] = None;
        }
        let is_lost = self.meters[index].misses == SLOW_DEAD_AFTER && !is_quick;
        if is_foreign || is_lost {
            // The name may have another address by now, or had one of whoever answers.
            self.names.look_up_soon();
        }
        let meter = &self.meters[index];
        if is_quick {
            if is_answered {
                // Behind a late answer the next miss is no alarm: a full queue would have one after each probe.
                self.silence = if is_late { self.silence.min(1) } else { 0 };
                self.burst = 0;
            } else if meter.is_proven {
                self.silence = self.silence.saturating_add(1);
                self.hear_silence();
            }
        } else if is_answered {
            self.door_opened = true;
        } else if meter.misses < SLOW_DEAD_AFTER && self.may_hurry() {
            self.next_slow[index] = Some(Instant::now() + jittered(RETRY));
        } else if self.pace.is_held {
            self.next_slow[index] = Some(Instant::now() + jittered(self.slow_interval(index)));
        }
    }

    /// Tells whether a probe may be sent that is not planned.
    fn may_hurry(&self) -> bool {
        self.allowance.as_ref().is_none_or(Allowance::has_more)
    }

    /// Probes some of the slow targets now.
    fn ask_doors(&mut self, which: impl Fn(&Meter) -> bool) {
        let now = Instant::now();
        for (next, meter) in self.next_slow.iter_mut().zip(&self.meters) {
            *next = next.map(|next| if which(meter) { now } else { next });
        }
    }

    /// Has all front doors show that they are there still.
    fn doubt_doors(&mut self) {
        self.door_opened = false;
        self.ask_doors(|meter| meter.is_proven);
    }

    /// Returns whether nothing of the kind that tells of the link has answered lately: the quick targets, or the others where none of
    /// those has ever answered.
    fn was_dead(&self, is_quick: bool) -> bool {
        let proven = || self.meters.iter().filter(|meter| meter.is_proven);
        if proven().any(|meter| meter.target.kind.is_quick()) {
            return is_quick && self.silence >= DEAD_AFTER;
        }
        proven().all(Meter::is_silent)
    }

    /// A quick probe was not answered. Is it the link, or only who was asked?
    fn hear_silence(&mut self) {
        let now = Instant::now();
        if self.silence == 1 {
            self.burst = DEAD_AFTER;
            if self.may_hurry() {
                self.next_quick = now;
                self.doubt_doors();
            }
        } else if self.silence == DEAD_AFTER - 1 && !self.may_hurry() {
            // The last moment: what they say decides whether it is the link.
            self.doubt_doors();
        } else if self.silence == DEAD_AFTER {
            // The name may have another address by now.
            self.names.look_up_now();
        }
    }

    /// Probes at once where the next probe would be long in coming: a quick target, or the others where none of those answers.
    fn suspect(&mut self) {
        let now = Instant::now();
        let is_early = (self.suspected).is_some_and(|before| now - before < SUSPICION);
        let is_spent = |allowance: &Allowance| !allowance.has_plenty();
        if !self.pace.is_held || is_early || self.allowance.as_ref().is_some_and(is_spent) {
            return;
        }
        self.suspected = Some(now);
        let mut proven = self.meters.iter().filter(|meter| meter.is_proven);
        if self.silence < DEAD_AFTER && proven.any(|meter| meter.target.kind.is_quick()) {
            self.next_quick = now;
        } else {
            self.ask_doors(|meter| meter.is_proven);
        }
    }

    fn slow_interval(&self, index: usize) -> Duration {
        if self.pace.is_held {
            let misses = self.meters[index].misses;
            let Some(doublings) = misses.checked_sub(SLOW_DEAD_AFTER) else {
                return self.pace.slow;
            };
            if !self.may_hurry() {
                return self.pace.slow;
            }
            // At growing intervals until it answers again.
            let again = UNAIDED * 2u32.pow(doublings.min(8));
            return again.min(AGAIN).min(self.pace.slow);
        }
        let is_helped = |meter: &Meter| meter.target.kind.is_quick() && meter.is_proven;
        if self.silence < DEAD_AFTER && self.meters.iter().any(is_helped) {
            self.path.health.slow_interval.0
        } else {
            self.path.health.slow_interval.0.min(UNAIDED)
        }
    }
}

/// The interval, up to a tenth shorter or longer, so that many gateways do not probe in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(fastrand::f64().mul_add(0.2, 0.9))
}

#[cfg(test)]
mod tests;
