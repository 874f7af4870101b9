//! Model of the display: the last answer, and rates from the last two.

use std::time::Instant;

use crossterm::event::KeyCode;

use super::Answer;
use crate::datapath::Count;

/// The state of the display.
pub(super) struct Model {
    pub(super) colours: bool,
    pub(super) answer: Option<Answer>,
    /// Reason why the controller does not answer, if so.
    pub(super) problem: Option<String>,
    pub(super) reasons: Vec<Rate>,
    pub(super) sets: Vec<Rate>,
    /// Bits a second rather than packets.
    pub(super) in_bits: bool,
    /// Events that are newer than those shown.
    pub(super) scrolled: usize,
    paused: bool,
    asked: Option<Instant>,
}

/// Rate of packets and bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) name: String,
    pub(super) steers: bool,
    pub(super) packets_per_second: f64,
    pub(super) bits_per_second: f64,
    /// Packets in all.
    pub(super) packets: u64,
}

impl Model {
    pub(super) fn new(colours: bool) -> Self {
        Model {
            colours,
            answer: None,
            problem: None,
            reasons: Vec::new(),
            sets: Vec::new(),
            in_bits: false,
            scrolled: 0,
            paused: false,
            asked: None,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Takes a new answer.
    pub(super) fn take(&mut self, answer: Answer) {
        let now = Instant::now();
        let seconds = self
            .asked
            .map_or(0.0, |asked| now.duration_since(asked).as_secs_f64());
        self.asked = Some(now);
        self.take_after(answer, seconds);
    }

    /// Takes an answer that was given so many seconds after the one before.
    pub(super) fn take_after(&mut self, answer: Answer, seconds: f64) {
        let before = self.answer.take();
        let rate = |name: String, steers: bool, now: Count, before: Option<Count>| {
            // Counters start afresh where a controller did.
            let before = before.filter(|before| before.packets <= now.packets && seconds > 0.0);
            let grown = before.map_or(Count::default(), |before| now - before);
            let per_second = |count: u64| {
                if seconds > 0.0 {
                    count as f64 / seconds
                } else {
                    0.0
                }
            };
            Rate {
                name,
                steers,
                packets_per_second: per_second(grown.packets),
                bits_per_second: per_second(grown.bytes.saturating_mul(8)),
                packets: now.packets,
            }
        };
        let reasons = answer.stats.reasons.iter().map(|reason| {
            let earlier = before.as_ref().and_then(|before| {
                let mut all = before.stats.reasons.iter();
                all.find(|other| other.reason == reason.reason)
            });
            rate(
                reason.reason.clone(),
                reason.verdict == "steer",
                reason.count,
                earlier.map(|earlier| earlier.count),
            )
        });
        self.reasons = ranked(reasons.collect());
        let sets = answer.stats.endpoint_sets.iter().map(|set| {
            let earlier = before.as_ref().and_then(|before| {
                let mut all = before.stats.endpoint_sets.iter();
                all.find(|other| other.set == set.set)
            });
            let id = set.set.id.map_or(String::new(), |id| format!("{id} "));
            rate(
                format!("{id}{} {}", set.set.service_area, set.set.category),
                set.egress.is_some(),
                set.count,
                earlier.map(|earlier| earlier.count),
            )
        });
        self.sets = ranked(sets.collect());
        self.answer = Some(answer);
        self.problem = None;
    }

    /// The controller did not answer.
    pub(super) fn fail(&mut self, problem: String) {
        self.problem = Some(problem);
        self.asked = None;
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: KeyCode) {
        let events = self.answer.as_ref().map_or(0, |answer| answer.events.len());
        match key {
            KeyCode::Char('b') => self.in_bits = !self.in_bits,
            KeyCode::Char('p') | KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Up | KeyCode::Char('k') => {
                self.scrolled = (self.scrolled + 1).min(events.saturating_sub(1));
            }
            KeyCode::Down | KeyCode::Char('j') => self.scrolled = self.scrolled.saturating_sub(1),
            _ => {}
        }
    }
}

/// Those that occur, with what flows now first.
fn ranked(mut rates: Vec<Rate>) -> Vec<Rate> {
    rates.retain(|rate| rate.packets > 0);
    rates.sort_by(|a, b| {
        let by_rate = b.packets_per_second.total_cmp(&a.packets_per_second);
        by_rate.then(b.packets.cmp(&a.packets))
    });
    rates
}
