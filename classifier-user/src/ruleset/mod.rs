//! Rulesets: the policy applied to the lists, compiled to the table that the data path reads.

mod chains;
mod classes;
mod compile;
mod fold;
mod hash;
mod intervals;
mod scan;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;

use crate::list::{Category, Coverage, EndpointSet, Family, PortRange, SetKey};
use crate::policy::{Action, Choice, Policy};
use crate::timestamp::Timestamp;
use breakout_common::counters::SET_SLOTS;

pub use compile::{Image, TooLarge, compile};
pub use scan::{Covering, Found, Match, matches};

/// An endpoint set with what the policy says about it, and the slot of its counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Key of the set.
    pub key: SetKey,
    /// Index of its counter.
    pub slot: u16,
    /// For people.
    pub service_area: String,
    /// Decides between overlapping sets.
    pub category: Category,
    /// Destination prefixes.
    pub prefixes: Vec<IpNet>,
    /// Protocols and destination ports.
    pub ports: Vec<PortRange>,
    /// Since when Microsoft no longer publishes it, if so. What is published wins over it.
    pub withdrawn: Option<Timestamp>,
    /// Rules that select it, in their order; without one it passes.
    pub choices: Vec<Choice>,
}

impl Rule {
    /// The preferences by which packets of the set may be steered.
    pub fn preferences(&self) -> Vec<u8> {
        let mut preferences: Vec<u8> = (self.choices.iter())
            .filter_map(|choice| match choice.action {
                Action::Steer(preference) => Some(preference),
                Action::Pass => None,
            })
            .collect();
        preferences.sort_unstable();
        preferences.dedup();
        preferences
    }

    /// Returns whether any of its packets may be steered.
    pub fn is_steered(&self) -> bool {
        !self.preferences().is_empty()
    }
}

/// All rules in force at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The rules, in the order of the lists.
    pub rules: Vec<Rule>,
    /// The source groups that conditions refer to.
    pub sources: Vec<Vec<IpNet>>,
    /// The names of the policy's rules.
    pub policy: Vec<String>,
    /// True if steering is switched off for a time.
    pub bypass: bool,
    /// Addresses of the gateway itself and the broadcast addresses of its networks. No rule applies to them.
    pub own: Vec<IpAddr>,
}

impl Ruleset {
    /// Applies the policy to endpoint sets. Left out are sets that cannot be matched exactly, and those that are only there
    /// for rules that name them: custom and withdrawn ones.
    ///
    /// # Errors
    ///
    /// When there are more endpoint sets than counters.
    pub fn new<'a>(
        sets: impl IntoIterator<Item = &'a EndpointSet>,
        policy: &Policy,
        slots: &mut Slots,
        now: Timestamp,
    ) -> Result<Self> {
        let mut rules = Vec::new();
        for set in sets.into_iter().filter(|set| set.is_usable()) {
            let choices = policy.choices(set, now);
            let is_published = set.key.id().is_some() && set.withdrawn.is_none();
            if choices.is_empty() && !is_published {
                continue;
            }
            rules.push(Rule {
                slot: slots.assign(&set.key)?,
                key: set.key.clone(),
                service_area: set.service_area.clone(),
                category: set.category.clone(),
                prefixes: set.prefixes.clone(),
                ports: set.ports.clone(),
                withdrawn: set.withdrawn,
                choices,
            });
        }
        refuse_everything(&rules)?;
        Ok(Ruleset {
            rules,
            sources: policy.sources.clone(),
            policy: policy.rules.iter().map(|rule| rule.name.clone()).collect(),
            bypass: false,
            own: Vec::new(),
        })
    }

    /// The rule of an endpoint set slot.
    pub fn rule(&self, slot: u16) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.slot == slot)
    }
}

/// Fails if what is steered is every address of a family, in however many parts: that is a default route.
fn refuse_everything(rules: &[Rule]) -> Result<()> {
    let prefixes = || {
        let steered = rules.iter().filter(|rule| rule.is_steered());
        steered.flat_map(|rule| &rule.prefixes)
    };
    for family in Family::ALL {
        // What is too little even without overlaps need not be sorted.
        let of_family = prefixes().filter(|prefix| Family::of(prefix) == family);
        let shares: f64 = of_family
            .map(|prefix| (-f64::from(prefix.prefix_len())).exp2())
            .sum();
        if shares > 0.99 && Coverage::of(prefixes(), family).is_everything(family) {
            bail!(
                "the prefixes that are steered are every {family} address together; that is a default route, and not what \
                 Breakout is for"
            );
        }
    }
    Ok(())
}

/// Counter slots of endpoint sets. A set keeps its slot for as long as the counters live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    by_key: BTreeMap<SetKey, u16>,
}

impl Slots {
    /// Slots that were assigned before.
    pub fn from_assigned(assigned: impl IntoIterator<Item = (SetKey, u16)>) -> Self {
        Slots {
            by_key: assigned.into_iter().collect(),
        }
    }

    /// All assigned slots.
    pub fn iter(&self) -> impl Iterator<Item = (SetKey, u16)> + '_ {
        self.by_key.iter().map(|(key, slot)| (key.clone(), *slot))
    }

    fn assign(&mut self, key: &SetKey) -> Result<u16> {
        if let Some(slot) = self.by_key.get(key) {
            return Ok(*slot);
        }
        let next = self.by_key.values().max().map_or(0, |slot| slot + 1);
        if usize::from(next) >= SET_SLOTS {
            bail!(
                "there are more than {SET_SLOTS} endpoint sets, with those of earlier lists; \
                 if it is only with them, restart the controller with `breakout unload` in between to number them afresh"
            );
        }
        self.by_key.insert(key.clone(), next);
        Ok(next)
    }
}
