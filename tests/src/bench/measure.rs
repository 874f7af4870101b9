//! Honest measuring: several subjects in one run, interleaved, medians of several rounds.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The result of several rounds for one subject: the median, and the limits of the middle half.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// The spread of some samples, of which there must be one.
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Spread {
            median: samples[samples.len() / 2],
            low: samples[samples.len() / 4],
            high: samples[samples.len() - 1 - samples.len() / 4],
        }
    }
}

impl From<f64> for Spread {
    /// A value that was measured once, or that is exact.
    fn from(value: f64) -> Self {
        Spread {
            median: value,
            low: value,
            high: value,
        }
    }
}

/// Samples of several subjects, by subject and round.
pub(crate) struct Samples(Vec<Vec<f64>>);

impl Samples {
    /// One subject's spread.
    pub(crate) fn spread(&self, subject: usize) -> Spread {
        Spread::of(self.0[subject].clone())
    }

    /// The spread of what a function makes of the samples of one round, given by subject.
    pub(crate) fn combined(&self, of_round: impl Fn(&[f64]) -> f64) -> Spread {
        let rounds = self.0[0].len();
        let in_round =
            |round: usize| -> Vec<f64> { self.0.iter().map(|samples| samples[round]).collect() };
        Spread::of(
            (0..rounds)
                .map(|round| of_round(&in_round(round)))
                .collect(),
        )
    }
}

/// Measures each of `subjects` in every round, forward in one and backward in the next (A B B A), so that a machine that
/// grows slower or faster does so for all of them.
pub(crate) fn interleaved(
    rounds: usize,
    subjects: usize,
    mut measure: impl FnMut(usize) -> Result<f64>,
) -> Result<Samples> {
    let mut samples = vec![Vec::with_capacity(rounds); subjects];
    for round in 0..rounds {
        for place in 0..subjects {
            let subject = if round % 2 == 0 {
                place
            } else {
                subjects - 1 - place
            };
            samples[subject].push(measure(subject)?);
        }
    }
    Ok(Samples(samples))
}
