//! Hash of what a ruleset matches and does, to tell whether two are the same.

use std::net::IpAddr;

use breakout_common::condition::Condition;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{Rule, Ruleset};
use crate::hex::hex;
use crate::list::PortRange;

impl Ruleset {
    /// A hash of what the rules match and do, as hexadecimal digits. The order of sets, prefixes and
    /// ports, and everything that is only for people, does not matter; nor do the gateway's own addresses, and whether steering
    /// is switched off for a time.
    pub fn hash(&self) -> String {
        let mut rules: Vec<&Rule> = self.rules.iter().collect();
        rules.sort_by(|a, b| (&a.key, a.withdrawn, &a.ports).cmp(&(&b.key, b.withdrawn, &b.ports)));
        let mut hasher = Sha256::new();
        for rule in rules {
            let withdrawn = rule.withdrawn.is_some();
            hasher.update(format!(
                "{} {} {withdrawn} {}\n",
                rule.key,
                rule.category,
                ports(&rule.ports)
            ));
            for choice in &rule.choices {
                hasher.update(format!(
                    "{} {:?} {} {:?}\n",
                    choice.policy,
                    choice.action,
                    choice.shadow,
                    choice.ports.as_ref().map(|list| ports(list))
                ));
                if choice.media || choice.hard {
                    hasher.update(format!("media {} hard {}\n", choice.media, choice.hard));
                }
                for condition in &choice.conditions {
                    hasher.update(format!("{condition:?}\n"));
                    if condition.groups != Condition::ANY.groups {
                        let group = condition.groups.trailing_zeros() as usize;
                        hasher.update(prefixes(&self.sources[group]));
                    }
                }
            }
            hasher.update(prefixes(&rule.prefixes));
        }
        hex(&hasher.finalize())
    }
}

fn ports(ports: &[PortRange]) -> String {
    let mut ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    ports.sort_unstable();
    format!("{ports:?}")
}

fn prefixes(prefixes: &[IpNet]) -> Vec<u8> {
    let mut prefixes: Vec<[u8; 18]> = prefixes.iter().map(to_bytes).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes.concat()
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
