//! `cargo xtask test`: every check and test, one stage after the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::fuzz;
use crate::object::compile;
use crate::paths;
use crate::process::{cargo, line, output};
use crate::setup::{self, Purpose, recipes};
use crate::vm::{self, Machine};

/// What a stage came to.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    /// What failed, each by its name or in its own words.
    pub(crate) failed: Vec<String>,
    /// How many failed by the result lines.
    pub(crate) told: usize,
    /// True if the lines that follow say why the last one failed.
    pub(crate) in_report: bool,
    /// What failed at first and passed when it was run again, and how it failed.
    pub(crate) unsteady: Vec<String>,
    /// What was skipped, and why.
    pub(crate) skipped: Vec<String>,
}

/// A stage that has been run: its name, how long it took, and what it came to.
type Row = (&'static str, Duration, Outcome);

/// How much of a failure's report the summary shows, in bytes.
const REPORT: usize = 300;

/// Number of times that tests switch lists and policies under traffic, unless the environment says so: a whole run shall be short enough for
/// every change.
const SWITCHES: [(&str, &str); 2] = [
    ("BREAKOUT_TEST_SWITCHES", "200"),
    ("BREAKOUT_TEST_LISTS", "300"),
];

type Stage = (&'static str, fn() -> Result<Outcome>);
type Prepare = fn() -> Result<Machine>;

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
    ("without eBPF toolchain", stub),
    ("build", || {
        check(&["build", "--workspace", "--bins", "--locked", "--quiet"])
    }),
    ("unit tests", || {
        tests(
            &[
                "test",
                "--workspace",
                "--exclude",
                "breakout-tests",
                "--locked",
            ],
            1,
        )
    }),
    // What it packages is the other build that upgrades are tried with.
    ("README's commands", readme),
    ("program and namespace tests", || {
        tests(&["test", "--package", "breakout-tests", "--locked"], 2)
    }),
    ("eBPF by each toolchain", toolchains),
    ("fuzz targets, 20 s each", || {
        Ok(Outcome {
            passed: fuzz::all(20)?,
            ..Outcome::default()
        })
    }),
];

/// Machines that run at the same time, because they wait most of it.
const MACHINES: &[(&str, Prepare)] = &[
    ("package in Debian 12", vm::package),
    ("under Linux 6.1", || vm::kernel("6.1", None)),
    ("under Linux 6.12", || vm::kernel("6.12", None)),
];

/// What `cargo xtask test` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run the namespace tests alone, three times, beside two busy threads for each processor: what depends on time shows.
    #[arg(long)]
    stress: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.stress {
        return stress();
    }
    let started = Instant::now();
    setup::ensure(Purpose::Test)?;
    let mut report = vec![("set-up", started.elapsed(), Outcome::default())];
    // It waits for the network while other stages compile.
    let debian = thread::spawn(vm::debian);
    report.extend(STAGES.iter().map(|(name, stage)| run_stage(name, stage)));
    if let Err(error) = debian.join().expect("fetching does not panic") {
        println!("{error:#}");
    }
    report.extend(run_machines());
    Ok(summarise(&report))
}

fn stress() -> Result<ExitCode> {
    setup::ensure(Purpose::Test)?;
    let processors = thread::available_parallelism()?.get();
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..2 * processors)
        .map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let rounds = ["first round", "second round", "third round"];
    let report = rounds.map(|name| {
        run_stage(name, || {
            tests(
                &[
                    "test",
                    "--package",
                    "breakout-tests",
                    "--test",
                    "kernel",
                    "--locked",
                ],
                1,
            )
        })
    });
    stop.store(true, Ordering::Relaxed);
    for thread in busy {
        thread.join().expect("a busy thread does not panic");
    }
    Ok(summarise(&report))
}

fn run_stage(name: &'static str, stage: impl FnOnce() -> Result<Outcome>) -> Row {
    println!("\n== {name}");
    let started = Instant::now();
    let outcome = stage().unwrap_or_else(|error| {
        println!("{error:#}");
        Outcome {
            failed: vec![format!("{error:#}")],
            ..Outcome::default()
        }
    });
    (name, started.elapsed(), outcome)
}

/// Prepares the machines one after the other, and runs them at the same time.
fn run_machines() -> Vec<Row> {
    let mut ready = Vec::new();
    let prepared = run_stage("packages and machines", || {
        let mut outcome = Outcome::default();
        if let Err(error) = vm::SERIES.into_iter().try_for_each(vm::fetch) {
            outcome.skipped.push(format!("all machines: {error:#}"));
            return Ok(outcome);
        }
        for (name, prepare) in MACHINES {
            ready.push((
                *name,
                prepare().with_context(|| format!("cannot prepare {name}"))?,
            ));
        }
        outcome.passed = ready.len();
        Ok(outcome)
    });
    let running = ready
        .into_iter()
        .map(|(name, machine)| thread::spawn(move || run_stage(name, || machine.run())));
    let running: Vec<_> = running.collect();
    let rows = running
        .into_iter()
        .map(|thread| thread.join().expect("no machine panics"));
    [prepared].into_iter().chain(rows).collect()
}

