//! What several prefixes and endpoint sets together say about one address: a leaf of the table.

use std::cmp::Reverse;

use breakout_common::table::Outcome;

use super::Rule;
use crate::policy::Action;

/// A rule with the length of one of its prefixes that covers the address in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Cover {
    /// Index into the ruleset's rules.
    pub(super) rule: usize,
    pub(super) prefix_len: u8,
}

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

/// Folds all rules that cover an address into sorted, disjoint ranges of keys. Where ranges overlap, the
/// rule of the higher precedence wins.
pub(super) fn fold(rules: &[Rule], covers: &[Cover]) -> Vec<Range> {
    let mut covers = covers.to_vec();
    covers.sort_by_key(|cover| Reverse(precedence(&rules[cover.rule], cover.prefix_len)));
    let mut ranges: Vec<Range> = Vec::new();
    for cover in covers {
        let rule = &rules[cover.rule];
        for ports in &rule.ports {
            let first = ports.transport.key(ports.first);
            let last = ports.transport.key(ports.last);
            fill_gaps(&mut ranges, first, last, outcome(rule));
        }
    }
    merge_adjacent(ranges)
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
