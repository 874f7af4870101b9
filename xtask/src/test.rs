//! `cargo xtask test`: every check and test, one stage after the other.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::object::compile;
use crate::paths;
use crate::process::{cargo, line, output};
use crate::setup::{self, Purpose, recipes};

/// What a stage came to.
#[derive(Default)]
struct Outcome {
    passed: usize,
    failed: usize,
    /// What was skipped, and why.
    skipped: Vec<String>,
}

type Stage = (&'static str, fn() -> Result<Outcome>);

const STAGES: &[Stage] = &[
    ("format", || check(&["fmt", "--all", "--check"])),
    ("clippy", || {
        check(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])
    }),
    ("build", || {
        check(&["build", "--workspace", "--bins", "--locked", "--quiet"])
    }),
    ("unit tests", || {
        tests(&[
            "test",
            "--workspace",
            "--exclude",
            "breakout-tests",
            "--locked",
        ])
    }),
    ("program and namespace tests", || {
        tests(&["test", "--package", "breakout-tests", "--locked"])
    }),
    ("package in Debian 12", package),
    ("under Linux 6.1", || machine("6.1")),
    ("under Linux 6.12", || machine("6.12")),
    ("eBPF by each toolchain", toolchains),
    ("without eBPF toolchain", stub),
];

pub(crate) fn run() -> Result<ExitCode> {
    let started = Instant::now();
    setup::ensure(Purpose::Test)?;
    let mut report = vec![("set-up", started.elapsed(), Outcome::default())];
    for (name, stage) in STAGES {
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = stage().unwrap_or_else(|error| {
            println!("{error:#}");
            Outcome {
                failed: 1,
                ..Outcome::default()
            }
        });
        report.push((name, started.elapsed(), outcome));
    }
    Ok(summarise(&report))
}

fn summarise(report: &[(&str, Duration, Outcome)]) -> ExitCode {
    println!("\n== summary");
    for (name, took, outcome) in report {
        println!(
            "{name:28} {:6.1} s  {:4} passed {:3} failed {:3} skipped",
            took.as_secs_f64(),
            outcome.passed,
            outcome.failed,
            outcome.skipped.len()
        );
    }
    let all = || report.iter().map(|(_, _, outcome)| outcome);
    for skipped in all().flat_map(|outcome| &outcome.skipped) {
        println!("skipped: {skipped}");
    }
    let passed: usize = all().map(|outcome| outcome.passed).sum();
    let failed: usize = all().map(|outcome| outcome.failed).sum();
    let skipped: usize = all().map(|outcome| outcome.skipped.len()).sum();
    println!("total: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a cargo command that succeeds or fails as a whole.
fn check(arguments: &[&str]) -> Result<Outcome> {
    let mut command = cargo();
    command.args(arguments);
    crate::process::stream(&mut command)?;
    Ok(Outcome {
        passed: 1,
        ..Outcome::default()
    })
}

/// Runs tests, shows what they print, and adds up their result lines.
fn tests(arguments: &[&str]) -> Result<Outcome> {
    let mut command = cargo();
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if let Some(reason) = line.strip_prefix("skipped: ") {
            outcome.skipped.push(reason.to_owned());
        }
        if line.starts_with("test result: ") {
            outcome.passed += number_before(&line, " passed");
            outcome.failed += number_before(&line, " failed");
        }
    }
    let status = child.wait()?;
    if !status.success() && outcome.failed == 0 {
        bail!("{} failed ({status})", line(&command));
    }
    Ok(outcome)
}

pub(crate) fn number_before(line: &str, word: &str) -> usize {
    let before = line.split(word).next().unwrap_or_default();
    let number = before.rsplit(' ').next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// Runs the kernel tests under another kernel.
fn machine(series: &str) -> Result<Outcome> {
    if let Err(error) = crate::vm::fetch(series) {
        let skipped = format!("kernel tests under Linux {series}: {error:#}");
        println!("skipped: {skipped}");
        return Ok(Outcome {
            skipped: vec![skipped],
            ..Outcome::default()
        });
    }
    let outcome = crate::vm::boot(series, None)?;
    Ok(Outcome {
        passed: outcome.passed,
        failed: outcome.failed,
        skipped: outcome.skipped,
    })
}

/// Installs, runs, upgrades and purges the package in a machine.
fn package() -> Result<Outcome> {
    let outcome = crate::vm::package()?;
    Ok(Outcome {
        passed: outcome.passed,
        failed: outcome.failed,
        skipped: outcome.skipped,
    })
}

/// Compiles the eBPF object by each of the two recipes.
fn toolchains() -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for (name, recipe) in recipes() {
        let recipe = match recipe {
            Ok(recipe) => recipe,
            Err(error) => {
                let skipped = format!("eBPF by {name}'s Rust: {error:#}");
                println!("skipped: {skipped}");
                outcome.skipped.push(skipped);
                continue;
            }
        };
        let target_dir = paths::ebpf().join(format!("build-{name}"));
        let toolchain = recipe.toolchain();
        let arch = std::env::consts::ARCH;
        match compile(&paths::root(), "classifier", &toolchain, &target_dir, arch) {
            Ok((object, _)) => {
                has_both_programs(&std::fs::read(&object)?)
                    .with_context(|| format!("the object by {name}'s Rust"))?;
                println!("ok: {name}'s Rust ({})", toolchain.rustc.display());
                outcome.passed += 1;
            }
            Err(error) => {
                println!("FAILED: {name}'s Rust: {error}");
                outcome.failed += 1;
            }
        }
    }
    Ok(outcome)
}

/// An eBPF object is an ELF file for machine 247 (EM_BPF).
fn has_both_programs(object: &[u8]) -> Result<()> {
    let contains = |name: &[u8]| object.windows(name.len()).any(|window| window == name);
    if !object.starts_with(b"\x7fELF") || object.get(18..20) != Some(&[247, 0]) {
        bail!("is no eBPF object");
    }
    if !contains(b"breakout_tc\0") || !contains(b"breakout_xdp\0") {
        bail!("lacks a program");
    }
    Ok(())
}

/// Builds `breakout` as on a machine without the eBPF toolchain, and sees that it says what to do.
fn stub() -> Result<Outcome> {
    let target_dir = paths::root().join("target/stub");
    let mut build = cargo();
    build
        .env("BREAKOUT_EBPF", "stub")
        .args([
            "build",
            "--locked",
            "--quiet",
            "--package",
            "breakout",
            "--target-dir",
        ])
        .arg(&target_dir);
    crate::process::stream(&mut build)?;
    let breakout = target_dir.join("debug/breakout");
    let explained = output(Command::new(&breakout).args([
        "explain",
        "52.98.1.1",
        "--proto",
        "tcp",
        "--port",
        "443",
        "--json",
    ]));
    if !explained.is_some_and(|text| text.contains("\"steer\"")) {
        bail!("a breakout without eBPF object does not explain");
    }
    let mut run = Command::new(&breakout);
    run.args(["run", "--config"])
        .arg(paths::root().join("dist/breakout.example.toml"));
    let output = run.output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    let expected = if setup::is_root() {
        "cargo xtask setup"
    } else {
        "needs root"
    };
    if output.status.success() || !message.contains(expected) {
        bail!("a breakout without eBPF object does not say what to do: {message}");
    }
    Ok(Outcome {
        passed: 2,
        ..Outcome::default()
    })
}
