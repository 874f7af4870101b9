//! Measurement: what the probes of one egress and address family tell together.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Target;
use super::probe::Failure;

/// Unanswered quick probes in a row, over all targets, after which an egress is dead.
pub(super) const DEAD_AFTER: u32 = 7;
/// Unanswered tries in a row after which a TCP, TLS or HTTP target does not answer.
pub(super) const SLOW_DEAD_AFTER: u32 = 3;
/// Answers of somebody else after which the link leads to them.
const FOREIGN_AFTER: u32 = 2;
/// Unanswered probes after which it is no longer known that somebody else answers.
const FOREIGN_LAPSES: u32 = 10;

/// One target's answers.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    pub(super) target: Target,
    /// True if it has ever answered. What never has says nothing about the link while others answer.
    pub(super) is_proven: bool,
    /// Unanswered probes in a row.
    pub(super) misses: u32,
    /// Probes that somebody else answered since the target did.
    foreign: u32,
    /// Unanswered probes since the last one that somebody else answered.
    silent_since: u32,
    loss: f64,
    /// The loss before the misses in a row.
    loss_before: f64,
    latency: Option<f64>,
    /// By how much the latency varies.
    variation: f64,
    /// The latency of a link that is not full: the least one, which follows others slowly.
    idle: Option<f64>,
    why: Option<String>,
}

impl Meter {
    pub(super) fn new(target: Target) -> Self {
        Meter {
            target,
            is_proven: false,
            misses: 0,
            foreign: 0,
            silent_since: 0,
            loss: 0.0,
            loss_before: 0.0,
            latency: None,
            variation: 0.0,
            idle: None,
            why: None,
        }
    }

    /// Takes in how long an answer took, or why there was none.
    pub(super) fn note(&mut self, outcome: Result<Duration, Failure>) {
        // Exponentially weighted moving averages (as in RFC 6298 for the latency). One lost probe, or two, must not reach the
        // smallest limit for loss that makes sense, 2 %.
        let weight = if self.target.kind.is_quick() {
            0.1
        } else {
            0.3
        };
        let loss_weight = self.loss_weight();
        match outcome {
            Ok(time) => {
                let time = time.as_secs_f64() * 1000.0;
                self.idle = Some(match self.idle {
                    Some(idle) if time > idle => idle + (time - idle) * 0.001,
                    _ => time,
                });
                (self.latency, self.variation) = match self.latency {
                    Some(before) => {
                        let further = (time - before).abs() - self.variation;
                        let latency = before + (time - before) * weight;
                        (Some(latency), self.variation + further * 0.25)
                    }
                    None => (Some(time), time / 2.0),
                };
                self.loss -= self.loss * loss_weight;
                self.is_proven = true;
                self.misses = 0;
                self.foreign = 0;
                self.why = None;
            }
            Err(failure) => {
                if self.misses == 0 {
                    self.loss_before = self.loss;
                }
                if self.misses < DEAD_AFTER {
                    self.loss += (1.0 - self.loss) * loss_weight;
                }
                self.misses = self.misses.saturating_add(1);
                if matches!(failure, Failure::Foreign(_)) {
                    self.foreign = self.foreign.saturating_add(1);
                    self.silent_since = 0;
                } else {
                    self.silent_since = self.silent_since.saturating_add(1);
                    if self.silent_since >= FOREIGN_LAPSES {
                        self.foreign = 0;
                    }
                }
                let (Failure::Silence(why) | Failure::Foreign(why)) = failure;
                self.why = Some(why);
            }
        }
    }

    /// Takes in an answer that has come after it was no longer waited for, and was taken for lost. A queue has it late, so the
    /// link is alive.
    pub(super) fn note_late(&mut self, time: Duration) {
        let loss = self.loss;
        self.note(Ok(time));
        let weight = self.loss_weight();
        // What is left by rounding is nothing.
        let loss = (loss - weight) / (1.0 - weight);
        self.loss = if loss < 1e-9 { 0.0 } else { loss };
    }

    /// The weight of one probe in the moving average of the loss.
    fn loss_weight(&self) -> f64 {
        if self.target.kind.is_quick() {
            0.01
        } else {
            0.3
        }
    }

    /// A dead link is no lossy one: that it was dead is not held against it once it answers again.
    pub(super) fn forgive(&mut self) {
        if self.misses > 0 {
            self.loss = self.loss_before;
        }
    }

    /// Returns whether so many probes in a row had no answer that there is none to be had.
    pub(super) fn is_silent(&self) -> bool {
        let enough = if self.target.kind.is_quick() {
            DEAD_AFTER
        } else {
            SLOW_DEAD_AFTER
        };
        self.misses >= enough
    }

    /// Returns how long an answer is waited for: as for TCP's retransmissions (RFC 6298), within bounds of our own. What is silent
    /// gets the most, so that a link that has become slow is not taken for dead for ever.
    pub(super) fn timeout(&self) -> Duration {
        let (least, most) = if self.target.kind.is_quick() {
            (150.0, 1000.0)
        } else {
            (1000.0, 3000.0)
        };
        let usual = match self.latency {
            Some(latency) if !self.is_silent() => latency + 4.0 * self.variation,
            _ => most,
        };
        Duration::from_secs_f64(usual.clamp(least, most) / 1000.0)
    }

