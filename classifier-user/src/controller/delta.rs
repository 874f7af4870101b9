//! Difference between two rulesets.

use std::collections::{BTreeMap, BTreeSet};

use breakout_common::condition::Condition;
use ipnet::IpNet;

use super::lists::name_of;
use crate::control::{RuleDelta, RulesetDelta};
use crate::list::{Coverage, Family, SetKey};
use crate::policy::{Action, Choice};
use crate::ruleset::{Rule, Ruleset};

/// Content of one set: a published one, or the withdrawn part of it.
#[derive(Default)]
struct Said {
    service_area: String,
    category: String,
    policy: Vec<String>,
    ports: Vec<String>,
    prefixes: BTreeSet<IpNet>,
}

/// Returns what changes from one ruleset to another.
pub(super) fn between(
    before: &Ruleset,
    since: &Ruleset,
    preferences: &BTreeMap<String, u8>,
) -> RulesetDelta {
    let (old, new) = (said(before, preferences), said(since, preferences));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let none = Said::default();
    let mut sets = Vec::new();
    for key in keys {
        let (set, is_withdrawn) = key;
        let (was, is) = (old.get(key), new.get(key));
        let change = match (was, is) {
            (None, _) if *is_withdrawn => "withdrawn",
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        let (was, is) = (was.unwrap_or(&none), is.unwrap_or(&none));
        let differ = |a: &Vec<String>, b: &Vec<String>| (a != b).then(|| (a.clone(), b.clone()));
        let delta = RuleDelta {
            set: if *is_withdrawn {
                format!("{set} (withdrawn)")
            } else {
                set.to_string()
            },
            service_area: [&is.service_area, &was.service_area]
                .into_iter()
                .find(|area| !area.is_empty())
                .cloned()
                .unwrap_or_default(),
            change: change.to_owned(),
            category: (was.category != is.category)
                .then(|| (was.category.clone(), is.category.clone())),
            policy: differ(&was.policy, &is.policy),
            ports: differ(&was.ports, &is.ports),
            added: is.prefixes.difference(&was.prefixes).copied().collect(),
            removed: was.prefixes.difference(&is.prefixes).copied().collect(),
        };
        let is_same = delta.category.is_none() && delta.policy.is_none() && delta.ports.is_none();
        if !(is_same && delta.added.is_empty() && delta.removed.is_empty()) {
            sets.push(delta);
        }
    }
    let ((old_v4, old_v6), (new_v4, new_v6)) = (steered(before), steered(since));
    RulesetDelta {
        sets,
        steered_v4: (old_v4, new_v4),
        steered_v6: (old_v6, new_v6),
    }
}

fn said(ruleset: &Ruleset, preferences: &BTreeMap<String, u8>) -> BTreeMap<(SetKey, bool), Said> {
    let mut all: BTreeMap<(SetKey, bool), Said> = BTreeMap::new();
    for rule in &ruleset.rules {
        let key = (rule.key.clone(), rule.withdrawn.is_some());
        let said = all.entry(key).or_default();
        said.service_area.clone_from(&rule.service_area);
        said.category = rule.category.to_string();
        let choices = rule.choices.iter();
        said.policy = choices
            .map(|choice| text(ruleset, choice, preferences))
            .collect();
        said.ports
            .extend(rule.ports.iter().map(ToString::to_string));
        said.ports.sort_unstable();
        said.ports.dedup();
        said.prefixes.extend(&rule.prefixes);
    }
    all
}

/// Each endpoint set with what the policy says about it, a line each.
pub(super) fn lines(ruleset: &Ruleset, preferences: &BTreeMap<String, u8>) -> Vec<String> {
    let lines = ruleset.rules.iter().map(|rule| {
        let choices: Vec<String> = (rule.choices.iter())
            .map(|choice| text(ruleset, choice, preferences))
            .collect();
        format!(
            "{} {} {}{}: {} prefixes; {}",
            rule.key,
            rule.service_area,
            rule.category,
            if rule.withdrawn.is_some() {
                " (withdrawn)"
            } else {
                ""
            },
            rule.prefixes.len(),
            if choices.is_empty() {
                "pass".to_owned()
            } else {
                choices.join("; ")
            }
        )
    });
    lines.collect()
}

/// A choice in a few words: the rule, its action, and what it depends on.
fn text(ruleset: &Ruleset, choice: &Choice, preferences: &BTreeMap<String, u8>) -> String {
    let name = ruleset.policy.get(usize::from(choice.policy));
    let action = match choice.action {
        Action::Pass => "pass".to_owned(),
        Action::Steer(index) => name_of(preferences, index).unwrap_or_default(),
    };
    let mut text = format!("{} -> {action}", name.map_or("", String::as_str));
    if choice.hard {
        text.push_str(", hard failback");
    }
    if choice.shadow {
        text.push_str(", shadow");
    }
    if let Some(ports) = &choice.ports {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", only {}", ports.join(" ")));
    }
    for condition in choice
        .conditions
        .iter()
        .filter(|_| !choice.is_for_everyone())
    {
        text.push_str(", if");
        if condition.groups != Condition::ANY.groups {
            let group = condition.groups.trailing_zeros() as usize;
            let sources: Vec<String> = ruleset.sources[group]
                .iter()
                .map(ToString::to_string)
                .collect();
            text.push_str(&format!(" from {}", sources.join(" ")));
        }
        if condition.lans != u32::MAX {
            text.push_str(&format!(" lan {:#b}", condition.lans));
        }
        if condition.vlan != 0 {
            text.push_str(&format!(" vlan {}", condition.vlan));
        }
        if condition.share != u16::MAX {
            let percent = (f64::from(condition.share) + 1.0) / 655.36;
            text.push_str(&format!(" share {percent:.1} %"));
        }
    }
    text
}

/// Steered IPv4 addresses and IPv6 networks of 64 bits, whoever they are steered for.
fn steered(ruleset: &Ruleset) -> (u64, u64) {
    let rules = ruleset
        .rules
        .iter()
        .filter(|rule: &&Rule| rule.is_steered());
    let count = |family| {
        let prefixes = rules.clone().flat_map(|rule| &rule.prefixes);
        u64::try_from(Coverage::of(prefixes, family).size()).unwrap_or(u64::MAX)
    };
    (count(Family::V4), count(Family::V6))
}
