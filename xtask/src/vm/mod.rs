//! `cargo xtask vm`: the kernel tests under Debian's own long-term kernels, in qemu by software emulation.
//!
//! Each machine has no disk: the tests, the tools they run and the kernel's modules are in its initramfs.

mod image;
mod package;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::cargo;
use crate::setup::{self, Purpose};

/// Kernel series that are tested.
pub(crate) const SERIES: [&str; 2] = ["6.1", "6.12"];

/// How long one machine may run.
const LIMIT: Duration = Duration::from_secs(900);

/// What `cargo xtask vm` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Kernel series to test.
    #[arg(default_values_t = SERIES.map(str::to_owned))]
    series: Vec<String>,
    /// Instead, install, run, upgrade and purge the package in a Debian 12.
    #[arg(long)]
    package: bool,
    /// Run only the tests whose names contain this.
    #[arg(long)]
    filter: Option<String>,
}

/// What one machine came to.
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// What was skipped, and why.
    pub(crate) skipped: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(Purpose::Test)?;
    if arguments.package {
        let outcome = package()?;
        println!("{} passed, {} failed", outcome.passed, outcome.failed);
        return Ok(if outcome.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let mut failed = 0;
    for series in &arguments.series {
        failed += boot(series, arguments.filter.as_deref())?.failed;
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Fetches the kernel of the series, unless it is there.
pub(crate) fn fetch(series: &str) -> Result<()> {
    image::kernel_package(series).map(drop)
}

/// Runs the package's tests.
pub(crate) fn package() -> Result<Outcome> {
    package::run()
}

/// A machine without a network that ends by itself.
fn qemu(kernel: &Path, initramfs: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "2048", "-smp", "2"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    qemu
}

/// Boots a kernel of the series and runs the kernel tests in it.
pub(crate) fn boot(series: &str, filter: Option<&str>) -> Result<Outcome> {
    let tests = build_tests()?;
    let machine = image::build(series, &tests, filter)?;
    println!("booting Linux {} (software emulation)", machine.release);
    let mut machine_process = qemu(&machine.kernel, &machine.initramfs);
    machine_process.args(["-append", "console=ttyS0 quiet panic=-1"]);
    let skipped = vec![format!(
        "bulk_tcp tests under Linux {}: too slow under software emulation",
        machine.release
    )];
    watch(&mut machine_process, &machine.release, skipped)
}

/// Runs a machine, shows what it prints, and counts its tests: those of a result line, and each that says "ok: " or
/// "FAILED: " itself.
fn watch(machine: &mut Command, name: &str, mut skipped: Vec<String>) -> Result<Outcome> {
    let mut qemu = machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run qemu-system-x86_64")?;
    let stdout = qemu.stdout.take().context("stdout is piped")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .is_err()
            {
                break;
            }
        }
    });
    let deadline = Instant::now() + LIMIT;
    let (mut passed, mut failed) = (0, 0);
    let mut is_done = false;
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("{name}: {line}");
        // The first line comes behind what the firmware printed to the terminal.
        if let Some((_, reason)) = line.split_once("skipped: ") {
            skipped.push(format!("{reason} (this is {name})"));
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            passed += crate::test::number_before(counts, " passed");
            failed += crate::test::number_before(counts, " failed");
        }
        passed += usize::from(line.starts_with("ok: "));
        failed += usize::from(line.starts_with("FAILED: "));
        if line.contains("the machine is done") {
            is_done = true;
            break;
        }
    }
    let _ = qemu.kill();
    qemu.wait()?;
    if !is_done && Instant::now() > deadline {
        bail!("{name} took longer than {LIMIT:?}");
    }
    if !is_done || passed + failed == 0 {
        bail!("{name} ended without a test result");
    }
    Ok(Outcome {
        passed,
        failed,
        skipped,
    })
}

/// Builds the kernel tests. Returns the program.
fn build_tests() -> Result<std::path::PathBuf> {
    let mut build = cargo();
    build.args(["build", "--locked", "--quiet", "--package", "breakout"]);
    crate::process::stream(&mut build)?;
    let mut tests = cargo();
    tests
        .args([
            "test",
            "--locked",
            "--quiet",
            "--package",
            "breakout-tests",
            "--test",
            "kernel",
        ])
        .args(["--no-run", "--message-format", "json"])
        .stderr(Stdio::inherit());
    let output = tests.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let executable = text
        .lines()
        .filter(|line| line.contains("\"name\":\"kernel\""))
        .find_map(|line| {
            let path = line.split("\"executable\":\"").nth(1)?.split('"').next()?;
            Some(Path::new(path).to_owned())
        });
    executable.context("cargo did not say where the kernel tests are")
}

/// Whether a file can be opened; for errors that name it.
fn exists(path: &Path) -> Result<()> {
    File::open(path)
        .map(drop)
        .with_context(|| format!("{} is missing", path.display()))
}