    /// Tells whether it may turn out that somebody else answers, or that nobody does.
    fn is_open(&self) -> bool {
        let is_unknown = !self.is_proven && self.misses == 0;
        let is_doubtful = !self.is_silent() && (1..FOREIGN_AFTER).contains(&self.foreign);
        self.target.is_verifiable() && (is_unknown || is_doubtful)
    }

    fn report(&self) -> TargetReport {
        TargetReport {
            target: self.target.clone(),
            answers: self.is_proven && self.misses < SLOW_DEAD_AFTER,
            proven: self.is_proven,
            loss: self.loss,
            latency_ms: self.latency,
            last_error: self.why.clone(),
        }
    }
}

/// Report on a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetReport {
    /// The target.
    pub target: Target,
    /// True if it has answered lately.
    pub answers: bool,
    /// True if it has ever answered; otherwise it does not count while others do.
    pub proven: bool,
    /// The share of probes that it does not answer, from 0 to 1.
    pub loss: f64,
    /// Latency of its answers, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Reason why the last probe had no answer; null if it had one.
    pub last_error: Option<String>,
}

/// Measurement of an egress and address family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measure {
    /// True if anything answers; null while that is not known.
    pub alive: Option<bool>,
    /// True if a TURN, STUN or ICMP target answers; null while that is not known.
    pub relays: Option<bool>,
    /// True if a TCP, TLS or HTTP target answers; null while that is not known.
    pub doors: Option<bool>,
    /// A target that somebody else answers for, as a captive portal does, and how that shows; null if there is none.
    #[serde(default)]
    pub captive: Option<String>,
    /// The share of probes that is lost, from 0 to 1.
    pub loss: f64,
    /// Latency of answers, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Latency while the link is not full.
    #[serde(default)]
    pub idle_latency_ms: Option<f64>,
    /// Each target.
    pub targets: Vec<TargetReport>,
}

impl Measure {
    /// Nothing has been asked yet.
    pub fn untried(targets: &[Target]) -> Self {
        let meters: Vec<Meter> = targets.iter().cloned().map(Meter::new).collect();
        Self::of(&meters, 0, false)
    }

    /// Brings the meters together. `silence` is the number of quick probes since the last answer to any, and `door_opened`
    /// says whether a slow one was answered meanwhile.
    pub(super) fn of(meters: &[Meter], silence: u32, door_opened: bool) -> Self {
        let proven = |quick: bool| {
            let meters = meters.iter().filter(move |meter| meter.is_proven);
            meters.filter(move |meter| meter.target.kind.is_quick() == quick)
        };
        let slow_alive = |meters: &mut dyn Iterator<Item = &Meter>| {
            meters
                .map(|meter| meter.misses < SLOW_DEAD_AFTER)
                .reduce(|a, b| a || b)
        };
        let captive = captive(meters);
        let doors = match captive {
            Some(_) => Some(false),
            None => slow_alive(&mut proven(false)),
        };
        let relays = (proven(true).next().is_some()).then_some(silence < DEAD_AFTER);
        let alive = if relays == Some(true) {
            relays
        } else if relays == Some(false) {
            // Where others answer, it is only the relays that do not.
            Some(door_opened && doors == Some(true))
        } else if captive.is_none() && meters.iter().any(Meter::is_open) {
            // Whoever intercepts connections accepts them too.
            None
        } else if doors.is_some() {
            doors
        } else {
            // Nothing has ever answered. That is known once everything was tried often enough.
            (!meters.is_empty() && meters.iter().all(Meter::is_silent)).then_some(false)
        };
        // The best target tells about the link; what others lose more is theirs.
        let quick: Vec<&Meter> = proven(true).collect();
        let counted = if quick.is_empty() {
            proven(false).collect()
        } else {
            quick
        };
        let best = counted.into_iter().min_by(|a, b| {
            (a.loss, a.latency)
                .partial_cmp(&(b.loss, b.latency))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        Measure {
            alive,
            relays,
            doors,
            captive,
            loss: best.map_or(0.0, |meter| meter.loss),
            latency_ms: best.and_then(|meter| meter.latency),
            idle_latency_ms: best.and_then(|meter| meter.idle),
            targets: meters.iter().map(Meter::report).collect(),
        }
    }

    /// Returns whether answers take so much longer than on an idle link that a queue before it must be full: 100 ms, as Microsoft's
    /// connectivity test has it.
    pub fn is_slowed(&self) -> bool {
        const ADDED: f64 = 100.0;
        let slowed = self.latency_ms.zip(self.idle_latency_ms);
        slowed.is_some_and(|(now, idle)| now >= idle + ADDED)
    }

    /// Returns whether there is something to ask, and nothing is known yet.
    pub fn is_untried(&self) -> bool {
        self.alive.is_none() && !self.targets.is_empty()
    }
}

/// Names a target that somebody else answers for, if none shows that it answers itself.
fn captive(meters: &[Meter]) -> Option<String> {
    let is_itself = |meter: &Meter| meter.is_proven && meter.foreign == 0 && !meter.is_silent();
    let mut verifiable = meters.iter().filter(|meter| meter.target.is_verifiable());
    if verifiable.any(is_itself) {
        return None;
    }
    let intercepted = (meters.iter()).find(|meter| meter.foreign >= FOREIGN_AFTER)?;
    let why = intercepted.why.as_deref().unwrap_or_default();
    Some(format!("{}: {why}", intercepted.target))
}

#[cfg(test)]
mod tests;
