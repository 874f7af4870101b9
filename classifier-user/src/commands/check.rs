//! `breakout check`.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use nix::net::if_::if_nametoindex;
use schemars::JsonSchema;
use serde::Serialize;

use super::arguments::ConfigArgument;
use super::offline::Offline;
use super::output::print_json;
use crate::config::{self, ListSource};
use crate::control::{ListSummary, Unusable};
use crate::controller::summary;
use crate::doctor::{Finding, Level, examine};
use crate::exit::{Code, WithCode};
use crate::health;
use crate::policy::{Build, sign_in_notes};
use crate::ruleset::{Rule, Ruleset, compile};

/// Report of `breakout check`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CheckReport {
    /// The configuration file.
    config: String,
    /// The list of the first instance.
    list: ListSummary,
    /// The lists of all instances.
    lists: Vec<ListSummary>,
    /// The ids of the published endpoint sets that are steered.
    steered_sets: Vec<u32>,
    /// The policy's rules, as `breakout status` counts them.
    rules: Vec<String>,
    /// The hash of the ruleset.
    ruleset_hash: String,
    /// Bytes of its table.
    table_bytes: usize,
    /// Rows and values of the lists that cannot be used.
    unusable: Vec<Unusable>,
    /// Warnings: settings that may be meant otherwise.
    warnings: Vec<String>,
    /// Findings of `breakout doctor`; empty if it may not look.
    findings: Vec<Finding>,
    /// Reason why this machine was not looked at, if so.
    not_looked_at: Option<String>,
}

pub(super) async fn check(config: &ConfigArgument, list: Option<&Path>, json: bool) -> Result<()> {
    let path = config.path();
    let offline = Offline::load(config::load(&path).code(Code::Config)?, list)?;
    let ruleset = &offline.ruleset;
    let (findings, not_looked_at) = match findings(&offline).await {
        Ok(findings) => (findings, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let steered = ruleset.rules.iter().filter(|rule| rule.is_steered());
    let report = CheckReport {
        config: path.display().to_string(),
        list: offline.lists.first().map(summary).unwrap_or_default(),
        lists: offline.lists.iter().map(summary).collect(),
        steered_sets: steered.filter_map(|rule| rule.key.id()).collect(),
        rules: ruleset.policy.clone(),
        ruleset_hash: ruleset.hash(),
        table_bytes: compile(ruleset).code(Code::List)?.words().len() * 4,
        unusable: offline.lists.iter().flat_map(Unusable::of).collect(),
        warnings: warnings(&offline)?,
        findings,
        not_looked_at,
    };
    if json {
        print_json(&report)?;
    } else {
        print(&report, ruleset);
    }
    let mut findings = report.findings.iter();
    match findings.find(|finding| finding.level == Level::Error) {
        None => Ok(()),
        Some(error) => Err(anyhow!(
            "the configuration is ok, but this machine is not: {}; see breakout doctor",
            error.what
        ))
        .code(Code::Attention),
    }
}

fn print(report: &CheckReport, ruleset: &Ruleset) {
    out!("configuration {}: ok", report.config);
    for list in &report.lists {
        out!(
            "list {} (version {}) from {}: ok, {} endpoint sets",
            list.instance,
            list.version.as_deref().unwrap_or("unknown"),
            list.source,
            list.sets,
        );
    }
    out!(
        "policy of {} rules: {} endpoint sets are steered",
        report.rules.len(),
        ruleset
            .rules
            .iter()
            .filter(|rule| rule.is_steered())
            .count()
    );
    for warning in &report.warnings {
        out!("warning: {warning}");
    }
    report.findings.iter().for_each(super::doctor::print);
    match &report.not_looked_at {
        None => out!(
            "this machine was looked at as by breakout doctor: {} findings; gateways are learnt by breakout run",
            report.findings.len()
        ),
        Some(why) => out!("this machine was not looked at: {why}"),
    }
    for unusable in &report.unusable {
        out!("  {unusable}");
    }
}

/// Returns what stands in the way on this machine. The configuration may be checked on another one, or without root.
async fn findings(offline: &Offline) -> Result<Vec<Finding>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("that needs root");
    }
    let lans = offline.config.lan.iter().map(|lan| &lan.interface);
    let egresses = offline.config.egress.values();
    let mut interfaces = lans.chain(egresses.map(|egress| &egress.interface));
    if !interfaces.any(|name| if_nametoindex(name.as_str()).is_ok()) {
        bail!("it has none of the interfaces that the configuration names");
    }
    examine(&offline.config, &offline.ruleset).await
}

fn warnings(offline: &Offline) -> Result<Vec<String>> {
    let build = Build {
        config: &offline.config,
        preferences: &offline.preferences,
    };
    let policy = build.policy().code(Code::Config)?;
    let mut warnings = Vec::new();
    if !offline.ruleset.rules.iter().any(Rule::is_steered) {
        warnings
            .push("nothing is steered: no usable endpoint set is steered by the policy".to_owned());
    }
    for (number, rule) in (0u16..).zip(&policy.rules) {
        let mut choices = offline.ruleset.rules.iter().flat_map(|rule| &rule.choices);
        if !choices.any(|choice| choice.policy == number) {
            warnings.push(format!(
                "policy \"{}\" decides nothing: it is about no endpoint set of the list, or rules before it decide for all of them",
                rule.name
            ));
        }
    }
    for custom in &offline.config.custom {
        let is_named = |rule: &config::PolicyConfig| rule.custom.contains(&custom.name);
        if !offline.config.policy.iter().any(is_named) {
            warnings.push(format!(
                "[[custom]] \"{}\" is not used: no [[policy]] names it",
                custom.name
            ));
        }
    }
    let list = &offline.config.list;
    let watched = match list.list_source() {
        ListSource::Watched(file) => Some(file),
        _ => None,
    };
    for file in [watched.as_ref(), list.ca_file.as_ref()]
        .into_iter()
        .flatten()
    {
        if !file.is_file() {
            warnings.push(format!("[list] there is no file {}", file.display()));
        }
    }
    let ca_file = offline.config.health.ca_file.as_deref();
    if let Err(error) = health::check_ca_file(ca_file) {
        warnings.push(format!("{error:#}"));
    }
    if offline.config.shadow {
        warnings
            .push("shadow = true: nothing is steered, it is only shown what would be".to_owned());
    }
    for list in &offline.lists {
        warnings.extend(sign_in_notes(&policy, &list.sets));
    }
    Ok(warnings)
}
