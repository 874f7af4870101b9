//! `--check`: whether this version is slower than the one that the last run was of.

use std::fmt;

use crate::measure::Spread;
use crate::report::{Goal, number};

/// The parts that are measured for it: those whose ratios a change of the data path moves.
pub(crate) const PARTS: [&str; 3] = ["forward", "flows", "passing"];

/// The share of a ratio by which it may change from run to run beyond the spread of either.
const DRIFT: f64 = 0.03;

/// A ratio that has become worse by more than its noise.
#[derive(Debug)]
pub(crate) struct Worse<'a> {
    what: &'a str,
    before: f64,
    now: f64,
    noise: f64,
}

impl fmt::Display for Worse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} before, {} now; up to {} would be noise",
            self.what,
            number(self.before),
            number(self.now),
            number(self.noise)
        )
    }
}

/// Pairs what both runs have measured, before and now. Only ratios can be compared.
pub(crate) fn pairs<'a>(before: &'a [Goal], now: &'a [Goal]) -> Vec<(&'a Goal, &'a Goal)> {
    let ratios = now.iter().filter(|goal| goal.unit.is_empty());
    ratios
        .filter_map(|goal| Some((before.iter().find(|old| old.what == goal.what)?, goal)))
        .collect()
}

/// The ratios that only this run has measured.
pub(crate) fn unpaired<'a>(before: &[Goal], now: &'a [Goal]) -> Vec<&'a str> {
    let ratios = now.iter().filter(|goal| goal.unit.is_empty());
    let new = ratios.filter(|goal| before.iter().all(|old| old.what != goal.what));
    new.map(|goal| goal.what.as_str()).collect()
}

/// Those of the pairs that are worse by more than their noise: half the spread of each run, and what runs drift apart by.
pub(crate) fn worse<'a>(pairs: &[(&'a Goal, &'a Goal)]) -> Vec<Worse<'a>> {
    let half = |spread: &Spread| (spread.high - spread.low) / 2.0;
    let found = pairs.iter().filter_map(|(before, now)| {
        let noise = half(&before.value) + half(&now.value) + before.value.median.abs() * DRIFT;
        let grown = now.value.median - before.value.median;
        let loss = if now.at_most { grown } else { -grown };
        (loss > noise).then_some(Worse {
            what: &now.what,
            before: before.value.median,
            now: now.value.median,
            noise,
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64) -> Spread {
        Spread {
            median,
            low: median - 0.02,
            high: median + 0.02,
        }
    }

    fn found(before: Goal, now: Goal) -> usize {
        worse(&pairs(&[before], &[now])).len()
    }

    #[test]
    fn only_what_is_worse_by_more_than_its_noise_is_named() {
        let rate = |median| Goal::at_least("rate".to_owned(), spread(median), 0.97);
        let cost = |median| Goal::at_most("cost".to_owned(), spread(median), 0.2);
        assert_eq!(found(rate(0.95), rate(0.94)), 0);
        assert_eq!(found(rate(0.95), rate(0.80)), 1);
        assert_eq!(found(rate(0.80), rate(0.95)), 0);
        assert_eq!(found(cost(0.20), cost(0.35)), 1);
        assert_eq!(found(cost(0.35), cost(0.20)), 0);
        assert_eq!(found(rate(0.95), cost(0.2)), 0);
        // Nanoseconds are those of a machine at a time.
        assert_eq!(found(cost(8.0).in_unit("ns"), cost(90.0).in_unit("ns")), 0);
    }
}
