//! `cargo xtask bench`: what Breakout costs, beside what else could be used.

mod check;
mod forward;
mod lookup;
mod measure;
mod memory;
mod peers;
mod plot;
mod program;
mod reload;
mod report;
mod tables;
mod tcp;
mod ways;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use breakout_tests::requirements;
use clap::Parser;
use report::{Goal, Report, number};
use serde::Deserialize;

/// Measures Breakout beside its peers, on this machine.
#[derive(Parser)]
struct Arguments {
    /// Fewer sizes and rounds: about four minutes.
    #[arg(long)]
    quick: bool,
    /// Compare with the last run, whose bench.json is kept, and fail where a ratio is worse by more than its noise.
    #[arg(long, conflicts_with = "only")]
    check: bool,
    /// Only these parts.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Where to write bench.json, bench.md and the plots.
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
}

type Part = (&'static str, fn(&mut Report) -> Result<()>);

const PARTS: &[Part] = &[
    ("lookup", lookup::run),
    ("program", program::run),
    ("forward", forward::run),
    ("flows", forward::flows),
    ("passing", forward::passing),
    ("masquerade", forward::masqueraded),
    ("sizes", forward::sizes),
    ("reload-under-traffic", forward::under_reloads),
    ("tcp", tcp::run),
    ("reload", reload::run),
    ("memory", memory::run),
];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(is_well) if is_well => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns false if a check has found something worse.
fn run(arguments: &Arguments) -> Result<bool> {
    if let Some(missing) = requirements::missing() {
        bail!("the benchmarks {missing}");
    }
    let started = Instant::now();
    let place = |file: &str| arguments.out.join(file);
    let last = if arguments.check {
        Some(Last::read(&place("bench.json"))?)
    } else {
        None
    };
    let mut report = Report::new(arguments.quick || arguments.check)?;
    for (name, part) in PARTS {
        let is_wanted = match &last {
            Some(_) => check::PARTS.contains(name),
            None => arguments.only.is_empty() || arguments.only.iter().any(|only| only == name),
        };
        if is_wanted {
            part(&mut report).with_context(|| format!("part {name}"))?;
        }
    }
    if let Some(last) = last {
        return compare(&last, &report);
    }
    std::fs::create_dir_all(&arguments.out)?;
    std::fs::write(place("bench.json"), serde_json::to_string_pretty(&report)?)?;
    std::fs::write(place("bench.md"), report.text())?;
    plot::draw(&report, &arguments.out)?;
    print!("{}", report.text());
    eprintln!("took {:.0} s", started.elapsed().as_secs_f64());
    Ok(true)
}

/// The part of the last run that a check needs.
#[derive(Deserialize)]
struct Last {
    goals: Vec<Goal>,
}

impl Last {
    fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| {
            format!(
                "cannot read the last run from {}; run `cargo xtask bench` with the version to compare with",
                file.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not of this version's form; run `cargo xtask bench` anew",
                file.display()
            )
        })
    }
}

/// Says what both runs have measured, and returns whether nothing is worse.
fn compare(last: &Last, report: &Report) -> Result<bool> {
    let pairs = check::pairs(&last.goals, &report.goals);
    ensure!(
        !pairs.is_empty(),
        "the last run has none of the parts {}; run `cargo xtask bench` with all of them",
        check::PARTS.join(", ")
    );
    for (before, now) in &pairs {
        println!(
            "{}: {} before, {} now",
            now.what,
            number(before.value.median),
            number(now.value.median)
        );
    }
    for what in check::unpaired(&last.goals, &report.goals) {
        println!("{what}: the last run did not measure that");
    }
    let worse = check::worse(&pairs);
    for one in &worse {
        println!("WORSE: {one}");
    }
    Ok(worse.is_empty())
}
