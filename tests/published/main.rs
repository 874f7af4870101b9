//! The lists as Microsoft's service has sent them. They are not part of the repository: where they are missing, every test
//! is reported as skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use breakout::config::ListConfig;
use breakout::list::{Category, Instance, Judge, List, embedded, read_file};
use breakout_tests::daemon::binary;
use breakout_tests::golden::GOLDEN;
use breakout_tests::rulesets::by_default;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

mod mutations;

type Test = (&'static str, fn() -> Result<()>);

const TESTS: &[Test] = &[
    ("golden_verdicts_by_explain", golden),
    ("every_list_loads", every_list),
    ("worldwide_has_its_optimize_prefixes", worldwide),
    ("no_step_of_the_years_is_refused", steps),
    ("every_mutation_is_refused", mutated),
    ("simulate_says_what_would_have_been_in_force", simulated),
    (
        "two_answers_with_the_same_rules_are_the_same_ruleset",
        same_ruleset,
    ),
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/endpoints")
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let there = directory().is_dir();
    if !there {
        println!(
            "skipped: {} tests of published lists: they are not in {}",
            TESTS.len(),
            directory().display()
        );
    }
    let trials = TESTS.iter().map(|(name, test)| {
        Trial::test(*name, move || {
            test().map_err(|error| Failed::from(format!("{error:#}")))
        })
        .with_ignored_flag(!there)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn published(name: &str, instance: Instance) -> Result<List> {
    Ok(read_file(&directory().join(name), instance)?)
}

/// Each list after each earlier one: also a gateway that was on a shelf for years takes the newest.
fn steps() -> Result<()> {
    let judge = Judge::new(&ListConfig::default(), Vec::new());
    let mut judged = 0;
    for instance in [Instance::Worldwide, Instance::China] {
        let mut files: Vec<PathBuf> = fs::read_dir(directory().join("history"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        let prefix = format!("{instance}-");
        let name = |path: &PathBuf| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        files.retain(|path| name(path).starts_with(&prefix));
        files.sort();
        let mut lists = Vec::new();
        for file in &files {
            match read_file(file, instance) {
                Ok(list) => lists.push(list),
                // The first ones were published before there were addresses in them.
                Err(error) => ensure!(error.to_string().contains("no usable"), "{error}"),
            }
        }
        if instance == Instance::Worldwide {
            lists.push(published("worldwide.2025-11.json", instance)?);
            lists.push(published(
                "worldwide.2026-08-14.optimize-allow.json",
                instance,
            )?);
        }
        lists.push(embedded(instance));
        for (number, new) in lists.iter().enumerate() {
            for before in &lists[..number] {
                let judgement = judge.judge(before, new);
                ensure!(
                    judgement.is_passed(),
                    "{} after {}: {}",
                    new.source,
                    before.source,
                    judgement.refusal()
                );
                judged += 1;
            }
        }
    }
    ensure!(judged > 200, "{judged} steps");
    Ok(())
}

/// The lists of all instances, with their versions.
fn mutated() -> Result<()> {
    let mut lists = Vec::new();
    for file in fs::read_dir(directory().join("history"))? {
        let file = file?.path();
        let name = file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some((instance, version)) = name.split_once('-') else {
            continue;
        };
        let Some(instance) = Instance::from_name(instance) else {
            continue;
        };
        // The first ones were published before there were addresses in them.
        if read_file(&file, instance).is_ok() {
            lists.push((instance, Some(version.to_owned()), fs::read(&file)?));
        }
    }
    for (name, instance) in [
        ("worldwide.2025-11.json", Instance::Worldwide),
        ("usgovgcchigh.2025-11.json", Instance::USGovGCCHigh),
    ] {
        let text = fs::read(directory().join(name))?;
        lists.push((instance, Some("2025112800".to_owned()), text));
    }
    mutations::refused(&lists)
}

/// `breakout list simulate DIRECTORY`, with no configuration at all.
fn simulated() -> Result<()> {
    let output = Command::new(binary()?)
        .args(["list", "simulate", "--json"])
        .arg(directory().join("history"))
        .output()?;
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let count = |instance: &str, outcome: &str| {
        let rows = rows.iter().filter(|row| row["instance"] == instance);
        rows.filter(|row| row["outcome"] == outcome).count()
    };
    for instance in ["Worldwide", "China"] {
        ensure!(count(instance, "start") == 1, "{instance}: {rows:?}");
        ensure!(count(instance, "refused") == 0, "{instance}: {rows:?}");
    }
    ensure!(count("Worldwide", "in_force") > 15 && count("China", "in_force") > 4);
    let unreadable = rows
        .iter()
        .filter(|row| row["outcome"] == "unreadable")
        .count();
    let code = if unreadable == 0 { 0 } else { 10 };
    ensure!(output.status.code() == Some(code), "{:?}", output.status);
    let last = rows.iter().rfind(|row| row["instance"] == "Worldwide");
    let steered = last
        .map(|row| row["steered"][0]["steered"].as_u64())
        .unwrap_or_default();
    ensure!(steered > Some(100_000), "{last:?}");
    Ok(())
}

/// `breakout explain --list FILE`, with no configuration at all.
fn golden() -> Result<()> {
    let list = directory().join("worldwide.2025-11.json");
    for (proto, port, destination, set) in GOLDEN {
        let port = port.to_string();
        let output = Command::new(binary()?)
            .args([
                "explain",
                destination,
                "--proto",
                proto,
                "--port",
                &port,
                "--json",
                "--list",
            ])
            .arg(&list)
            .output()?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let verdict = if set.is_some() { "steer" } else { "pass" };
        ensure!(answer["verdict"] == verdict, "{proto} {port}: {answer}");
        ensure!(answer["source"] == "offline", "{answer}");
        if let Some(id) = set {
            ensure!(answer["endpoint_set"]["id"] == *id, "{answer}");
            ensure!(
                answer["endpoint_set"]["instance"] == "Worldwide",
                "{answer}"
            );
            ensure!(
                answer["prefix"].is_string() && answer["egress"] == "local",
                "{answer}"
            );
        }
    }
    Ok(())
}

fn every_list() -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(directory())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let instance = match name.split('.').next() {
            Some("worldwide") => Instance::Worldwide,
            Some("usgovgcchigh") => Instance::USGovGCCHigh,
            _ => continue,
        };
        let list = published(&name, instance)?;
        ensure!(list.problems.is_empty(), "{name}: {:?}", list.problems);
        count += 1;
    }
    ensure!(count >= 3, "only {count} lists were there");
    Ok(())
}

fn worldwide() -> Result<()> {
    let list = published("worldwide.2025-11.json", Instance::Worldwide)?;
    let counts = list.prefix_counts(&Category::Optimize);
    ensure!(counts == (18, 22), "{counts:?}");
    Ok(())
}

fn same_ruleset() -> Result<()> {
    let hash = |name| -> Result<String> {
        let list = published(name, Instance::Worldwide)?;
        Ok(by_default(&list)?.hash())
    };
    let built_in = by_default(&embedded(Instance::Worldwide))?;
    let newer = hash("worldwide.2026-08-14.optimize-allow.json")?;
    ensure!(hash("worldwide.2025-11.json")? == newer);
    ensure!(built_in.hash() == newer, "the built-in list differs");
    Ok(())
}
