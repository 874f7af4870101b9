//! `cargo xtask vm`: the kernel tests under Debian's own long-term kernels, in qemu by software emulation.
//!
//! Each machine has no disk: the tests, the tools they run and the kernel's modules are in its initramfs.

mod arm;
mod image;
mod package;
mod progress;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::progress::Progress;
use crate::dist;
use crate::process::cargo;
use crate::setup::{self, Purpose};
use crate::test::Outcome;

/// Kernel series that are tested.
pub(crate) const SERIES: [&str; 2] = ["6.1", "6.12"];

/// How long one machine may run, beside others, with all its boots.
const LIMIT: Duration = Duration::from_secs(2700);

/// How often a machine is booted at most: emulated kernels lock up now and then, and the machine goes on with the test that it was in.
const BOOTS: u32 = 2;

/// A kernel that is locked up for a minute ends.
const KERNEL: &str = "quiet panic=-1 softlockup_panic=1 watchdog_thresh=30";

/// What `cargo xtask vm` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Kernel series to test.
    #[arg(default_values_t = SERIES.map(str::to_owned))]
    series: Vec<String>,
    /// Instead, install, run, upgrade and purge the package in a Debian 12.
    #[arg(long)]
    package: bool,
    /// The kind of machine. For aarch64 there is one kernel, that of Debian 12, under which the golden verdicts are asked for
    /// unless there is a filter.
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: dist::Machine,
    /// Run the tests whose names contain this, and no selection.
    #[arg(long)]
    filter: Option<String>,
}

