//! `breakout list`.

use std::path::Path;

use anyhow::{Result, bail};

use super::arguments::{ConfigArgument, ListCommand};
use super::changes::print_reloaded;
use super::offline::{Offline, live, offline_config};
use super::output::{print_json, table};
use super::simulate::simulate;
use super::{connect, connect_to, places};
use crate::config::{self, Config};
use crate::control::{FetchReport, KeptReport, ListOrder, ListReport, PendingList};
use crate::controller::{self, report};
use crate::exit::{Code, WithCode, coded};
use crate::list::{Kept, List, ListDelta, Record, SetDelta};

pub(super) async fn list(config: &ConfigArgument, command: &ListCommand) -> Result<()> {
    match command {
        ListCommand::Show { list, json } => {
            let shown = shown(config, list.as_deref()).await?;
            if *json {
                return print_json(&shown);
            }
            print(&shown);
            Ok(())
        }
        ListCommand::Fetch { json } => fetch(config, *json).await,
        ListCommand::History { json } => history(&places(config), *json).await,
        ListCommand::Diff {
            before,
            since,
            json,
        } => diff(&places(config), before, since, *json),
        ListCommand::Pending { json } => pending(&shown(config, None).await?, *json),
        ListCommand::Simulate(arguments) => simulate(config, arguments),
        ListCommand::Accept { version, json } => {
            let version = version.clone();
            change(config, ListOrder::Accept { version }, *json).await
        }
        ListCommand::Rollback { version, json } => {
            let version = version.clone();
            change(config, ListOrder::Rollback { version }, *json).await
        }
        ListCommand::Release { json } => change(config, ListOrder::Release, *json).await,
    }
}

fn loaded(config: &ConfigArgument) -> Result<Config> {
    config::load(&config.path()).code(Code::Config)
}

async fn change(config: &ConfigArgument, order: ListOrder, json: bool) -> Result<()> {
    let done = connect(config).await?.change_list(&order).await?;
    print_reloaded(&done, json)
}

async fn shown(config: &ConfigArgument, list: Option<&Path>) -> Result<ListReport> {
    match live(config, list).await? {
        Some(mut client) => client.list().await,
        None => {
            let offline = Offline::load(offline_config(config)?, list)?;
            Ok(report(
                &offline.preferences,
                &offline.lists,
                &offline.ruleset,
            ))
        }
    }
}

async fn fetch(config: &ConfigArgument, json: bool) -> Result<()> {
    let report = match connect(config).await {
        Ok(mut client) => client.fetch().await?,
        Err(_) => controller::fetch(&loaded(config)?).await?,
    };
    if json {
        print_json(&report)?;
    } else {
        print_fetched(&report);
    }
    let outcome = |wanted: &str| report.instances.iter().any(|list| list.outcome == wanted);
    let code = match (outcome("failed"), outcome("refused")) {
        (true, _) => Code::Unreachable,
        (_, true) => Code::Refused,
        _ => return Ok(()),
    };
    Err(coded(
        anyhow::anyhow!("not every list could be fetched and used"),
        code,
    ))
}

fn print_fetched(report: &FetchReport) {
    for list in &report.instances {
        out!(
            "{}: {}, version {} in force{}",
            list.instance,
            list.outcome,
            list.version.as_deref().unwrap_or("unknown"),
            match &list.fetched {
                Some(fetched) => format!(", {fetched} fetched"),
                None => String::new(),
            }
        );
        if let Some(why) = &list.why {
            out!("  {why}");
        }
        for finding in list.findings.iter().filter(|finding| !finding.refuses) {
            out!("  note: {finding}");
        }
    }
}

async fn history(config: &Config, json: bool) -> Result<()> {
    // On a full disk the controller knows better than the files which list is in force.
    let known = match connect_to(config).await {
        Ok(mut client) => client.status().await.ok().map(|status| status.lists),
        Err(_) => None,
    };
    let in_force = |kept: &Kept| {
        let written = kept.state().record;
        let Some(lists) = &known else { return written };
        let is_known = |record: &&Record| {
            lists.iter().any(|list| {
                list.instance == record.instance.to_string()
                    && list.hash == record.hash
                    && list.version == record.version
            })
        };
        // The same list may have been fetched twice.
        let mut matching = kept
            .records()
            .iter()
            .filter(is_known)
            .map(|record| record.number);
        match matching.clone().any(|number| written == Some(number)) {
            true => written,
            false => matching.next_back(),
        }
    };
    let kept = config.list.instances().into_iter();
    let kept: Vec<Kept> = kept
        .map(|instance| Kept::read_only(&config.state.directory, instance))
        .collect();
    let reports = kept.iter().flat_map(|kept| {
        let (records, in_force) = (kept.records(), in_force(kept));
        records
            .iter()
            .map(move |record| KeptReport::of(record, in_force == Some(record.number)))
    });
    let reports: Vec<KeptReport> = reports.collect();
    if json {
        return print_json(&reports);
    }
    let header = [
        "",
        "list",
        "version",
        "hash",
        "fetched",
        "judgement",
        "from",
    ];
    let mut lines = table(&header, &[]);
    for report in reports {
        lines.add_row([
            if report.in_force { "*" } else { "" }.to_owned(),
            report.instance,
            report.version.unwrap_or_else(|| "unknown".to_owned()),
            report.hash.get(..12).unwrap_or_default().to_owned(),
            report.fetched.to_string(),
            match (report.accepted, report.why) {
                (Some(at), _) => format!("accepted at {at}"),
                (None, Some(why)) => format!("refused: {why}"),
                (None, None) => report.outcome,
            },
            report.source,
        ]);
    }
    for damaged in kept.iter().flat_map(Kept::damaged) {
        eprintln!("note: not used: {damaged}");
    }
    out!("{lines}");
    Ok(())
}

