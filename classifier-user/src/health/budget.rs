//! Pace of probes where their traffic costs money.

use std::time::Duration;

use tokio::time::Instant;

use super::{Kind, Target};
use crate::config::HealthConfig;

/// The longest month.
const MONTH: Duration = Duration::from_secs(31 * 24 * 3600);
/// The share of a budget, in percent, that is for probes as they are planned. The rest is for those that are sent on suspicion, and
/// behind a lost one.
const PLANNED: u64 = 60;
/// For how long what is not spent is saved.
const SAVED: Duration = Duration::from_secs(24 * 3600);
/// The share of that which there is at first: links that come and go begin anew each time.
const AT_FIRST: f64 = 1.0 / 8.0;
/// The share of that which suspicions leave for what follows a lost probe.
const KEPT: f64 = 1.0 / 16.0;

/// Pace of probes to the targets of an egress and address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// Between two quick probes.
    pub(super) quick: Duration,
    /// Between two probes of each other target.
    pub(super) slow: Duration,
    /// True if that is longer than it would be without a budget.
    pub(super) is_held: bool,
}

/// Returns how often targets are probed so that it costs `budget` bytes a month at most.
pub(super) fn pace(health: &HealthConfig, targets: &[Target], budget: Option<u64>) -> Pace {
    let (quick, slow) = (health.interval.0, health.slow_interval.0);
    let Some(budget) = budget else {
        return Pace {
            quick,
            slow,
            is_held: false,
        };
    };
    let costs = |is_quick: bool| {
        let targets = targets.iter();
        targets
            .filter(move |target| target.kind.is_quick() == is_quick)
            .map(|target| cost(target.kind))
    };
    // Quick probes go to one target at a time, the others to each.
    let costs = (costs(true).max().unwrap_or(0), costs(false).sum::<u64>());
    let planned = budget / 100 * PLANNED;
    // Either kind has half, or all where there are none of the other.
    let share = if costs.0 > 0 && costs.1 > 0 { 2 } else { 1 };
    let interval = |cost: u64| {
        let count = planned / share / cost.max(1);
        MONTH / u32::try_from(count.max(1)).unwrap_or(u32::MAX)
    };
    let held = (quick.max(interval(costs.0)), slow.max(interval(costs.1)));
    Pace {
        quick: held.0,
        slow: held.1,
        is_held: held != (quick, slow),
    }
}

/// Allowance in bytes: the budget's share of the time since, less what was spent.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    bytes: f64,
    /// Bytes a second.
    rate: f64,
    at: Instant,
}

impl Allowance {
    /// Begins with some hours' bytes.
    pub(super) fn new(budget: u64, now: Instant) -> Self {
        let rate = budget as f64 / MONTH.as_secs_f64();
        Allowance {
            bytes: rate * SAVED.as_secs_f64() * AT_FIRST,
            rate,
            at: now,
        }
    }

    /// Takes a probe into account.
    pub(super) fn spend(&mut self, kind: Kind, now: Instant) {
        let gained = self.rate * now.saturating_duration_since(self.at).as_secs_f64();
        self.bytes = (self.bytes + gained).min(self.most()) - cost(kind) as f64;
        self.at = now;
    }

    /// Tells whether there was something left after the last probe for one that is not planned.
    pub(super) fn has_more(&self) -> bool {
        self.bytes > 0.0
    }

    /// Tells whether so much was left that a suspicion may be followed.
    pub(super) fn has_plenty(&self) -> bool {
        self.bytes > self.most() * KEPT
    }

    fn most(&self) -> f64 {
        self.rate * SAVED.as_secs_f64()
    }
}

/// The bytes that a probe and its answer have on an IPv6 link, headers included, as a relay of Teams and a front door of Exchange
/// Online answer, rounded up.
fn cost(kind: Kind) -> u64 {
    match kind {
        Kind::Icmp => 150,
        Kind::Stun | Kind::Turn => 300,
        Kind::Tcp => 600,
        Kind::Http => 1500,
        // The chain of certificates has most of it.
        Kind::Tls => 9000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The bytes of a month at a pace.
    fn volume(pace: Pace, quick: u64, slow: u64) -> f64 {
        let times = |interval: Duration| MONTH.as_secs_f64() / interval.as_secs_f64();
        times(pace.quick) * quick as f64 + times(pace.slow) * slow as f64
    }

    #[test]
    fn a_budget_is_kept_by_longer_intervals() {
        let health = HealthConfig::default();
        let all = targets(&[
            "turn:a.example",
            "icmp:192.0.2.1",
            "tls:b.example",
            "tcp:192.0.2.2:443",
        ]);
        let free = pace(&health, &all, None);
        assert_eq!(
            (free.quick, free.slow),
            (health.interval.0, health.slow_interval.0)
        );
        assert!(!free.is_held && volume(free, 300, 9600) > 4e9);
        for budget in [1_000_000, 100_000_000, 1_000_000_000] {
            let held = pace(&health, &all, Some(budget));
            let volume = volume(held, 300, 9600);
            assert!(
                held.is_held && volume <= 0.61 * budget as f64,
                "{held:?} {volume}"
            );
            assert!(volume >= 0.55 * budget as f64, "{held:?} {volume}");
        }
        assert_eq!(pace(&health, &all, Some(1 << 40)), free);
    }

    #[test]
    fn what_is_spent_is_not_there_before_it_is_earned_again() {
        let start = Instant::now();
        let budget = 31 * 24 * 3600 * 10;
        let mut allowance = Allowance::new(budget, start);
        // Ten bytes a second, for three hours and for half as long.
        for (more, sent) in [(false, 6), (true, 6)] {
            for _ in 0..sent {
                assert!(allowance.has_more() && allowance.has_plenty() != more);
                allowance.spend(Kind::Tls, start);
            }
        }
        assert!(!allowance.has_more());
        let later = |seconds| start + Duration::from_secs(seconds);
        allowance.spend(Kind::Icmp, later(10));
        assert!(!allowance.has_more());
        allowance.spend(Kind::Icmp, later(40));
        assert!(allowance.has_more());
    }

    #[test]
    fn one_kind_has_the_whole_budget() {
        let health = HealthConfig::default();
        let relay = pace(&health, &targets(&["turn:a.example"]), Some(100_000_000));
        let both = pace(
            &health,
            &targets(&["turn:a.example", "tls:b.example"]),
            Some(100_000_000),
        );
        assert!(relay.quick < both.quick && relay.quick > health.interval.0);
        assert!(pace(&health, &[], Some(0)).quick >= health.interval.0);
    }
}