/// A machine that is ready to boot.
pub(crate) struct Machine {
    /// What its lines start with.
    name: String,
    qemu: Command,
    /// What the kernel is told.
    kernel_arguments: String,
    /// What it leaves out, and why.
    skipped: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let is_arm = arguments.arch == dist::Machine::Aarch64;
    setup::ensure(if is_arm { Purpose::Arm } else { Purpose::Test })?;
    let machines = if is_arm {
        vec![arm::prepare(arguments.filter.as_deref())?]
    } else if arguments.package {
        vec![package()?]
    } else {
        let filter = arguments.filter.as_deref();
        let prepared = arguments.series.iter().map(|series| kernel(series, filter));
        prepared.collect::<Result<Vec<_>>>()?
    };
    let mut failed = 0;
    for machine in machines {
        let outcome = machine.run()?;
        let count = outcome.failed.len();
        println!("{} passed, {count} failed", outcome.passed);
        failed += count;
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

/// Fetches the Debian that the package's tests run in.
pub(crate) fn debian() -> Result<()> {
    package::debian().map(drop)
}

/// A machine that runs the package's tests.
pub(crate) fn package() -> Result<Machine> {
    package::prepare()
}

/// A machine without a network that ends by itself.
fn qemu(architecture: &str, kernel: &Path, initramfs: &Path) -> Command {
    let mut qemu = Command::new(format!("qemu-system-{architecture}"));
    qemu.args(["-accel", "tcg", "-m", "2048", "-smp", "2"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    qemu
}

/// A machine that runs the kernel tests under a kernel of the series.
pub(crate) fn kernel(series: &str, filter: Option<&str>) -> Result<Machine> {
    let tests = build_tests(None)?;
    let image = image::build(series, &tests, filter)?;
    let mut qemu = qemu("x86_64", &image.kernel, &image.initramfs);
    qemu.args(["-cpu", "max"]).args(cards());
    Ok(Machine::of_kernel_tests(image.release, qemu, "ttyS0"))
}

/// Four network cards of each kind that the kernel has a driver for: the first two are joined, and the last two, each pair by a
/// hub that leads nowhere else.
fn cards() -> Vec<String> {
    let mut arguments = Vec::new();
    for (kind, device) in ["virtio-net-pci", "vmxnet3"].into_iter().enumerate() {
        for card in 0..4 {
            let (id, hub) = (kind * 4 + card, kind * 2 + card / 2);
            arguments.extend([
                "-netdev".to_owned(),
                format!("hubport,id=card{id},hubid={hub}"),
                "-device".to_owned(),
                format!("{device},netdev=card{id},mac=52:54:00:00:0{kind}:0{card}"),
            ]);
        }
    }
    arguments
}

impl Machine {
    /// A machine whose initramfs runs the kernel tests.
    fn of_kernel_tests(release: String, qemu: Command, console: &str) -> Self {
        let skipped = vec![format!(
            "bulk_tcp tests under Linux {release}: too slow under software emulation"
        )];
        Machine {
            name: release,
            qemu,
            kernel_arguments: format!("console={console} {KERNEL}"),
            skipped,
        }
    }

    /// Boots it and lets it run to its end, shows what it prints, and counts its tests: those of a result line, and each
    /// that says "ok: " or "FAILED: " itself. If its kernel locks up in the middle, it is booted again for the tests that are left; with
    /// any other end it fails.
    pub(crate) fn run(mut self) -> Result<Outcome> {
        println!("booting {} (software emulation)", self.name);
        let deadline = Instant::now() + LIMIT;
        let mut outcome = Outcome {
            skipped: std::mem::take(&mut self.skipped),
            ..Outcome::default()
        };
        let mut kernel_arguments = self.kernel_arguments.clone();
        for boot in 1..=BOOTS {
            let mut progress = Progress::default();
            // The last one counts.
            self.qemu.args(["-append", &kernel_arguments]);
            let name = &self.name;
            let why = match watch(&mut self.qemu, name, deadline, &mut outcome, &mut progress) {
                Ok(true) => return Ok(outcome),
                Ok(false) => progress.panic.unwrap_or_else(|| "it has ended".to_owned()),
                Err(error) => format!("{error:#}"),
            };
            outcome.passed += progress.passed;
            outcome.told += progress.failed.len();
            outcome.failed.append(&mut progress.failed);
            let running = progress.running.unwrap_or_default();
            if boot == BOOTS || !why.contains("softlockup") {
                outcome.failed.push(format!("{name} in {running}: {why}"));
                break;
            }
            println!("{name} is booted again after {running}: {why}");
            outcome.unsteady.push(format!("{name} in {running}: {why}"));
            if let Some(ended) = progress.ended {
                kernel_arguments = format!("{} BREAKOUT_TEST_AFTER={ended}", self.kernel_arguments);
            }
        }
        Ok(outcome)
    }
}

/// Boots a machine and takes in what it prints. Returns whether it came to its end.
fn watch(
    machine: &mut Command,
    name: &str,
    deadline: Instant,
    outcome: &mut Outcome,
    progress: &mut Progress,
) -> Result<bool> {
    let mut qemu = machine
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run qemu")?;
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
    let mut is_done = false;
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("{name}: {line}");
        // The first line comes behind what the firmware printed to the terminal.
        if let Some((_, reason)) = line.split_once("skipped: ") {
            let skipped = format!("{reason} (this is {name})");
            // A machine that is booted again says so again.
            if !outcome.skipped.contains(&skipped) {
                outcome.skipped.push(skipped);
            }
        }
        outcome.count(&line);
        progress.take(&line);
        outcome.passed += usize::from(line.starts_with("ok: "));
        // Also the very first line, as above.
        let failed = line.split_once("FAILED: ");
        outcome
            .failed
            .extend(failed.map(|(_, what)| what.to_owned()));
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
    Ok(is_done && (outcome.passed > 0 || !outcome.failed.is_empty()))
}

/// Builds the kernel tests, for this machine or one of another kind. Returns the program.
fn build_tests(machine: Option<dist::Machine>) -> Result<std::path::PathBuf> {
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
    if let Some(machine) = machine {
        machine.compile_for(&mut tests);
    }
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

/// Returns whether a file can be opened; for errors that name it.
fn exists(path: &Path) -> Result<()> {
    File::open(path)
        .map(drop)
        .with_context(|| format!("{} is missing", path.display()))
}
