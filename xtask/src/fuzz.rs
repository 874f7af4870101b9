//! `cargo xtask fuzz`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::number_behind;
use crate::{paths, process, setup};

/// What libFuzzer needs to see which ways the code takes. They are flags of the stable compiler, for any LLVM.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Coverflow-checks=yes -Cdebug-assertions=yes";

/// A fuzz target: its name, the package that it is in, the program, and the longest input.
struct Target {
    name: &'static str,
    package: &'static str,
    program: &'static str,
    longest: u32,
}

const fn parser(name: &'static str) -> Target {
    Target {
        name,
        package: "classifier-user/fuzz",
        program: "parsers",
        longest: 1 << 16,
    }
}

const TARGETS: [Target; 8] = [
    Target {
        name: "walk",
        package: "common/fuzz",
        program: "walk",
        longest: 2048,
    },
    parser("list"),
    parser("config"),
    parser("custom"),
    parser("capture"),
    parser("control"),
    parser("state"),
    parser("netlink"),
];

/// What `cargo xtask fuzz` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How long each target is fed, in seconds.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Feed every target: the header walk, and the parsers of all that comes from outside.
    #[arg(long, conflicts_with = "target")]
    all: bool,
    /// The target: walk, list, config, custom, capture, control, state or netlink.
    #[arg(long, default_value = "walk")]
    target: String,
    /// Stop after so many runs of a target, should that be sooner.
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
}

/// Feeds parsers. What is found wrong is left in `target/fuzz`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Fuzz)?;
    let is_wanted = |target: &&Target| arguments.all || target.name == arguments.target;
    let targets: Vec<&Target> = TARGETS.iter().filter(is_wanted).collect();
    if targets.is_empty() {
        let names = TARGETS.map(|target| target.name).join(", ");
        bail!(
            "there is no target {}; there are: {names}",
            arguments.target
        );
    }
    for (name, runs) in feed(&targets, arguments.seconds, arguments.runs)? {
        println!("{name}: {runs} runs without a finding");
    }
    Ok(ExitCode::SUCCESS)
}

/// Every target for so long. Returns how many there are.
pub(crate) fn all(seconds: u32) -> Result<usize> {
    let targets: Vec<&Target> = TARGETS.iter().collect();
    for (name, runs) in feed(&targets, seconds, None)? {
        println!("{name}: {runs} runs without a finding");
    }
    Ok(TARGETS.len())
}

/// Compiles what is needed and feeds the targets, two at a time. Returns how often each ran.
fn feed(
    targets: &[&'static Target],
    seconds: u32,
    runs: Option<u64>,
) -> Result<Vec<(&'static str, u64)>> {
    let mut packages: Vec<_> = targets.iter().map(|target| target.package).collect();
    packages.dedup();
    for package in packages {
        compile(package)?;
    }
    let mut fed = Vec::new();
    for pair in targets.chunks(2) {
        let running: Vec<_> = pair
            .iter()
            .copied()
            .map(|target| thread::spawn(move || feed_one(target, seconds, runs)))
            .collect();
        for (target, thread) in pair.iter().zip(running) {
            let outcome = thread.join().expect("nothing panics here");
            fed.push((target.name, outcome?));
        }
    }
    Ok(fed)
}

fn place() -> PathBuf {
    paths::root().join("target/fuzz")
}

/// With a target named, build scripts are compiled without the flags.
fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn compile(package: &str) -> Result<()> {
    let mut build = process::cargo();
    build
        .current_dir(paths::root().join(package))
        .env("RUSTFLAGS", COVERAGE)
        // No parser needs the programs.
        .env("BREAKOUT_EBPF", "stub")
        .args([
            "build",
            "--release",
            "--quiet",
            "--locked",
            "--target",
            &triple(),
        ])
        .arg("--target-dir")
        .arg(place());
    process::stream(&mut build)
}

fn feed_one(target: &Target, seconds: u32, runs: Option<u64>) -> Result<u64> {
    let place = place();
    let corpus = place.join("corpus").join(target.name);
    fs::create_dir_all(&corpus)?;
    let program = place.join(triple()).join("release").join(target.program);
    let mut fuzz = Command::new(program);
    fuzz.env("BREAKOUT_FUZZ", target.name).arg(&corpus);
    let seeds = paths::root()
        .join(target.package)
        .join("seeds")
        .join(target.name);
    if seeds.is_dir() {
        fuzz.arg(seeds);
    }
    fuzz.arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.longest))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
        .arg(format!(
            "-artifact_prefix={}/{}-",
            place.display(),
            target.name
        ))
        .args(runs.map(|runs| format!("-runs={runs}")))
        .stdin(Stdio::null());
    let output = fuzz
        .output()
        .with_context(|| format!("cannot run the target {}", target.name))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("fuzz target {}:\n{report}", target.name);
    }
    let runs = number_behind(&report, "stat::number_of_executed_units:");
    runs.with_context(|| format!("the target {} does not say how often it ran", target.name))
}
