//! Changes, made or planned, and the orders that make them.

use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ListSummary;

/// Difference between two rulesets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RulesetDelta {
    /// The endpoint sets that differ.
    pub sets: Vec<RuleDelta>,
    /// Steered IPv4 addresses, before and since.
    pub steered_v4: (u64, u64),
    /// Steered IPv6 networks of 64 bits, before and since.
    pub steered_v6: (u64, u64),
}

/// Difference of one endpoint set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleDelta {
    /// The set, as in `Worldwide 11`.
    pub set: String,
    /// Its service area.
    pub service_area: String,
    /// `added`, `removed`, `changed` or `withdrawn`, which is removed but in its grace time.
    pub change: String,
    /// Category, before and since, if they differ.
    pub category: Option<(String, String)>,
    /// Policy before and after, if they differ: rule and action, in their order.
    pub policy: Option<(Vec<String>, Vec<String>)>,
    /// Ports, before and since, if they differ.
    pub ports: Option<(Vec<String>, Vec<String>)>,
    /// Prefixes that came.
    #[schemars(with = "Vec<String>")]
    pub added: Vec<IpNet>,
    /// Prefixes that went.
    #[schemars(with = "Vec<String>")]
    pub removed: Vec<IpNet>,
}

/// Outcome of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reloaded {
    /// The generation before.
    pub from_generation: u32,
    /// The generation in force now.
    pub to_generation: u32,
    /// The ruleset's hash before.
    pub from_hash: String,
    /// The ruleset's hash now.
    pub to_hash: String,
    /// True if what is matched, or what is done with it, has changed.
    pub changed: bool,
    /// The list of the first instance that is now in use.
    pub list: ListSummary,
    /// The lists of all instances.
    pub lists: Vec<ListSummary>,
    /// Difference.
    pub delta: RulesetDelta,
    /// Further notes.
    pub notes: Vec<String>,
}

/// Planned change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Reasons for changes: an edited configuration, a list that waits.
    pub causes: Vec<String>,
    /// The ruleset's hash now.
    pub from_hash: String,
    /// The ruleset's hash then.
    pub to_hash: String,
    /// Difference that would result.
    pub delta: RulesetDelta,
}

/// `breakout list accept`, `rollback` and `release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListOrder {
    /// Overrule the judge.
    Accept {
        /// A version, or the start of a hash.
        version: String,
    },
    /// Go back, to a version or to the ruleset before.
    Rollback {
        /// A version, or the start of a hash.
        version: Option<String>,
    },
    /// Let later lists be applied again after a rollback.
    Release,
}

/// `breakout bypass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BypassOrder {
    /// True if steering is to be switched off.
    pub on: bool,
    /// For how long; until further notice without.
    pub duration: Option<Duration>,
}
