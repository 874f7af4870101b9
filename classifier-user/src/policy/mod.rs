//! The operator's choice: which endpoint sets are steered, for which clients, and by which preference of egresses.

mod build;
mod custom;

use std::ops::RangeInclusive;
use std::time::Duration;

use breakout_common::condition::Condition;
use breakout_common::table::Transport;
use ipnet::IpNet;

use crate::config::Class;
use crate::list::{Category, EndpointSet, Instance, PortRange};
use crate::timestamp::Timestamp;

pub use build::{Build, sign_in_notes};
pub use custom::{custom_sets, parse_prefixes};

/// Action on packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// The ordinary path.
    Pass,
    /// By the preference with this index.
    Steer(u8),
}

/// Rules in order, of which the first one that matches a packet decides. What none matches passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The rules.
    pub rules: Vec<PolicyRule>,
    /// The source groups that the rules' conditions refer to.
    pub sources: Vec<Vec<IpNet>>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Its name.
    pub name: String,
    /// Sets that it selects.
    pub selector: Selector,
    /// Ports of those sets, if not all.
    pub ports: Option<Vec<PortRange>>,
    /// Conditions on clients, of which one applies.
    pub conditions: Vec<Condition>,
    /// Action.
    pub action: Action,
    /// True if it only shows what it would do.
    pub shadow: bool,
    /// True if its flows take what is best at any time.
    pub hard: bool,
    /// The class of its traffic, if it is not told by the set.
    pub class: Option<Class>,
    /// Time for which it goes on for what Microsoft no longer publishes.
    pub grace: Duration,
}

/// Endpoint sets that a rule selects. An empty part means any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Instances.
    pub instances: Vec<Instance>,
    /// Categories.
    pub categories: Vec<Category>,
    /// Service areas, in lower case.
    pub service_areas: Vec<String>,
    /// Ids.
    pub sets: Vec<u32>,
    /// Condition that Microsoft requires connectivity, or does not.
    pub required: Option<bool>,
    /// Condition that they are reachable over ExpressRoute, or are not.
    pub express_route: Option<bool>,
    /// Custom sets, which are about themselves only.
    pub custom: Vec<String>,
}

/// Action of one rule on one endpoint set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The index of the rule, which is its place in the order.
    pub policy: u16,
    /// Ports of the set, if not all.
    pub ports: Option<Vec<PortRange>>,
    /// Conditions on clients, of which one applies.
    pub conditions: Vec<Condition>,
    /// Action.
    pub action: Action,
    /// True if it is only shown.
    pub shadow: bool,
    /// True if it is of the class `media`.
    pub media: bool,
    /// True if its flows take what is best at any time.
    pub hard: bool,
}

impl Choice {
    /// A choice for every packet, by the first rule.
    pub fn always(action: Action) -> Self {
        Choice {
            policy: 0,
            ports: None,
            conditions: vec![Condition::ANY],
            action,
            shadow: false,
            media: false,
            hard: false,
        }
    }

    /// Returns whether it holds whoever sends the packet.
    pub fn is_for_everyone(&self) -> bool {
        self.conditions == [Condition::ANY]
    }
}

impl Policy {
    /// The default policy: Optimize is steered by one preference, everything else passes.
    pub fn optimize(preference: u8) -> Self {
        Policy {
            rules: vec![PolicyRule {
                name: "default".to_owned(),
                selector: Selector {
                    categories: vec![Category::Optimize],
                    ..Selector::default()
                },
                ports: None,
                conditions: vec![Condition::ANY],
                action: Action::Steer(preference),
                shadow: false,
                hard: false,
                class: None,
                grace: DEFAULT_GRACE,
            }],
            sources: Vec::new(),
        }
    }

    /// Says whether any client's packets to an endpoint set are steered.
    pub fn steers(&self, set: &EndpointSet) -> bool {
        let choices = self.choices(set, Timestamp::now());
        let mut choices = choices.iter();
        choices.any(|choice| choice.action != Action::Pass && !choice.shadow)
    }

    /// Returns what the rules say about an endpoint set, in their order.
    pub fn choices(&self, set: &EndpointSet, now: Timestamp) -> Vec<Choice> {
        let mut choices: Vec<Choice> = Vec::new();
        for (index, rule) in (0u16..).zip(&self.rules) {
            if !rule.is_about(set) || !rule.still_holds(set, now) {
                continue;
            }
            choices.push(Choice {
                policy: index,
                ports: rule.ports.clone(),
                conditions: rule.conditions.clone(),
                action: rule.action,
                shadow: rule.shadow,
                media: rule.class_of(set) == Class::Media,
                hard: rule.hard,
            });
            if rule.ports.is_none() && rule.conditions == [Condition::ANY] {
                break;
            }
        }
        choices
    }
}

/// The UDP ports of Teams' media (Microsoft, "Prepare your organization's network for Teams").
const MEDIA_PORTS: RangeInclusive<u16> = 3478..=3481;

/// Time for which a rule goes on for what Microsoft no longer publishes, unless it says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(7 * 86_400);

impl PolicyRule {
    /// Returns whether the rule is about an endpoint set. Sign-in is steered only by rules that name the set.
    pub fn is_about(&self, set: &EndpointSet) -> bool {
        self.selector.selects(set) && !self.leaves_out_sign_in(set)
    }

    /// Returns whether the rule would steer sign-in if it named the set.
    pub fn leaves_out_sign_in(&self, set: &EndpointSet) -> bool {
        set.is_sign_in()
            && self.selector.selects(set)
            && self.action != Action::Pass
            && self.selector.sets.is_empty()
    }

    /// The class of a set's traffic.
    fn class_of(&self, set: &EndpointSet) -> Class {
        let has_media = |ports: &PortRange| {
            ports.transport == Transport::Udp
                && ports.first <= *MEDIA_PORTS.end()
                && ports.last >= *MEDIA_PORTS.start()
        };
        let is_media = set.key.id().is_some() && set.ports.iter().any(has_media);
        self.class.unwrap_or(if is_media {
            Class::Media
        } else {
            Class::Standard
        })
    }

    fn still_holds(&self, set: &EndpointSet, now: Timestamp) -> bool {
        set.withdrawn
            .is_none_or(|since| now < since.after(self.grace))
    }
}

impl Selector {
    /// Returns whether an endpoint set is meant.
    pub fn selects(&self, set: &EndpointSet) -> bool {
        let any_or = |is_empty: bool, contains: bool| is_empty || contains;
        match (set.key.instance(), set.key.id()) {
            (Some(instance), Some(id)) => {
                let area = set.service_area.to_ascii_lowercase();
                self.is_about_published()
                    && any_or(
                        self.instances.is_empty(),
                        self.instances.contains(&instance),
                    )
                    && any_or(
                        self.categories.is_empty(),
                        self.categories.contains(&set.category),
                    )
                    && any_or(
                        self.service_areas.is_empty(),
                        self.service_areas.contains(&area),
                    )
                    && any_or(self.sets.is_empty(), self.sets.contains(&id))
                    && self.required.is_none_or(|wanted| wanted == set.required)
                    && self
                        .express_route
                        .is_none_or(|wanted| wanted == set.express_route)
            }
            _ => (self.custom.iter()).any(|name| set.key.name() == Some(name)),
        }
    }

    /// Returns whether it is about Microsoft's sets at all.
    fn is_about_published(&self) -> bool {
        let published = Selector {
            custom: Vec::new(),
            ..self.clone()
        };
        self.custom.is_empty() || published != Selector::default()
    }
}

#[cfg(test)]
mod tests;
