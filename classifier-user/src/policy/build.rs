//! From the configuration to a policy.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use breakout_common::condition::{Condition, MAX_GROUPS};
use ipnet::IpNet;

use super::{Action, Policy, PolicyRule, Selector};
use crate::config::{Config, Failback, PolicyConfig};
use crate::list::{Category, EndpointSet, Instance};

/// As many rules have a number of their own.
const MAX_RULES: usize = u16::MAX as usize;

/// Input of a policy.
pub struct Build<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The preferences' indices, by their texts.
    pub preferences: &'a BTreeMap<String, u8>,
}

impl Build<'_> {
    /// The policy of the configuration; without `[[policy]]` the default one.
    ///
    /// # Errors
    ///
    /// When there are more different lists of sources, or more LAN interfaces, than the data path can tell apart.
    pub fn policy(&self) -> Result<Policy> {
        let mut policy = if self.config.policy.is_empty() {
            let mut policy = Policy::optimize(self.preference(self.config.default_egress())?);
            policy.rules[0].grace = self.config.list.grace.0;
            policy
        } else {
            if self.config.policy.len() > MAX_RULES {
                bail!(
                    "there are {} [[policy]] sections; {MAX_RULES} can be told apart. Rules about the same sets can share one",
                    self.config.policy.len()
                );
            }
            let mut policy = Policy {
                rules: Vec::new(),
                sources: Vec::new(),
            };
            for (number, rule) in (1..).zip(&self.config.policy) {
                let rule = self.rule(number, rule, &mut policy.sources)?;
                policy.rules.push(rule);
            }
            policy
        };
        for rule in &mut policy.rules {
            rule.shadow |= self.config.shadow;
        }
        Ok(policy)
    }

    fn preference(&self, text: &str) -> Result<u8> {
        let index = self.preferences.get(text).copied();
        index.context("every preference has an index")
    }

    fn rule(
        &self,
        number: usize,
        rule: &PolicyConfig,
        groups: &mut Vec<Vec<IpNet>>,
    ) -> Result<PolicyRule> {
        let name = rule
            .name
            .clone()
            .unwrap_or_else(|| format!("rule {number}"));
        let selector = Selector {
            instances: rule
                .instance
                .iter()
                .filter_map(|name| Instance::from_name(name))
                .collect(),
            categories: rule
                .category
                .iter()
                .map(|name| Category::from(name.as_str()))
                .collect(),
            service_areas: rule
                .service_area
                .iter()
                .map(|area| area.to_ascii_lowercase())
                .collect(),
            sets: rule.sets.0.clone(),
            required: rule.required,
            express_route: rule.express_route,
            custom: rule.custom.0.clone(),
        };
        let action = if rule.action.is_pass() {
            Action::Pass
        } else {
            Action::Steer(self.preference(&rule.action.to_string())?)
        };
        Ok(PolicyRule {
            selector,
            ports: rule.ports.clone().map(|ports| ports.0),
            conditions: self.conditions(&name, rule, groups)?,
            action,
            shadow: rule.shadow,
            hard: rule.failback == Failback::Hard,
            class: rule.class,
            grace: rule.grace.unwrap_or(self.config.list.grace).0,
            name,
        })
    }

    fn conditions(
        &self,
        name: &str,
        rule: &PolicyConfig,
        groups: &mut Vec<Vec<IpNet>>,
    ) -> Result<Vec<Condition>> {
        let mut condition = Condition {
            share: rule.share.map_or(u16::MAX, |share| share.last_bucket()),
            ..Condition::ANY
        };
        if !rule.sources.is_empty() {
            let mut sources = rule.sources.0.clone();
            sources.sort_unstable();
            sources.dedup();
            let index = groups.iter().position(|group| *group == sources);
            let index = index.unwrap_or_else(|| {
                groups.push(sources);
                groups.len() - 1
            });
            if index >= MAX_GROUPS as usize {
                bail!(
                    "policy \"{name}\": rules can have {MAX_GROUPS} different lists of sources; share some of them"
                );
            }
            condition.groups = 1 << index;
        }
        if !rule.lan.is_empty() {
            condition.lans = 0;
            for interface in rule.lan.iter() {
                let lan = self
                    .config
                    .lan
                    .iter()
                    .position(|lan| lan.interface == *interface);
                let lan = lan.context("every LAN that a rule names is configured")?;
                if lan >= MAX_GROUPS as usize {
                    bail!(
                        "policy \"{name}\": rules can only name the first {MAX_GROUPS} [[lan]] sections"
                    );
                }
                condition.lans |= 1 << lan;
            }
        }
        if rule.vlan.is_empty() {
            return Ok(vec![condition]);
        }
        let vlans = rule.vlan.iter();
        Ok(vlans
            .map(|vlan| Condition {
                vlan: *vlan,
                ..condition
            })
            .collect())
    }
}

/// Returns what an operator should know about sign-in: which rules leave it out, and which steer it.
pub fn sign_in_notes(policy: &Policy, sets: &[EndpointSet]) -> Vec<String> {
    let mut notes = Vec::new();
    for set in sets
        .iter()
        .filter(|set| set.is_sign_in() && set.is_usable())
    {
        for rule in policy
            .rules
            .iter()
            .filter(|rule| rule.action != Action::Pass)
        {
            if rule.leaves_out_sign_in(set) {
                notes.push(format!(
                    "policy \"{}\" does not steer endpoint set {} (sign-in): tenant restrictions and conditional access by \
                     address are enforced on the ordinary path. Name it in `sets` to steer it all the same",
                    rule.name, set.key
                ));
            } else if rule.is_about(set) {
                notes.push(format!(
                    "policy \"{}\" steers endpoint set {} (sign-in): a proxy's tenant restrictions no longer see it, and \
                     conditional access sees the address of the local link",
                    rule.name, set.key
                ));
            }
        }
    }
    notes
}
