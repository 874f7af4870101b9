//! Port classes: the protocols and ports that a ruleset distinguishes.

use std::collections::HashMap;

use breakout_common::table::KEYS;

use super::Rule;
use crate::list::PortRange;

/// The classes of keys: two keys have the same class if the same rules list both, and the same choices do.
pub(super) struct Classes {
    /// The first key of each run of keys with one class, and the class.
    runs: Vec<(u32, u32)>,
    /// The classes that each list of ports has, in ascending order: those of the rules, then those of choices.
    by_list: Vec<Vec<u32>>,
    /// The list of each choice that has one.
    of_choices: HashMap<(u32, usize), usize>,
    count: usize,
}

impl Classes {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut lists: Vec<&[PortRange]> = rules.iter().map(|rule| rule.ports.as_slice()).collect();
        let mut of_choices = HashMap::new();
        for (rule, index) in rules.iter().zip(0u32..) {
            for (place, choice) in rule.choices.iter().enumerate() {
                if let Some(ports) = &choice.ports {
                    of_choices.insert((index, place), lists.len());
                    lists.push(ports);
                }
            }
        }
        let ranges = |list: &&[PortRange]| -> Vec<(u32, u32)> {
            let ranges = list.iter().map(|ports| {
                let key = |port| ports.transport.key(port);
                (key(ports.first), key(ports.last))
            });
            ranges.collect()
        };
        let mut starts = vec![0];
        for (first, last) in lists.iter().flat_map(ranges) {
            starts.extend([first, last + 1]);
        }
        starts.retain(|start| *start < KEYS);
        starts.sort_unstable();
        starts.dedup();
        let mut listed_by: Vec<Vec<u32>> = vec![Vec::new(); starts.len()];
        for (index, list) in (0u32..).zip(&lists) {
            for (first, last) in ranges(list) {
                let from = starts.partition_point(|start| *start < first);
                let to = starts.partition_point(|start| *start <= last);
                for listed_by in &mut listed_by[from..to] {
                    if listed_by.last() != Some(&index) {
                        listed_by.push(index);
                    }
                }
            }
        }
        let mut classes = Classes {
            runs: Vec::with_capacity(starts.len()),
            by_list: vec![Vec::new(); lists.len()],
            of_choices,
            count: 0,
        };
        let mut numbers: HashMap<Vec<u32>, u32> = HashMap::new();
        for (start, listed_by) in starts.into_iter().zip(listed_by) {
            let next = u32::try_from(numbers.len()).expect("fewer classes than keys");
            let class = *numbers.entry(listed_by).or_insert_with_key(|listed_by| {
                for list in listed_by {
                    classes.by_list[*list as usize].push(next);
                }
                next
            });
            classes.runs.push((start, class));
        }
        classes.count = numbers.len();
        classes
    }

    /// Returns how many classes there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The classes that a rule lists.
    pub(super) fn of_rule(&self, rule: u32) -> &[u32] {
        &self.by_list[rule as usize]
    }

    /// Returns whether a rule's choice is about a class.
    pub(super) fn has_choice(&self, rule: u32, place: usize, class: u32) -> bool {
        let list = self.of_choices.get(&(rule, place));
        list.is_none_or(|list| self.by_list[*list].binary_search(&class).is_ok())
    }

    /// The class of each key, in the order of keys.
    pub(super) fn of_keys(&self) -> impl Iterator<Item = u32> + '_ {
        let ends = self.runs.iter().skip(1).map(|(start, _)| *start);
        let runs = self.runs.iter().zip(ends.chain([KEYS]));
        runs.flat_map(|((start, class), end)| (*start..end).map(|_| *class))
    }
}
