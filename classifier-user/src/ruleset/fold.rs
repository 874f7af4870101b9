//! Precedence: what several prefixes and endpoint sets together say about one address, which is a leaf of the table.

use std::cmp::Reverse;
use std::collections::HashMap;

use breakout_common::table::{Hold, NO_PORT, Outcome};

use super::chains::{Chain, Chains, last_entry};
use super::classes::Classes;
use super::{Rule, Ruleset};
use crate::policy::{Action, Choice};

/// Returns what is above the length of a prefix in the order of precedence: what is published wins over what is withdrawn, then the
/// higher category over the lower one.
fn rank(rule: &Rule) -> impl Ord + '_ {
    (rule.withdrawn.is_none(), &rule.category)
}

/// The order of precedence: rank, then longer prefix, then lower id.
pub(super) fn precedence(rule: &Rule, prefix_len: u8) -> impl Ord + use<> {
    (
        rule.withdrawn.is_none(),
        rule.category.clone(),
        prefix_len,
        Reverse(rule.key.clone()),
    )
}

/// Returns what a choice about the rule's set does, as the table says it. Without a choice the set passes.
pub(super) fn outcome(rule: &Rule, choice: Option<&Choice>, bypass: bool) -> u32 {
    let preference = match choice.map(|choice| choice.action) {
        Some(Action::Steer(preference)) => Some(preference),
        Some(Action::Pass) | None => None,
    };
    let shadow = choice.is_some_and(|choice| choice.shadow);
    let hold = match (bypass, shadow) {
        (true, _) => Some(Hold::Bypass),
        (false, true) => Some(Hold::Shadow),
        (false, false) => None,
    };
    let outcome = Outcome {
        set: rule.slot,
        hold: hold.filter(|_| preference.is_some()),
        media: preference.is_some() && choice.is_some_and(|choice| choice.media),
        hard: preference.is_some() && choice.is_some_and(|choice| choice.hard),
        preference,
    };
    outcome.to_word()
}

/// The rules that cover an address, as a number. 0 is none.
pub(super) type Cover = u32;

/// The most indices in all combinations together: some hundred megabytes while a ruleset is compiled.
const MAX_SIZE: usize = 1 << 24;

/// All combinations of covering rules that occur in a ruleset, each by its order of precedence.
pub(super) struct Covers<'a> {
    ruleset: &'a Ruleset,
    /// Indices of rules, the one that wins first.
    orders: Vec<Vec<u32>>,
    numbers: HashMap<Vec<u32>, Cover>,
    /// Indices in all orders together.
    size: usize,
    within: HashMap<(Cover, u32), Cover>,
}

impl<'a> Covers<'a> {
    pub(super) fn new(ruleset: &'a Ruleset) -> Self {
        Covers {
            ruleset,
            orders: vec![Vec::new()],
            numbers: HashMap::from([(Vec::new(), 0)]),
            size: 0,
            within: HashMap::new(),
        }
    }

    /// Returns what covers an address in one of the rule's prefixes that lies within prefixes with `outer`.
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
        // Its prefix is the longest so far, so it is the first of its rank.
        let at = order.partition_point(|other| rank(self.rule(*other)) > rank(self.rule(rule)));
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

    /// Folds the rules of a cover into a leaf: by class, the outcome that the policy has for the sets that win, or the chain of
    /// conditions that it depends on.
    pub(super) fn fold(&self, cover: Cover, classes: &Classes, chains: &mut Chains) -> Vec<u32> {
        let mut winners: Vec<Vec<u32>> = vec![Vec::new(); classes.count()];
        for rule in &self.orders[cover as usize] {
            let key = &self.rule(*rule).key;
            for class in classes.of_rule(*rule) {
                let winners = &mut winners[*class as usize];
                if !winners
                    .iter()
                    .any(|winner| self.rule(*winner).key.same_origin(key))
                {
                    winners.push(*rule);
                }
            }
        }
        let by_class = winners.iter().zip(0u32..);
        by_class
            .map(|(winners, class)| self.word(winners, class, classes, chains))
            .collect()
    }

    /// The word of a class for which these rules win, the first one over the others.
    fn word(&self, winners: &[u32], class: u32, classes: &Classes, chains: &mut Chains) -> u32 {
        let Some(first) = winners.first() else {
            return NO_PORT;
        };
        let mut choices: Vec<(u32, &Choice)> = Vec::new();
        for winner in winners {
            let all = self.rule(*winner).choices.iter().enumerate();
            let about = all.filter(|(place, _)| classes.has_choice(*winner, *place, class));
            choices.extend(about.map(|(_, choice)| (*winner, choice)));
        }
        // Stable, so that of two sets that one rule is about the one that wins comes first.
        choices.sort_by_key(|(_, choice)| choice.policy);
        let bypass = self.ruleset.bypass;
        let mut chain = Chain::new();
        for (winner, choice) in choices {
            let outcome = outcome(self.rule(winner), Some(choice), bypass);
            if choice.is_for_everyone() {
                chain.push(last_entry(outcome));
                break;
            }
            let conditions = choice.conditions.iter();
            chain.extend(conditions.map(|condition| condition.to_entry(outcome)));
        }
        match chain.last() {
            Some([outcome, ..]) if chain.len() == 1 && chain[0] == last_entry(*outcome) => *outcome,
            Some(last) if *last == last_entry(last[0]) => chains.word(chain),
            Some(_) => {
                chain.push(last_entry(outcome(self.rule(*first), None, bypass)));
                chains.word(chain)
            }
            None => outcome(self.rule(*first), None, bypass),
        }
    }

    fn rule(&self, index: u32) -> &'a Rule {
        &self.ruleset.rules[index as usize]
    }

    /// Returns whether there are more than memory shall be spent on. What is added then is not taken in.
    pub(super) fn is_too_large(&self) -> bool {
        self.size > MAX_SIZE
    }

    /// Returns how many there are, with the empty one.
    pub(super) fn len(&self) -> usize {
        self.orders.len()
    }
}
