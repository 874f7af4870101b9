//! `breakout check`.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::arguments::ConfigArgument;
use super::output::print_json;
use crate::config;
use crate::control::{ListSummary, Unusable};
use crate::controller::{make_ruleset, offline_indices, read_list, summary};
use crate::exit::{Code, WithCode};
use crate::policy::Action;
use crate::ruleset::{Slots, compile};

#[derive(Serialize)]
struct Report {
    config: String,
    list: ListSummary,
    steered_sets: Vec<u32>,
    ruleset_hash: String,
    table_bytes: usize,
    unusable: Vec<Unusable>,
}

pub(super) fn check(config: &ConfigArgument, list: Option<&Path>, json: bool) -> Result<()> {
    let path = config.path();
    let config = config::load(&path).code(Code::Config)?;
    let list = read_list(&config, list)?;
    let ruleset = make_ruleset(
        &config,
        &list,
        &offline_indices(&config),
        &mut Slots::default(),
    )
    .code(Code::List)?;
    let steered = ruleset
        .rules
        .iter()
        .filter(|rule| matches!(rule.action, Action::Steer(_)));
    let report = Report {
        config: path.display().to_string(),
        list: summary(&list),
        steered_sets: steered.map(|rule| rule.key.id).collect(),
        ruleset_hash: ruleset.hash(),
        table_bytes: compile(&ruleset).code(Code::List)?.words().len() * 4,
        unusable: list.problems.iter().map(Unusable::from).collect(),
    };
    if json {
        return print_json(&report);
    }
    println!("configuration {}: ok", report.config);
    println!(
        "list {} (version {}) from {}: ok, {} endpoint sets, {} steered to \"{}\"",
        report.list.instance,
        report.list.version.as_deref().unwrap_or("unknown"),
        report.list.source,
        report.list.sets,
        report.steered_sets.len(),
        config.default_egress(),
    );
    if report.steered_sets.is_empty() {
        println!("warning: nothing is steered: the list has no usable set in category Optimize");
    }
    println!("interfaces, gateways and the kernel were not looked at; `breakout run` does that");
    for unusable in &report.unusable {
        println!("  endpoint set {}: {}", unusable.id, unusable.problem);
    }
    Ok(())
}
