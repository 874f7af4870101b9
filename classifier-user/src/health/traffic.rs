//! Passive evidence about an egress and address family: whether flows are answered there, whatever probes say.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An answer that is no older says that the link is not dead now. Less than probes take to find it dead, so that a dead one
/// is left as soon as they have.
const FRESH: Duration = Duration::from_millis(400);
/// An answer that is no older says that established flows get on, however badly.
const RECENT: Duration = Duration::from_secs(5);
/// Traffic that has no answer for so long may have ended, or its link.
const CEASED: Duration = Duration::from_millis(800);
/// For how long after the last answers to a flow and to a probe packets of any kind may say that the link is full and not dead.
const PATIENCE: Duration = Duration::from_secs(4);
/// As many packets between two looks are more than the few that come by a link that leads nowhere.
const MANY: u64 = 10;

/// Answers to flows of an egress and address family, since its counters began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Answers {
    /// Packets that came back to clients.
    pub packets: u64,
    /// For how many flows there was a first one.
    pub flows: u64,
}

/// The answers, as they have come.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    answers: Option<Answers>,
    answered: Option<Instant>,
    received: Option<u64>,
    busy: Option<Instant>,
}

/// Conclusion from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// The link is alive now: flows are answered, or were just now and the link is full.
    pub is_alive: bool,
    /// Flows were answered lately.
    pub is_recent: bool,
}

impl Traffic {
    /// Takes in which answers were counted until now.
    pub fn note_answers(&mut self, now: Instant, answers: Answers) {
        if self
            .answers
            .is_some_and(|before| before.packets != answers.packets)
        {
            self.answered = Some(now);
        }
        self.answers = Some(answers);
    }

    /// Returns what was counted until the last look.
    pub fn answers(&self) -> Option<Answers> {
        self.answers
    }

    /// Takes in how many packets the interface has received until now, if it belongs to this egress alone.
    pub fn note_received(&mut self, now: Instant, packets: u64) {
        let more = |before: u64| packets.checked_sub(before).is_some_and(|new| new >= MANY);
        if self.received.is_some_and(more) {
            self.busy = Some(now);
        }
        self.received = Some(packets);
    }

    /// Tells whether flows were answered until just now, and are no longer.
    pub fn has_ceased(&self, now: Instant) -> bool {
        self.answered
            .map(|answered| now.saturating_duration_since(answered))
            .is_some_and(|since| (CEASED..=RECENT).contains(&since))
    }

    /// Returns what they tell. `silent` says since when no probe has been answered.
    pub fn life(&self, now: Instant, silent: Option<Instant>) -> Life {
        let within = |time: Option<Instant>, span| {
            time.is_some_and(|time| now.saturating_duration_since(time) <= span)
        };
        let is_full =
            within(self.busy, FRESH) && within(silent, PATIENCE) && within(self.answered, PATIENCE);
        Life {
            is_alive: within(self.answered, FRESH) || is_full,
            is_recent: within(self.answered, RECENT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn answers_say_for_a_short_time_that_the_link_is_alive() {
        let start = Instant::now();
        let mut traffic = Traffic::default();
        // What was counted before says nothing.
        let answers = |packets| Answers { packets, flows: 1 };
        traffic.note_answers(start, answers(70));
        assert_eq!(traffic.life(start, None), Life::default());
        traffic.note_answers(after(start, 250), answers(71));
        let life = |millis| traffic.life(after(start, millis), None);
        assert!(life(600).is_alive && life(600).is_recent);
        assert!(!life(700).is_alive && life(700).is_recent);
        assert!(!life(6000).is_recent);
        let ceased = |millis| traffic.has_ceased(after(start, millis));
        assert_eq!(
            [1000, 1100, 5200, 5300].map(ceased),
            [false, true, true, false]
        );
    }

    #[test]
    fn many_packets_give_a_full_link_some_seconds() {
        let start = Instant::now();
        let mut traffic = Traffic::default();
        traffic.note_answers(start, Answers::default());
        let answers = Answers {
            packets: 1,
            flows: 1,
        };
        traffic.note_answers(start, answers);
        for step in 0..40u64 {
            let now = after(start, 250 * step);
            traffic.note_received(now, 30 * step);
            let life = traffic.life(now, Some(start));
            assert_eq!(life.is_alive, step <= 16, "{step}");
        }
        // A few packets are no load.
        let mut traffic = Traffic::default();
        for step in 0..4 {
            let now = after(start, 250 * step);
            traffic.note_received(now, 3 * step);
            assert!(!traffic.life(now, Some(start)).is_alive);
        }
    }
}
