//! Health monitor: which classes of traffic may use an egress, by limits with hysteresis and hold-down.

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Answers, Life, Measure};
use crate::config::{Class, HealthConfig};
use crate::timestamp::Timestamp;

/// State of an egress.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Everything may use it.
    Up,
    /// Media must not, everything else may; or the other way round; or only those flows may that are there and answered.
    Degraded,
    /// Nothing may use it.
    Down,
}

impl State {
    /// Its name in texts and metrics.
    pub fn name(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Degraded => "degraded",
            State::Down => "down",
        }
    }
}

/// State of an egress for an address family, with the reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Standing {
    /// All in one.
    pub state: State,
    /// True if standard traffic may use it.
    pub standard: bool,
    /// True if media may use it.
    pub media: bool,
    /// True if it is full: answers take much longer than they did while less was sent, and flows are answered all the same.
    #[serde(default)]
    pub congested: bool,
    /// 0 for a dead one, 10 for one without loss and delay.
    pub score: f64,
    /// Since when the state is as it is.
    pub since: Timestamp,
    /// Reason for a state other than `up`, or for having become `up` only now.
    pub why: Option<String>,
    /// True if somebody else answers in Microsoft's place there, such as a captive portal.
    #[serde(default)]
    pub captive: bool,
    /// Measurement by probes; none without probes.
    pub measure: Option<Measure>,
    /// The answers to flows there; none if flows are not remembered.
    #[serde(default)]
    pub answers: Option<Answers>,
}

/// State of one class.
#[derive(Clone, Debug, Default)]
struct Seat {
    works: bool,
    /// True if flows that have begun there may stay, though no new ones shall come.
    keeps: bool,
    /// True if it has ever been judged. A new one that is good works at once.
    is_judged: bool,
    /// Since when it has been good without a break.
    good_since: Option<Instant>,
    why: Option<String>,
}

/// A verdict that outlives its judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// True if standard traffic may use it.
    pub standard: bool,
    /// True if media may use it.
    pub media: bool,
    /// Since when that is so.
    pub since: Timestamp,
}

/// Judges one egress for one address family.
#[derive(Clone, Debug)]
pub struct Judge {
    is_first: bool,
    seats: [Seat; 2],
    state: State,
    since: Timestamp,
    score: f64,
    is_congested: bool,
    measure: Option<Measure>,
}

const CLASSES: [Class; 2] = [Class::Standard, Class::Media];

impl Default for Judge {
    fn default() -> Self {
        Judge {
            is_first: true,
            seats: [Seat::default(), Seat::default()],
            state: State::Down,
            since: Timestamp::default(),
            score: 0.0,
            is_congested: false,
            measure: None,
        }
    }
}

impl Judge {
    /// A judge who goes on from an earlier one's verdict.
    pub fn resume(verdict: Verdict) -> Self {
        let seat = |works| Seat {
            works,
            is_judged: true,
            ..Seat::default()
        };
        let seats = [seat(verdict.standard), seat(verdict.media)];
        Judge {
            is_first: false,
            state: state_of(&seats),
            seats,
            since: verdict.since,
            ..Judge::default()
        }
    }

