//! What several prefixes and endpoint sets together say about one address: a leaf of the table.

use std::cmp::Reverse;
use std::collections::HashMap;

use breakout_common::table::{NO_PORT, Outcome};

use super::Rule;
use super::classes::Classes;
use crate::policy::Action;

/// The order of precedence: higher category, then longer prefix, then lower id.
pub(super) fn precedence(rule: &Rule, prefix_len: u8) -> impl Ord + use<> {
    (rule.category.clone(), prefix_len, Reverse(rule.key))
}

/// What the rule does, as the table says it.
pub(super) fn outcome(rule: &Rule) -> u32 {
    let outcome = Outcome {
        set: rule.slot,
        egress: match rule.action {
            Action::Pass => None,
            Action::Steer(egress) => Some(egress),
        },
    };
    outcome.to_word()
}

/// The rules that cover an address, as a number. 0 is none.
pub(super) type Cover = u32;

/// The most indices in all combinations together: some hundred megabytes while a ruleset is compiled.
const MAX_SIZE: usize = 1 << 24;

/// All combinations of covering rules that occur in a ruleset, each by its order of precedence.
pub(super) struct Covers<'a> {
    rules: &'a [Rule],
    /// Indices of rules, the one that wins first.
    orders: Vec<Vec<u32>>,
    numbers: HashMap<Vec<u32>, Cover>,
    /// Indices in all orders together.
    size: usize,
    within: HashMap<(Cover, u32), Cover>,
}

impl<'a> Covers<'a> {
    pub(super) fn new(rules: &'a [Rule]) -> Self {
        Covers {
            rules,
            orders: vec![Vec::new()],
            numbers: HashMap::from([(Vec::new(), 0)]),
            size: 0,
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
        if self.is_too_large() {
            return outer;
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
            self.size += order.len();
            self.orders.push(order);
        }
        self.within.insert((outer, rule), cover);
        cover
    }

    /// Folds the rules of a cover into a leaf: by class, the outcome of the rule that wins.
    pub(super) fn fold(&self, cover: Cover, classes: &Classes) -> Vec<u32> {
        let mut leaf = vec![NO_PORT; classes.count()];
        for rule in self.orders[cover as usize].iter().rev() {
            let outcome = outcome(&self.rules[*rule as usize]);
            for class in classes.of_rule(*rule) {
                leaf[*class as usize] = outcome;
            }
        }
        leaf
    }

    /// Whether there are more than memory shall be spent on. What is added then is not taken in.
    pub(super) fn is_too_large(&self) -> bool {
        self.size > MAX_SIZE
    }

    /// How many there are, with the empty one.
    pub(super) fn len(&self) -> usize {
        self.orders.len()
    }
}
