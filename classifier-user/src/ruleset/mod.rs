//! What the policy makes of the lists, and its compilation to the table that the data path reads.

mod classes;
mod compile;
mod fold;
mod intervals;
mod scan;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::list::{Category, List, PortRange, SetKey};
use crate::policy::{Action, Policy};
use breakout_common::counters::SET_SLOTS;

pub use compile::{Image, TooLarge, compile};
pub use scan::{Covering, Match, winner};

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
    /// Addresses of the gateway itself and the broadcast addresses of its networks. No rule applies to them.
    pub own: Vec<IpAddr>,
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
        Ok(Ruleset {
            rules,
            own: Vec::new(),
        })
    }

    /// The rule of an endpoint set slot.
    pub fn rule(&self, slot: u16) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.slot == slot)
    }

    /// A hash of what the rules match and do, as hexadecimal digits. The order of sets, prefixes and
    /// ports, and everything that is only for people, does not matter; nor do the gateway's own addresses.
    pub fn hash(&self) -> String {
        let mut rules: Vec<&Rule> = self.rules.iter().collect();
        rules.sort_by_key(|rule| rule.key);
        let mut hasher = Sha256::new();
        for rule in rules {
            let mut ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
            ports.sort_unstable();
            hasher.update(format!(
                "{} {} {:?} {ports:?}\n",
                rule.key, rule.category, rule.action
            ));
            let mut prefixes: Vec<[u8; 18]> = rule.prefixes.iter().map(to_bytes).collect();
            prefixes.sort_unstable();
            prefixes.dedup();
            hasher.update(prefixes.as_flattened());
        }
        let digest = hasher.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Family, length and network of a prefix, as bytes that sort.
fn to_bytes(prefix: &IpNet) -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[1] = prefix.prefix_len();
    match prefix.network() {
        IpAddr::V4(address) => {
            bytes[0] = 4;
            bytes[2..6].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes[0] = 6;
            bytes[2..].copy_from_slice(&address.octets());
        }
    }
    bytes
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