    /// The verdict.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            standard: self.seats[0].works,
            media: self.seats[1].works,
            since: self.since,
        }
    }

    /// Moves along since when its state is as it is, after the clock was set.
    pub fn move_by(&mut self, step: i64) {
        self.since = self.since.moved_by(step);
    }

    /// Looks at what is known now. `problem` is what is wrong with the link itself; `life` is what the traffic tells, which overrules
    /// the probes. Returns the state before, if there is another one now.
    ///
    /// Established flows of standard traffic stay on a link that is bad, as long as they are answered: to move them is to end
    /// them. Media moves, which lives on.
    ///
    /// A new egress works as soon as it is known to be good; one that has been bad only after the hold-down.
    pub fn look(
        &mut self,
        now: Instant,
        limits: &HealthConfig,
        problem: Option<&str>,
        measure: Option<&Measure>,
        life: Life,
    ) -> Option<State> {
        let before = self.state;
        self.is_congested = problem.is_none()
            && measure.is_some_and(|measure| life.is_recent && measure.is_slowed());
        for (seat, class) in self.seats.iter_mut().zip(CLASSES) {
            let fault = match (problem, measure) {
                (Some(problem), _) => Some(problem.to_owned()),
                (None, Some(measure)) => fault(measure, limits, class, seat.works, life),
                (None, None) => None,
            };
            match fault {
                Some(fault) => {
                    let is_untried = problem.is_none() && measure.is_some_and(Measure::is_untried);
                    let is_silent = measure.is_some_and(|measure| measure.alive == Some(false));
                    let is_answered = if is_silent {
                        life.is_alive
                    } else {
                        life.is_recent
                    };
                    let keeps = problem.is_none() && class == Class::Standard && is_answered;
                    let congested = if self.is_congested { "congested: " } else { "" };
                    *seat = Seat {
                        keeps: keeps && (seat.works || seat.keeps),
                        why: Some(format!("{congested}{fault}")),
                        is_judged: seat.is_judged || !is_untried,
                        ..Seat::default()
                    };
                }
                None if seat.works => seat.why = None,
                None => {
                    let since = *seat.good_since.get_or_insert(now);
                    seat.works = !seat.is_judged || now.duration_since(since) >= limits.hold_down.0;
                    seat.is_judged = true;
                    seat.keeps &= !seat.works;
                    let hold = format!(
                        "good again, used after {} without a fault",
                        String::from(limits.hold_down)
                    );
                    seat.why = (!seat.works).then_some(hold);
                }
            }
        }
        self.score = match problem {
            Some(_) => 0.0,
            None => measure.map_or(10.0, |measure| score(measure, limits)),
        };
        self.measure = measure.cloned();
        self.state = state_of(&self.seats);
        let changed = self.is_first || self.state != before;
        self.is_first = false;
        if changed {
            self.since = Timestamp::now();
        }
        changed.then_some(before)
    }

    /// Returns whether a class may use it.
    pub fn works(&self, class: Class) -> bool {
        self.seat(class).works
    }

    /// Returns whether established flows of a class may stay there.
    pub fn keeps(&self, class: Class) -> bool {
        let seat = self.seat(class);
        seat.works || seat.keeps
    }

    fn seat(&self, class: Class) -> &Seat {
        let [standard, media] = &self.seats;
        match class {
            Class::Standard => standard,
            Class::Media => media,
        }
    }

    /// Returns how it stands.
    pub fn standing(&self) -> Standing {
        let mut why = self.seats.iter().filter_map(|seat| seat.why.clone());
        Standing {
            state: self.state,
            standard: self.seats[0].works,
            media: self.seats[1].works,
            congested: self.is_congested,
            captive: (self.measure.as_ref()).is_some_and(|measure| measure.captive.is_some()),
            score: (self.score * 10.0).round() / 10.0,
            since: self.since,
            why: why.next(),
            measure: self.measure.clone(),
            answers: None,
        }
    }
}

fn state_of(seats: &[Seat; 2]) -> State {
    match (seats[0].works, seats[1].works) {
        (true, true) => State::Up,
        (false, false) if !seats[0].keeps => State::Down,
        _ => State::Degraded,
    }
}

/// Returns what makes an egress too bad for a class, if anything.
fn fault(
    measure: &Measure,
    limits: &HealthConfig,
    class: Class,
    works: bool,
    life: Life,
) -> Option<String> {
    let (loss, latency) = match class {
        Class::Media => (limits.media_loss, limits.media_latency),
        Class::Standard => (limits.loss, limits.latency),
    };
    // To come back it must be twice as good as it had to be to stay.
    let scale = if works { 1.0 } else { 0.5 };
    // Where flows are answered, it is the probes that are not.
    let is_proved = works && life.is_alive && class == Class::Standard && measure.captive.is_none();
    let captive = measure
        .captive
        .as_ref()
        .map(|who| format!("captive: {who}"));
    if measure.alive == Some(false) && is_proved {
        return None;
    }
    if let (Some(false), Some(captive)) = (measure.alive, &captive) {
        return Some(captive.clone());
    }
    if measure.alive == Some(false) {
        let errors = measure.targets.iter().find_map(|target| {
            let error = target.last_error.as_ref()?;
            Some(format!(" ({}: {error})", target.target))
        });
        return Some(format!(
            "no probe is answered{}",
            errors.unwrap_or_default()
        ));
    }
    // A link that was bad is not good because nobody knows.
    if !works && measure.is_untried() {
        return Some("no probe has been answered yet".to_owned());
    }
    if class == Class::Media && measure.relays == Some(false) {
        return Some("no TURN, STUN or ICMP probe is answered".to_owned());
    }
    if measure.loss >= loss.fraction() * scale && measure.loss > 0.0 {
        return Some(format!(
            "{:.1} % of the probes are lost",
            measure.loss * 100.0
        ));
    }
    let limit = latency.0.as_secs_f64() * 1000.0 * scale;
    if let Some(time) = measure.latency_ms.filter(|time| *time >= limit) {
        return Some(format!("answers take {time:.0} ms"));
    }
    if class == Class::Standard && measure.doors == Some(false) && !is_proved {
        return captive.or(Some("no front door answers over TCP".to_owned()));
    }
    None
}

/// From 10 down: by loss to nothing at the limit for all traffic, by latency to half of it.
fn score(measure: &Measure, limits: &HealthConfig) -> f64 {
    if measure.alive == Some(false) {
        return 0.0;
    }
    let limit = limits.latency.0.as_secs_f64() * 1000.0;
    let slow = measure
        .latency_ms
        .map_or(0.0, |time| (time / limit).min(1.0));
    let lost = (measure.loss / limits.loss.fraction()).min(1.0);
    10.0 * (1.0 - lost) * (1.0 - slow / 2.0)
}

#[cfg(test)]
mod tests;
