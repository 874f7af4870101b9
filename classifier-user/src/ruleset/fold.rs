//! What several prefixes and endpoint sets together say about one address: a leaf of the table.

use std::cmp::Reverse;
use std::collections::HashMap;

use breakout_common::table::Outcome;

use super::Rule;
use crate::policy::Action;

/// Part of a leaf: a range of keys (protocol and port) with one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) outcome: Outcome,
}

/// The order of precedence: higher category, then longer prefix, then lower id.
pub(super) fn precedence(rule: &Rule, prefix_len: u8) -> impl Ord + use<> {
    (rule.category.clone(), prefix_len, Reverse(rule.key))
}

/// What the rule does, as the table says it.
pub(super) fn outcome(rule: &Rule) -> Outcome {
    Outcome {
        set: rule.slot,
        egress: match rule.action {
            Action::Pass => None,
            Action::Steer(egress) => Some(egress),
        },
    }
}

/// The rules that cover an address, as a number. 0 is none.
pub(super) type Cover = u32;

/// All combinations of covering rules that occur in a ruleset, each by its order of precedence.
pub(super) struct Covers<'a> {
    rules: &'a [Rule],
    /// Indices of rules, the one that wins first.
    orders: Vec<Vec<u32>>,
    numbers: HashMap<Vec<u32>, Cover>,
    within: HashMap<(Cover, u32), Cover>,
}

impl<'a> Covers<'a> {
    pub(super) fn new(rules: &'a [Rule]) -> Self {
        Covers {
            rules,
            orders: vec![Vec::new()],
            numbers: HashMap::from([(Vec::new(), 0)]),
            within: HashMap::new(),
        }
    }

    /// What covers an address in one of the rule's prefixes that lies within prefixes with `outer`.
    ///
    /// Of rules that have the very same prefix, the one with the higher id must be given first.
    pub(super) fn add(&mut self, outer: Cover, rule: u32) -> Cover {
        if let Some(cover) = self.within.get(&(outer, rule)) {
            return *cover;
        }
        let mut order = self.orders[outer as usize].clone();
        order.retain(|other| *other != rule);
        // Its prefix is the longest so far, so it is the first of its category.
        let category = |rule: u32| &self.rules[rule as usize].category;
        let at = order.partition_point(|other| category(*other) > category(rule));
        order.insert(at, rule);
        let next = Cover::try_from(self.orders.len()).expect("fewer covers than prefixes");
        let cover = *self.numbers.entry(order.clone()).or_insert(next);
        if cover == next {
            self.orders.push(order);
        }
        self.within.insert((outer, rule), cover);
        cover
    }

    /// Folds the rules of a cover into sorted, disjoint ranges of keys.
    pub(super) fn fold(&self, cover: Cover) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for rule in &self.orders[cover as usize] {
            let rule = &self.rules[*rule as usize];
            for ports in &rule.ports {
                let first = ports.transport.key(ports.first);
                let last = ports.transport.key(ports.last);
                fill_gaps(&mut ranges, first, last, outcome(rule));
            }
        }
        merge_adjacent(ranges)
    }

    /// How many there are, with the empty one.
    pub(super) fn len(&self) -> usize {
        self.orders.len()
    }
}

/// Adds those parts of `first..=last` that no range covers yet.
fn fill_gaps(ranges: &mut Vec<Range>, first: u32, last: u32, outcome: Outcome) {
    let mut gaps = Vec::new();
    let mut next = first;
    for taken in ranges.iter().filter(|range| range.last >= first) {
        if taken.first > last {
            break;
        }
        if taken.first > next {
            gaps.push((next, taken.first - 1));
        }
        next = taken.last + 1;
    }
    if next <= last {
        gaps.push((next, last));
    }
    for (first, last) in gaps {
        let at = ranges.partition_point(|range| range.first < first);
        ranges.insert(
            at,
            Range {
                first,
                last,
                outcome,
            },
        );
    }
}

fn merge_adjacent(ranges: Vec<Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(previous)
                if previous.last + 1 == range.first && previous.outcome == range.outcome =>
            {
                previous.last = range.last;
            }
            _ => merged.push(range),
        }
    }
    merged
}
