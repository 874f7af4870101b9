//! Chains of conditions as they are folded into leaves, and the source groups that they ask about.

use std::collections::HashMap;

use breakout_common::condition::{
    Condition, ENTRY_WORDS, INTERVAL_WORDS, MAX_ENTRIES, MAX_INTERVALS,
};
use breakout_common::question::address_to_words;
use breakout_common::table::{CHAIN, SOURCES};
use ipnet::IpNet;

use super::compile::{TooLarge, to_word};
use super::intervals::{Address, Interval, source_intervals};

/// One chain.
pub(super) type Chain = Vec<[u32; ENTRY_WORDS as usize]>;

/// All chains of a table, each content once.
#[derive(Default)]
pub(super) struct Chains {
    numbers: HashMap<Chain, u32>,
    in_order: Vec<Chain>,
    longest: usize,
}

impl Chains {
    /// Returns what stands for a chain in a leaf until its place is known.
    pub(super) fn word(&mut self, chain: Chain) -> u32 {
        self.longest = self.longest.max(chain.len());
        let next = to_word(self.in_order.len());
        let number = *self.numbers.entry(chain.clone()).or_insert(next);
        if number == next {
            self.in_order.push(chain);
        }
        CHAIN | number
    }

    /// Writes the chains, and their places into the leaves that start at `first_leaf`.
    pub(super) fn write(self, first_leaf: usize, words: &mut Vec<u32>) -> Result<(), TooLarge> {
        if self.longest > MAX_ENTRIES as usize {
            return Err(TooLarge::Conditions {
                needed: self.longest,
            });
        }
        let end_of_leaves = words.len();
        let mut places = Vec::with_capacity(self.in_order.len());
        for chain in &self.in_order {
            places.push(to_word(words.len()));
            words.extend(chain.as_flattened());
        }
        for word in &mut words[first_leaf..end_of_leaves] {
            if *word & CHAIN != 0 {
                *word = CHAIN | places[(*word & !CHAIN) as usize];
            }
        }
        Ok(())
    }
}

/// Writes the source intervals of both families.
pub(super) fn write_sources(groups: &[Vec<IpNet>], words: &mut Vec<u32>) -> Result<(), TooLarge> {
    let v4 = source_intervals::<u32>(groups);
    let v6 = source_intervals::<u128>(groups);
    write_intervals(SOURCES, &v4, words)?;
    write_intervals(SOURCES + 2, &v6, words)
}

fn write_intervals<A: Address>(
    header: u32,
    intervals: &[Interval<A, u32>],
    words: &mut Vec<u32>,
) -> Result<(), TooLarge> {
    if intervals.len() > MAX_INTERVALS as usize {
        return Err(TooLarge::Sources {
            needed: intervals.len(),
        });
    }
    words[header as usize] = to_word(words.len());
    words[header as usize + 1] = to_word(intervals.len());
    for interval in intervals {
        words.extend(address_to_words(interval.start.to_ip().into()));
        words.push(interval.value);
        words.extend([0; INTERVAL_WORDS as usize - 5]);
    }
    Ok(())
}

/// The entry for everyone.
pub(super) fn last_entry(outcome: u32) -> [u32; ENTRY_WORDS as usize] {
    Condition::ANY.to_entry(outcome)
}
