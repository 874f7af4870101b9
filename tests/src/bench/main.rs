//! `cargo xtask bench`: what Breakout costs, beside what else could be used.

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

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use breakout_tests::requirements;
use clap::Parser;
use report::Report;

/// Measures Breakout beside its peers, on this machine.
#[derive(Parser)]
struct Arguments {
    /// Fewer sizes and rounds: about two minutes.
    #[arg(long)]
    quick: bool,
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
    ("passing", forward::passing),
    ("tcp", tcp::run),
    ("reload", reload::run),
    ("memory", memory::run),
];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(missing) = requirements::missing() {
        bail!("the benchmarks {missing}");
    }
    let started = Instant::now();
    let mut report = Report::new(arguments.quick)?;
    for (name, part) in PARTS {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            part(&mut report).with_context(|| format!("part {name}"))?;
        }
    }
    std::fs::create_dir_all(&arguments.out)?;
    let place = |file: &str| arguments.out.join(file);
    std::fs::write(place("bench.json"), serde_json::to_string_pretty(&report)?)?;
    std::fs::write(place("bench.md"), report.text())?;
    plot::draw(&report, &arguments.out)?;
    print!("{}", report.text());
    eprintln!("took {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