/// A list by what a person calls it: a file, a kept version, the start of a hash, or `builtin`.
fn named(config: &Config, name: &str) -> Result<List> {
    let offline = Offline::load(config.clone(), Some(name.as_ref()))?;
    match offline.lists.into_iter().next() {
        Some(list) => Ok(list),
        None => bail!("there is no list {name}"),
    }
}

fn diff(config: &Config, before: &str, since: &str, json: bool) -> Result<()> {
    let delta = ListDelta::between(&named(config, before)?, &named(config, since)?);
    if json {
        return print_json(&delta);
    }
    if delta.sets.is_empty() {
        out!("no difference");
    }
    for set in &delta.sets {
        print_delta(set);
    }
    Ok(())
}

fn print_delta(set: &SetDelta) {
    let category = set.category.1.as_ref().or(set.category.0.as_ref());
    out!(
        "{} endpoint set {} ({}, {})",
        set.change,
        set.id,
        set.service_area,
        category.map_or("", String::as_str)
    );
    if let (Some(before), Some(since), true) = (&set.category.0, &set.category.1, set.is_move()) {
        out!("  category {before} -> {since}");
    }
    if let Some((before, since)) = &set.ports {
        out!("  ports {} -> {}", before.join(", "), since.join(", "));
    }
    let prefixes = |sign: &str, prefixes: &[ipnet::IpNet]| {
        prefixes.iter().for_each(|prefix| out!("  {sign} {prefix}"));
    };
    prefixes("+", &set.added);
    prefixes("-", &set.removed);
    set.added_urls.iter().for_each(|url| out!("  + {url}"));
    set.removed_urls.iter().for_each(|url| out!("  - {url}"));
}

fn pending(shown: &ListReport, json: bool) -> Result<()> {
    let withdrawn = shown
        .endpoint_sets
        .iter()
        .filter(|set| set.withdrawn.is_some());
    let report = PendingList {
        pending: shown.pending_additions.clone(),
        withdrawn: withdrawn.cloned().collect(),
    };
    if json {
        return print_json(&report);
    }
    if report.pending.is_empty() && report.withdrawn.is_empty() {
        out!("nothing is pending, and nothing is in its grace time");
    }
    for report in &report.pending {
        out!(
            "{} {}: from {} on, in force already",
            report.instance,
            report.pending.id,
            report.pending.effective
        );
        report
            .pending
            .added
            .iter()
            .for_each(|added| out!("  + {added}"));
    }
    for set in &report.withdrawn {
        if let (Some(instance), Some(id), Some(since)) = (&set.instance, set.id, set.withdrawn) {
            out!("{instance} {id}: withdrawn at {since}, in its grace time");
            out!("  {}", set.ports.join(", "));
            set.prefixes.iter().for_each(|prefix| out!("  - {prefix}"));
        }
    }
    Ok(())
}

fn print(shown: &ListReport) {
    for list in &shown.lists {
        out!(
            "{} version {} from {}",
            list.instance,
            list.version.as_deref().unwrap_or("unknown"),
            list.source
        );
    }
    out!("");
    let header = ["id", "area", "category", "egress", "ports", "prefixes"];
    let mut sets = table(&header, &[0]);
    let several = shown.lists.len() > 1;
    for set in &shown.endpoint_sets {
        let id = set.id.map_or(String::new(), |id| id.to_string());
        sets.add_row([
            match &set.instance {
                Some(instance) if several => format!("{instance} {id}"),
                _ => id,
            },
            set.service_area.clone(),
            match set.withdrawn {
                Some(_) => format!("{} (withdrawn)", set.category),
                None => set.category.clone(),
            },
            set.egress.clone().unwrap_or_else(|| "-".to_owned()),
            set.ports.join("\n"),
            set.prefixes.join("\n"),
        ]);
    }
    out!("{sets}");
    for unusable in &shown.unusable {
        out!("not usable: {unusable}");
    }
}
