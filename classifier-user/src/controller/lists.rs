//! From configuration to ruleset: which list, and what the policy makes of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use crate::config::Config;
use crate::control::{ListReport, ListSummary, ListedSet, Unusable};
use crate::exit::{Code, WithCode};
use crate::list::{Instance, List, embedded, read_file};
use crate::policy::{Action, Policy};
use crate::ruleset::{Ruleset, Slots};

/// The list that the configuration names: from `--list`, from `[list] file`, or built in.
///
/// # Errors
///
/// When the file is no list.
pub fn read_list(config: &Config, file: Option<&Path>) -> Result<List> {
    let instance = Instance::from_name(&config.list.instance)
        .with_context(|| format!("\"{}\" is no instance", config.list.instance))
        .code(Code::Config)?;
    match file.or(config.list.file.as_deref()) {
        Some(file) => read_file(file, instance).code(Code::List),
        None => Ok(embedded(instance)),
    }
}

/// The indices that the egresses of a configuration get where no controller has given them any.
pub fn offline_indices(config: &Config) -> BTreeMap<String, u8> {
    let names = config.egress.keys().cloned();
    let mut indices: BTreeMap<String, u8> = names.zip(0..).collect();
    // With a list and no configuration the default policy names an egress all the same.
    indices
        .entry(config.default_egress().to_owned())
        .or_insert(0);
    indices
}

/// The name of the egress with an index.
pub fn egress_name(indices: &BTreeMap<String, u8>, index: u8) -> Option<String> {
    let mut entries = indices.iter();
    entries
        .find(|(_, other)| **other == index)
        .map(|(name, _)| name.clone())
}

/// What the configuration's policy makes of a list.
///
/// # Errors
///
/// When there are too many endpoint sets.
pub fn make_ruleset(
    config: &Config,
    list: &List,
    indices: &BTreeMap<String, u8>,
    slots: &mut Slots,
) -> Result<Ruleset> {
    let egress = indices.get(config.default_egress());
    let policy = Policy {
        egress: *egress.context("every egress has an index")?,
    };
    Ruleset::new(std::slice::from_ref(list), &policy, slots)
}

/// A list in a line.
pub fn summary(list: &List) -> ListSummary {
    ListSummary {
        instance: list.instance.to_string(),
        version: list.version.clone(),
        source: list.source.clone(),
        sets: list.sets.len(),
        problems: list.problems.len(),
    }
}

/// A list with all its endpoint sets and what is done with them.
pub fn report(indices: &BTreeMap<String, u8>, list: &List, ruleset: &Ruleset) -> ListReport {
    let sets = list.sets.iter().map(|set| {
        let rule = ruleset.rules.iter().find(|rule| rule.key == set.key);
        ListedSet {
            id: set.key.id,
            service_area: set.service_area.clone(),
            category: set.category.to_string(),
            prefixes: set.prefixes.iter().map(ToString::to_string).collect(),
            ports: set.ports.iter().map(ToString::to_string).collect(),
            egress: rule.and_then(|rule| match rule.action {
                Action::Steer(index) => egress_name(indices, index),
                Action::Pass => None,
            }),
        }
    });
    ListReport {
        summary: summary(list),
        endpoint_sets: sets.collect(),
        unusable: list.problems.iter().map(Unusable::from).collect(),
    }
}
