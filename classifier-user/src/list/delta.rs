//! Difference between two lists.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EndpointSet, List, SetKey};

/// Difference between two lists, set by set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListDelta {
    /// The sets that differ, in the order of their ids.
    pub sets: Vec<SetDelta>,
}

/// Difference of one set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetDelta {
    /// Its id.
    pub id: u32,
    /// Its service area.
    pub service_area: String,
    /// `added`, `removed` or `changed`.
    pub change: String,
    /// The category before and since, where there is one.
    pub category: (Option<String>, Option<String>),
    /// Ports before and since, if they differ.
    pub ports: Option<(Vec<String>, Vec<String>)>,
    /// Prefixes that came.
    #[schemars(with = "Vec<String>")]
    pub added: Vec<IpNet>,
    /// Prefixes that went.
    #[schemars(with = "Vec<String>")]
    pub removed: Vec<IpNet>,
    /// URLs that came.
    pub added_urls: Vec<String>,
    /// URLs that went.
    pub removed_urls: Vec<String>,
}

impl SetDelta {
    /// Returns whether the category is another one.
    pub fn is_move(&self) -> bool {
        matches!(&self.category, (Some(before), Some(since)) if before != since)
    }
}

impl ListDelta {
    /// Returns what changes from one list to another. Only published sets count.
    pub fn between(before: &List, since: &List) -> Self {
        let by_key = |list| -> BTreeMap<SetKey, EndpointSet> {
            let sets = List::published(list);
            sets.map(|set| (set.key.clone(), set.clone())).collect()
        };
        let (before, since) = (by_key(before), by_key(since));
        let keys: BTreeSet<&SetKey> = before.keys().chain(since.keys()).collect();
        let deltas = keys.into_iter().filter_map(|key| {
            let (before, since) = (before.get(key), since.get(key));
            let delta = set_delta(key.id()?, before, since);
            (before.is_none() || since.is_none() || !delta.is_empty()).then_some(delta)
        });
        ListDelta {
            sets: deltas.collect(),
        }
    }
}

impl SetDelta {
    fn is_empty(&self) -> bool {
        !self.is_move()
            && self.ports.is_none()
            && self.added.is_empty()
            && self.removed.is_empty()
            && self.added_urls.is_empty()
            && self.removed_urls.is_empty()
    }
}

fn set_delta(id: u32, before: Option<&EndpointSet>, since: Option<&EndpointSet>) -> SetDelta {
    let category = |set: Option<&EndpointSet>| set.map(|set| set.category.to_string());
    let ports = |set: Option<&EndpointSet>| -> Vec<String> {
        let ports = set.map(|set| set.ports.iter().map(ToString::to_string).collect());
        ports.unwrap_or_default()
    };
    let prefixes = |set: Option<&EndpointSet>| -> BTreeSet<IpNet> {
        set.map(|set| set.prefixes.iter().copied().collect())
            .unwrap_or_default()
    };
    let urls = |set: Option<&EndpointSet>| -> BTreeSet<String> {
        set.map(|set| set.urls.iter().cloned().collect())
            .unwrap_or_default()
    };
    let (old_ports, new_ports) = (ports(before), ports(since));
    let (old_prefixes, new_prefixes) = (prefixes(before), prefixes(since));
    let (old_urls, new_urls) = (urls(before), urls(since));
    SetDelta {
        id,
        service_area: since
            .or(before)
            .map(|set| set.service_area.clone())
            .unwrap_or_default(),
        change: match (before, since) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        }
        .to_owned(),
        category: (category(before), category(since)),
        ports: (old_ports != new_ports).then_some((old_ports, new_ports)),
        added: new_prefixes.difference(&old_prefixes).copied().collect(),
        removed: old_prefixes.difference(&new_prefixes).copied().collect(),
        added_urls: new_urls.difference(&old_urls).cloned().collect(),
        removed_urls: old_urls.difference(&new_urls).cloned().collect(),
    }
}
