//! Paths that are broken ahead: link and probes are well, but nothing that clients begin there is answered.
//! Rules that drop forwarded packets, missing translation and filters upstream look like that, and no probe of the gateway's own
//! sees them.
//!
//! The rule: [`PATIENCE`] after they were seen first, flows to at least two destinations are not answered, one of them a TCP
//! connection that has come no further than its SYN; they are of at least two clients, or [`FROM_ONE`] of one, or they are not
//! answered after [`FEW`] either; and no flow of the path at all was answered for the first time meanwhile. A destination that is
//! down is one destination. A client that scans breaks nothing while anybody else's flow is answered; where nobody else begins one,
//! its own packets take the next choice until a flow tries the path again.
//!
//! What was found broken gets a small share of new flows again after a pause, and is whole with the first answer to one, or if nobody
//! tries it for a minute.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::timestamp::Timestamp;

/// Time that an answer may take. A client's second SYN comes after one second and its third after three (RFC 6298): that one
/// shall find the other way.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time that it may take where there are only two or three flows of one client.
const FEW: Duration = Duration::from_secs(6);
/// Number of unanswered flows of a single client that is enough.
const FROM_ONE: usize = 4;
/// For how long nobody may try it until it is taken for whole, as nobody knows: where what is preferred works, nobody tries it.
const UNTRIED: Duration = Duration::from_secs(60);
/// After this time the pauses before are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// The first pause, and the longest; each is twice the one before.
const PAUSES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];

/// A flow that nobody has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    /// Its client.
    pub client: (u64, u64),
    /// Its destination.
    pub destination: (u64, u64),
    /// True if it is a TCP connection that has not come beyond its SYN.
    pub opens_tcp: bool,
}

/// Evidence about one path. `F` is how its caller finds a flow again.
#[derive(Clone, Debug)]
pub struct Ahead<F> {
    state: State,
    watch: Option<Watch<F>>,
    /// For how many flows there has been an answer.
    answered: u64,
    /// Time at which it was last found whole, and the pause before that.
    healed: Option<(Instant, Duration)>,
    /// Since when it is as it is.
    since: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    Broken {
        until: Instant,
        pause: Duration,
    },
    /// A share of new flows tries it.
    Tried {
        since: Instant,
        pause: Duration,
    },
}

#[derive(Clone, Debug)]
struct Watch<F> {
    since: Instant,
    flows: Vec<(F, Silent)>,
}

impl<F> Default for Ahead<F> {
    fn default() -> Self {
        Ahead {
            state: State::Whole,
            watch: None,
            answered: 0,
            healed: None,
            since: Timestamp::default(),
        }
    }
}

impl<F> Ahead<F> {
    /// Returns whether it is not to be used, but for trying it.
    pub fn is_broken(&self) -> bool {
        self.state != State::Whole
    }

    /// Returns whether a share of new flows is to try it.
    pub fn is_tried(&self) -> bool {
        matches!(self.state, State::Tried { .. })
    }

    /// Since when it is broken.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Takes in for how many flows of the path there has been an answer until now. Returns whether it was the first one for any of
    /// them.
    pub fn note_answered(&mut self, now: Instant, answered: u64) -> bool {
        let is_news = answered != self.answered;
        self.answered = answered;
        if is_news {
            self.answer(now);
        }
        is_news
    }

    /// A flow was answered.
    pub fn answer(&mut self, now: Instant) {
        self.watch = None;
        if let State::Tried { pause, .. } = self.state {
            self.healed = Some((now, pause));
            self.turn(State::Whole);
        }
    }

    /// Forgets which flows were watched: they cannot be found again.
    pub fn unwatch(&mut self) {
        self.watch = None;
    }

    /// The link itself, or its probes, are not well, which says all there is to say.
    pub fn give_up(&mut self) {
        self.watch = None;
        self.state = State::Whole;
    }

    /// Looks whether a pause is over, or those who were watched are still not answered. `is_answered` finds a flow again, if it is
    /// still there.
    pub fn look(&mut self, now: Instant, is_answered: impl Fn(&F) -> Option<bool>) {
        if let State::Broken { until, pause } = self.state
            && now >= until
        {
            self.state = State::Tried { since: now, pause };
        }
        if let State::Tried { since, .. } = self.state
            && now.saturating_duration_since(since) >= UNTRIED
            && self.watch.is_none()
        {
            self.turn(State::Whole);
        }
        let is_due = |watch: &Watch<F>| now.saturating_duration_since(watch.since) >= PATIENCE;
        let Some(watch) = self.watch.take_if(|watch| is_due(watch)) else {
            return;
        };
        let mut silent = Vec::new();
        for (flow, facts) in &watch.flows {
            match is_answered(flow) {
                Some(false) => silent.push(*facts),
                // By its own packets, where answers come by ways that nobody sees here.
                Some(true) => return self.answer(now),
                None => {}
            }
        }
        match self.state {
            State::Whole if says_broken(&silent) => {
                let age = now.saturating_duration_since(watch.since);
                if is_few(&silent) && age < FEW {
                    self.watch = Some(watch);
                    return;
                }
                // What heals and breaks again and again is not tried as often.
                let pause = match self.healed {
                    Some((at, pause)) if now.saturating_duration_since(at) < FORGOTTEN => {
                        longer(pause)
                    }
                    _ => PAUSES[0],
                };
                let until = now + pause;
                self.turn(State::Broken { until, pause });
            }
            // One connection that tries is enough to go on as before.
            State::Tried { pause, .. } if silent.iter().any(|flow| flow.opens_tcp) => {
                let pause = longer(pause);
                let until = now + pause;
                self.state = State::Broken { until, pause };
            }
            _ => {}
        }
    }

    /// Returns whether flows that begin now are to be watched.
    pub fn wants_flows(&self) -> bool {
        self.watch.is_none() && !matches!(self.state, State::Broken { .. })
    }

    /// Watches flows that have begun and are not answered yet.
    pub fn watch(&mut self, now: Instant, flows: Vec<(F, Silent)>) {
        if !flows.is_empty() {
            self.watch = Some(Watch { since: now, flows });
        }
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.since = Timestamp::now();
    }
}

/// The pause after another one.
fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSES[1])
}

/// Returns whether they are so few, and of one client, that it may have its own reasons.
fn is_few(silent: &[Silent]) -> bool {
    let clients: BTreeSet<_> = silent.iter().map(|flow| flow.client).collect();
    clients.len() < 2 && silent.len() < FROM_ONE
}

fn says_broken(silent: &[Silent]) -> bool {
    let destinations: BTreeSet<_> = silent.iter().map(|flow| flow.destination).collect();
    destinations.len() >= 2 && silent.iter().any(|flow| flow.opens_tcp)
}

#[cfg(test)]
mod tests;
