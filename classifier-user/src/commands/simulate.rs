//! `breakout list simulate`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};

use super::arguments::ConfigArgument;
use super::offline::offline_config;
use super::orders::Simulate;
use super::output::{print_json, table};
use crate::config::Config;
use crate::controller::{make_loadable, offline_preferences};
use crate::exit::{Code, WithCode, coded};
use crate::list::{Instance, Judge, List, Simulated, Simulation, embedded, read_file};
use crate::plain::plain;
use crate::policy::Build;
use crate::ruleset::Slots;
use crate::timestamp::Timestamp;

pub(super) fn simulate(config: &ConfigArgument, arguments: &Simulate) -> Result<()> {
    let config = offline_config(config)?;
    let named = match &arguments.instance {
        None => None,
        Some(name) => Some(
            Instance::from_name(name)
                .with_context(|| format!("there is no instance {}", plain(name)))
                .code(Code::Usage)?,
        ),
    };
    let usual = config.list.instances().first().copied();
    let usual = named.or(usual).unwrap_or(Instance::Worldwide);
    let preferences = offline_preferences(&config);
    let build = Build {
        config: &config,
        preferences: &preferences,
    };
    let policy = build.policy().code(Code::Config)?;
    let judge =
        Judge::new(&config.list, Vec::new()).steering(Arc::new(move |set| policy.steers(set)));
    let mut simulations: BTreeMap<Instance, Simulation<'_>> = BTreeMap::new();
    let mut all = Vec::new();
    for file in files(&arguments.paths)? {
        let instance = named.or_else(|| instance_of(&file)).unwrap_or(usual);
        all.push(match read_file(&file, instance) {
            Ok(mut list) => {
                list.version = version_of(&file).or(list.version);
                let start = arguments.builtin.then(|| embedded(instance));
                let simulation = simulations.entry(instance);
                let simulation = simulation.or_insert_with(|| Simulation::new(&judge, start));
                simulation.next(list, |list| loads(&config, list, &preferences))
            }
            Err(error) => Simulated {
                source: plain(&file.display().to_string()).into_owned(),
                instance: instance.to_string(),
                version: version_of(&file),
                outcome: "unreadable".to_owned(),
                why: Some(error.to_string()),
                findings: Vec::new(),
                agrees_with: None,
                steered: Vec::new(),
            },
        });
    }
    if arguments.json {
        print_json(&all)?;
    } else {
        print(&all);
    }
    let is_bad = |one: &&Simulated| matches!(one.outcome.as_str(), "refused" | "unreadable");
    match all.iter().filter(is_bad).count() {
        0 => Ok(()),
        count => Err(coded(
            anyhow!(
                "{count} of {} lists would not have come into force",
                all.len()
            ),
            Code::Refused,
        )),
    }
}

/// Says why a list cannot be loaded with this configuration, if so.
fn loads(config: &Config, list: &List, preferences: &BTreeMap<String, u8>) -> Result<(), String> {
    let (mut slots, now) = (Slots::default(), Timestamp::now());
    let lists = std::slice::from_ref(list);
    let ruleset = make_loadable(config, lists, preferences, &mut slots, now);
    ruleset.map(drop).map_err(|error| format!("{error:#}"))
}

/// The files that are named, and those of directories that are named, by the version in their names.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(|| format!("cannot read the directory {}", path.display()))
            .code(Code::List)?;
        let mut files: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        files.retain(|file| {
            file.extension()
                .is_some_and(|extension| extension == "json")
        });
        files.sort_by_key(|file| (version_of(file), file.clone()));
        if files.is_empty() {
            let error = anyhow!(
                "there is no list (*.json) in the directory {}",
                path.display()
            );
            return Err(error).code(Code::List);
        }
        all.extend(files);
    }
    Ok(all)
}

/// The first ten digits in a row in a file's name.
fn version_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_string_lossy().into_owned();
    let mut numbers = name.split(|character: char| !character.is_ascii_digit());
    numbers.find(|digits| digits.len() == 10).map(str::to_owned)
}

/// The instance whose name a file's begins with, as in `China-2019062800.json`.
fn instance_of(file: &Path) -> Option<Instance> {
    let name = file.file_name()?.to_string_lossy();
    let first = name
        .split(|character: char| !character.is_ascii_alphabetic())
        .next()?;
    Instance::from_name(first)
}

fn print(all: &[Simulated]) {
    let header = [
        "list", "version", "outcome", "IPv4", "+", "-", "IPv6 /64", "+", "-",
    ];
    let mut lines = table(&header, &[3, 4, 5, 6, 7, 8]);
    for one in all {
        let mut row = vec![
            one.instance.clone(),
            one.version.clone().unwrap_or_else(|| one.source.clone()),
            one.outcome.replace('_', " "),
        ];
        for family in &one.steered {
            row.extend(
                [family.steered, family.added, family.removed].map(|count| count.to_string()),
            );
        }
        row.resize(header.len(), String::new());
        lines.add_row(row);
    }
    out!("{lines}");
    for one in all {
        let name = one.version.as_ref().unwrap_or(&one.source);
        if let Some(why) = &one.why {
            out!("{} {name}: {}: {why}", one.instance, one.outcome);
        }
        if let Some(before) = &one.agrees_with {
            out!(
                "  it agrees with {before}, which was refused before it: that raises a louder alert"
            );
        }
        for finding in one.findings.iter().filter(|finding| !finding.refuses) {
            out!("{} {name}: note: {finding}", one.instance);
        }
    }
}
