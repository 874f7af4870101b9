//! What the policy makes of the lists, and its compilation to the table that the data path reads.

mod compile;
mod fold;
mod scan;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::list::{Category, List, PortRange, SetKey};
use crate::policy::{Action, Policy};
use breakout_common::counters::SET_SLOTS;

pub use compile::{Image, compile};
pub use scan::Match;

/// An endpoint set with the policy's action and the slot of its counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which set.
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
    /// What is done with its packets.
    pub action: Action,
}

/// All rules in force at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The rules, in the order of the lists.
    pub rules: Vec<Rule>,
}

impl Ruleset {
    /// Applies the policy to the lists. Sets that cannot be matched exactly are left out.
    ///
    /// # Errors
    ///
    /// When there are more endpoint sets than counters.
    pub fn new(lists: &[List], policy: &Policy, slots: &mut Slots) -> Result<Self> {
        let sets = lists.iter().flat_map(|list| &list.sets);
        let mut rules = Vec::new();
        for set in sets.filter(|set| set.is_usable()) {
            rules.push(Rule {
                key: set.key,
                slot: slots.assign(set.key)?,
                service_area: set.service_area.clone(),
                category: set.category.clone(),
                prefixes: set.prefixes.clone(),
                ports: set.ports.clone(),
                action: policy.action(set),
            });
        }
        Ok(Ruleset { rules })
    }

    /// The rule of an endpoint set slot.
    pub fn rule(&self, slot: u16) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.slot == slot)
    }

    /// A hash of what the rules match and do, as hexadecimal digits. The order of sets, prefixes and
    /// ports, and everything that is only for people, does not matter.
    pub fn hash(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for rule in &self.rules {
            for prefix in &rule.prefixes {
                for ports in &rule.ports {
                    lines.push(format!(
                        "{} {} {prefix} {ports} {:?}",
                        rule.key, rule.category, rule.action
                    ));
                }
            }
        }
        lines.sort_unstable();
        lines.dedup();
        let digest = Sha256::digest(lines.join("\n"));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Which endpoint set has which counter. A set keeps its slot for as long as the counters live.
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
        self.by_key.iter().map(|(key, slot)| (*key, *slot))
    }

    fn assign(&mut self, key: SetKey) -> Result<u16> {
        if let Some(slot) = self.by_key.get(&key) {
            return Ok(*slot);
        }
        let next = self.by_key.values().max().map_or(0, |slot| slot + 1);
        if usize::from(next) >= SET_SLOTS {
            bail!(
                "the lists have more than {SET_SLOTS} endpoint sets over time; \
                 restart the controller with `breakout unload` in between to number them afresh"
            );
        }
        self.by_key.insert(key, next);
        Ok(next)
    }
}
