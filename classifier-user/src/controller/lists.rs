//! From configuration to ruleset: which lists, and what the policy makes of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::state::Persistent;
use crate::config::{Config, ListSource};
use crate::control::{ListReport, ListSummary, ListedSet, PendingReport, Unusable};
use crate::exit::{Code, WithCode};
use crate::list::{Kept, List, embedded, read_file};
use crate::policy::{Build, custom_sets};
use crate::ruleset::{Rule, Ruleset, Slots, compile};
use crate::timestamp::Timestamp;

/// The lists that a configuration leads to without a controller: from `--list`, from `[list] file`, those that a controller
/// has kept, or the built-in ones.
///
/// # Errors
///
/// When a named file is no list.
pub fn read_lists(config: &Config, file: Option<&Path>) -> Result<Vec<List>> {
    let source = match file {
        Some(file) => ListSource::Fixed(file.to_owned()),
        None => config.list.list_source(),
    };
    let instances = config.list.instances().into_iter();
    let lists = instances.map(|instance| match &source {
        ListSource::Fixed(file) => read_file(file, instance).code(Code::List),
        ListSource::BuiltIn => Ok(embedded(instance)),
        ListSource::Service(_) | ListSource::Watched(_) => {
            Ok(Kept::read_only(&config.state.directory, instance).in_force())
        }
    });
    lists.collect()
}

/// The indices that a controller has given to the preferences of a configuration, or would give them.
pub fn offline_preferences(config: &Config) -> BTreeMap<String, u8> {
    let persistent = Persistent::read(&config.state.directory);
    let mut persistent = persistent.unwrap_or_default();
    if persistent.assign_indices(config).is_err() {
        persistent.preferences.clear();
    }
    // With a list and no configuration the default policy names an egress all the same.
    persistent.preferences
}

/// The name with an index.
pub fn name_of(indices: &BTreeMap<String, u8>, index: u8) -> Option<String> {
    let mut entries = indices.iter();
    entries
        .find(|(_, other)| **other == index)
        .map(|(name, _)| name.clone())
}

/// Returns what a rule may prefer; nothing if its packets pass.
pub fn preference_names(indices: &BTreeMap<String, u8>, rule: &Rule) -> Option<String> {
    let preferences = rule.preferences();
    let names: Vec<String> = (preferences.iter())
        .filter_map(|index| name_of(indices, *index))
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Returns what the configuration's policy makes of lists and custom sets.
///
/// # Errors
///
/// When there are too many endpoint sets or conditions, or a custom set cannot be read.
pub fn make_ruleset(
    config: &Config,
    lists: &[List],
    preferences: &BTreeMap<String, u8>,
    slots: &mut Slots,
    now: Timestamp,
) -> Result<Ruleset> {
    let policy = Build {
        config,
        preferences,
    }
    .policy()
    .code(Code::Config)?;
    let custom = custom_sets(config).code(Code::Config)?;
    let sets = lists.iter().flat_map(|list| &list.sets).chain(&custom);
    Ruleset::new(sets, &policy, slots, now).code(Code::List)
}

/// [`make_ruleset`], compiled once to see that it fits into the data path.
///
/// # Errors
///
/// As [`make_ruleset`], and when it is too large.
pub fn make_loadable(
    config: &Config,
    lists: &[List],
    preferences: &BTreeMap<String, u8>,
    slots: &mut Slots,
    now: Timestamp,
) -> Result<Ruleset> {
    let ruleset = make_ruleset(config, lists, preferences, slots, now)?;
    compile(&ruleset).code(Code::List)?;
    Ok(ruleset)
}

/// A list in a line.
pub fn summary(list: &List) -> ListSummary {
    ListSummary {
        instance: list.instance.to_string(),
        version: list.version.clone(),
        hash: list.hash(),
        source: list.source.clone(),
        sets: list.published().count(),
        problems: list.problems.len(),
        withdrawn: list.sets.len() - list.published().count(),
        pending: list.pending_at(Timestamp::now()).count(),
    }
}

/// Lists with all their endpoint sets and what is done with them.
pub fn report(indices: &BTreeMap<String, u8>, lists: &[List], ruleset: &Ruleset) -> ListReport {
    let sets = lists.iter().flat_map(|list| &list.sets).map(|set| {
        let is_same = |rule: &&Rule| rule.key == set.key && rule.withdrawn == set.withdrawn;
        let rule = ruleset.rules.iter().find(is_same);
        ListedSet {
            instance: set.key.instance().map(|instance| instance.to_string()),
            id: set.key.id(),
            service_area: set.service_area.clone(),
            category: set.category.to_string(),
            prefixes: set.prefixes.iter().map(ToString::to_string).collect(),
            ports: set.ports.iter().map(ToString::to_string).collect(),
            egress: rule.and_then(|rule| preference_names(indices, rule)),
            withdrawn: set.withdrawn,
        }
    });
    ListReport {
        summary: lists.first().map(summary).unwrap_or_default(),
        lists: lists.iter().map(summary).collect(),
        endpoint_sets: sets.collect(),
        unusable: lists.iter().flat_map(Unusable::of).collect(),
        pending_additions: lists.iter().flat_map(PendingReport::of).collect(),
    }
}
