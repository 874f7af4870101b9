//! What `cargo xtask dist` needs beside Debian's packages.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::Step;
use crate::dist::Machine;
use crate::paths;
use crate::process::{cargo, line, output, run_logged};

/// The standard library for the machines that packages are built for.
pub(crate) struct Targets;

const TARGETS: [Machine; 2] = [Machine::X86_64, Machine::Aarch64];
const LIMIT: Duration = Duration::from_secs(600);

impl Targets {
    fn command() -> Command {
        let mut command = Command::new("rustup");
        command.args(["target", "add"]);
        command.args(TARGETS.map(Machine::target));
        command
    }
}

impl Step for Targets {
    fn title(&self) -> String {
        "Rust's standard library, to be linked statically".to_owned()
    }

    fn missing(&self) -> Vec<String> {
        let libraries =
            output(Command::new("rustc").args(["--print", "sysroot"])).unwrap_or_default();
        let libraries = PathBuf::from(libraries.trim()).join("lib/rustlib");
        if TARGETS
            .iter()
            .all(|machine| libraries.join(machine.target()).join("lib").is_dir())
        {
            return Vec::new();
        }
        vec![line(&Self::command())]
    }

    fn install(&self) -> Result<()> {
        run_logged(&mut Self::command(), LIMIT)
    }

    fn needs_root(&self) -> bool {
        false
    }
}

/// cargo-deb, built into the repository's target folder.
pub(crate) struct CargoDeb;

impl CargoDeb {
    fn command() -> Command {
        let mut command = cargo();
        command
            .args([
                "install",
                "cargo-deb",
                "--version",
                VERSION,
                "--locked",
                "--root",
            ])
            .arg(paths::root().join("target/tools"));
        command
    }
}

const VERSION: &str = "3.8.0";

impl Step for CargoDeb {
    fn title(&self) -> String {
        format!("cargo-deb {VERSION}, to make packages (built in target/, about a minute)")
    }

    fn missing(&self) -> Vec<String> {
        if paths::root().join("target/tools/bin/cargo-deb").is_file() {
            return Vec::new();
        }
        vec![line(&Self::command())]
    }

    fn install(&self) -> Result<()> {
        let mut command = Self::command();
        command.env("CARGO_TARGET_DIR", paths::root().join("target/tools/build"));
        run_logged(&mut command, LIMIT)
    }

    fn needs_root(&self) -> bool {
        false
    }
}
