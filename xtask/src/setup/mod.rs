//! What has to be on the machine: found, or installed, each step saying what it does and why.

mod compiler;
mod components;
mod dist;
mod linker;
mod packages;
mod unpacked;

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::paths;

pub(crate) use compiler::recipes;

/// What `cargo xtask setup` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Change nothing; list what is missing with the commands that would install it, and exit with 1 if anything is.
    #[arg(long)]
    check: bool,
    /// Which compiler builds the eBPF object.
    #[arg(long, value_enum, default_value_t)]
    toolchain: Choice,
}

/// Which compiler builds the eBPF object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// rustup's, else Debian's.
    #[default]
    Auto,
    /// The toolchain that builds the rest, with rust-src from rustup.
    Rustup,
    /// Debian's rustc-web, cargo-web and rust-web-src.
    Debian,
}

/// What the set-up is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Building `breakout`.
    Build,
    /// Building it, and a lab of namespaces.
    Lab,
    /// All of that, and the checks of the source.
    Test,
    /// Building it, a lab, and what it is measured beside.
    Bench,
    /// Packages for gateways.
    Dist,
    /// Tests in an emulated machine of 64-bit ARM.
    Arm,
    /// Fuzzing the header walk.
    Fuzz,
}

/// One thing that must be there.
pub(crate) trait Step {
    /// What and why, in a line.
    fn title(&self) -> String;
    /// The commands that would install it; none if it is there.
    fn missing(&self) -> Vec<String>;
    /// Installs it.
    fn install(&self) -> Result<()>;
    /// Returns whether that needs root.
    fn needs_root(&self) -> bool;
}

fn steps(purpose: Purpose, choice: Choice) -> Vec<Box<dyn Step>> {
    if purpose == Purpose::Fuzz {
        return vec![Box::new(packages::fuzz())];
    }
    let mut steps: Vec<Box<dyn Step>> = vec![Box::new(packages::build())];
    if !matches!(purpose, Purpose::Build | Purpose::Dist | Purpose::Arm) {
        steps.push(Box::new(packages::lab()));
    }
    if purpose == Purpose::Bench {
        steps.push(Box::new(packages::bench()));
    }
    if purpose == Purpose::Test {
        steps.push(Box::new(packages::machines()));
        steps.push(Box::new(unpacked::Unpacked));
        steps.push(Box::new(components::Components));
    }
    if purpose == Purpose::Arm {
        steps.push(Box::new(packages::machines()));
        steps.push(Box::new(packages::arm()));
    }
    if matches!(purpose, Purpose::Dist | Purpose::Test | Purpose::Arm) {
        steps.push(Box::new(packages::dist()));
        steps.push(Box::new(dist::Targets));
        steps.push(Box::new(dist::CargoDeb));
    }
    steps.push(Box::new(linker::Linker));
    steps.push(Box::new(compiler::Compiler { choice }));
    steps
}

/// `cargo xtask setup`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let steps = steps(Purpose::Test, arguments.toolchain);
    if arguments.check {
        let missing: Vec<_> = steps
            .iter()
            .filter(|step| !step.missing().is_empty())
            .collect();
        for step in &missing {
            println!("missing: {}", step.title());
            for command in step.missing() {
                println!("    {command}");
            }
        }
        if missing.is_empty() {
            println!("nothing is missing");
            return Ok(ExitCode::SUCCESS);
        }
        return Ok(ExitCode::FAILURE);
    }
    install(&steps)?;
    println!("setup: everything is there");
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing for a purpose; silent if nothing is.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    // A toolchain that was chosen before stays chosen.
    install(&steps(purpose, Choice::Auto))
}

fn install(steps: &[Box<dyn Step>]) -> Result<()> {
    let missing: Vec<_> = steps
        .iter()
        .filter(|step| !step.missing().is_empty())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if missing.iter().any(|step| step.needs_root()) && !is_root() {
        eprintln!("These commands need root. Run them, and then this one again:");
        for step in missing.iter().filter(|step| step.needs_root()) {
            eprintln!("  # {}", step.title());
            for command in step.missing() {
                eprintln!("  {command}");
            }
        }
        bail!("not root, so nothing was installed");
    }
    fs::create_dir_all(paths::ebpf())?;
    for (number, step) in (1..).zip(&missing) {
        eprintln!("setup {number}/{}: {}", missing.len(), step.title());
        for command in step.missing() {
            eprintln!("      $ {command}");
        }
        let started = Instant::now();
        step.install()
            .with_context(|| format!("set-up step \"{}\"", step.title()))?;
        eprintln!("      done in {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Returns whether this runs as root, by the owner of its own process directory.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