fn summarise(report: &[Row]) -> ExitCode {
    println!("\n== summary");
    for (name, took, outcome) in report {
        println!(
            "{name:28} {:6.1} s  {:4} passed {:3} failed {:3} skipped",
            took.as_secs_f64(),
            outcome.passed,
            outcome.failed.len(),
            outcome.skipped.len()
        );
    }
    let all = || report.iter().map(|(_, _, outcome)| outcome);
    for skipped in by_reason(all().flat_map(|outcome| &outcome.skipped)) {
        println!("skipped: {skipped}");
    }
    for (name, _, outcome) in report {
        for unsteady in &outcome.unsteady {
            println!("passed when it was run again: {name}: {unsteady}");
        }
    }
    for (name, _, outcome) in report {
        for failed in &outcome.failed {
            println!("FAILED: {name}: {failed}");
        }
    }
    let passed: usize = all().map(|outcome| outcome.passed).sum();
    let failed: usize = all().map(|outcome| outcome.failed.len()).sum();
    let skipped: usize = all().map(|outcome| outcome.skipped.len()).sum();
    println!("total: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What was skipped, in one line where more than a few have the same reason.
fn by_reason<'a>(skipped: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in skipped {
        let (name, why) = line.split_once(": ").unwrap_or(("", line));
        reasons.entry(why).or_default().push(name);
    }
    let line = |(why, names): (&str, Vec<&str>)| match names.len() {
        0..=3 => format!("{}: {why}", names.join(", ")),
        count => format!("{count} tests: {why}"),
    };
    reasons.into_iter().map(line).collect()
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

/// Runs tests, each of those in namespaces so many times at most until it passes; shows what they print, and adds it up.
fn tests(arguments: &[&str], tries: u32) -> Result<Outcome> {
    let mut command = cargo();
    command.env("BREAKOUT_TEST_TRIES", tries.to_string());
    command.envs(
        SWITCHES
            .into_iter()
            .filter(|(name, _)| std::env::var_os(name).is_none()),
    );
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if let Some(reason) = line.strip_prefix("skipped: ") {
            outcome.skipped.push(reason.to_owned());
        }
        outcome.count(&line);
    }
    let status = child.wait()?;
    if !status.success() && outcome.failed.is_empty() {
        bail!("{} failed ({status})", line(&command));
    }
    Ok(outcome)
}

impl Outcome {
    /// Takes a line of a test program in: how many passed and failed, and the report of a failure, which names the test and says why.
    pub(crate) fn count(&mut self, line: &str) {
        if let Some((_, what)) = line.split_once("unsteady: ") {
            self.unsteady.push(what.to_owned());
        }
        let heading = line
            .strip_prefix("---- ")
            .and_then(|line| line.strip_suffix(" ----"));
        if let Some(heading) = heading {
            let name = heading.strip_suffix(" stdout").unwrap_or(heading);
            self.failed.push(format!("{name}:"));
            self.in_report = true;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.in_report = false;
        } else if let Some(report) = self.failed.last_mut().filter(|_| self.in_report)
            && report.len() < REPORT
        {
            report.push(' ');
            report.push_str(line.trim());
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += number_before(counts, " passed");
            self.told += number_before(counts, " failed");
            let unnamed = self.told.saturating_sub(self.failed.len());
            self.failed
                .extend((0..unnamed).map(|_| "a test without a report".to_owned()));
        }
    }
}

fn number_before(line: &str, word: &str) -> usize {
    let before = line.split(word).next().unwrap_or_default();
    let number = before.rsplit(' ').next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// Types what README has for this machine; its other blocks are for gateways. The test itself is one of them.
fn readme() -> Result<Outcome> {
    ensure!(block("README.md", 2)? == "cargo xtask test");
    let demo = block("README.md", 1)?;
    let package = block("README.md", 3)?;
    for commands in [demo, package] {
        println!("$ {commands}");
        let mut shell = Command::new("sh");
        shell
            .args(["-e", "-c", &commands])
            .current_dir(paths::root());
        crate::process::stream(&mut shell)?;
    }
    Ok(Outcome {
        passed: 2,
        ..Outcome::default()
    })
}

/// A page's block of commands, by its number from 1 on.
fn block(page: &str, number: usize) -> Result<String> {
    let text = fs::read_to_string(paths::root().join(page))?;
    let after = text.split("```sh\n").nth(number);
    let block = after.and_then(|after| after.split("```").next());
    Ok(block
        .with_context(|| format!("{page} has no block {number}"))?
        .trim()
        .to_owned())
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
                has_both_programs(&fs::read(&object)?)
                    .with_context(|| format!("the object by {name}'s Rust"))?;
                println!("ok: {name}'s Rust ({})", toolchain.rustc.display());
                outcome.passed += 1;
            }
            Err(error) => {
                outcome.failed.push(format!("{name}'s Rust: {error}"));
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
    let mut build = cargo();
    build.env("BREAKOUT_EBPF", "stub").args([
        "build",
        "--locked",
        "--quiet",
        "--package",
        "breakout",
    ]);
    crate::process::stream(&mut build)?;
    let breakout = paths::root().join("target/debug/breakout");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_named_and_say_why() {
        let mut outcome = Outcome::default();
        for line in [
            "test one ... ok",
            "test two          ... it took 3 s",
            "FAILED",
            "failures:",
            "---- two ----",
            "the table is empty:",
            "no route",
            "failures:",
            "    two",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored",
            "test three ... unsteady: three: the link is down",
            "---- four stdout ----",
            "test result: FAILED. 4 passed; 1 failed; 0 ignored",
        ] {
            outcome.count(line);
        }
        assert_eq!(outcome.passed, 5);
        assert_eq!(
            outcome.failed,
            [
                "two: the table is empty: no route",
                "a test without a report",
                "four:"
            ]
        );
        assert_eq!(outcome.unsteady, ["three: the link is down"]);
    }

    #[test]
    fn what_is_skipped_for_one_reason_is_one_line() {
        let of = |name: &str, why: &str| format!("{name}: {why}");
        let skipped: Vec<_> = ["a", "b", "c", "d"]
            .map(|name| of(name, "the same"))
            .into_iter()
            .chain([of("e", "no dhclient")])
            .collect();
        assert_eq!(
            by_reason(skipped.iter()),
            ["e: no dhclient", "4 tests: the same"]
        );
    }
}
