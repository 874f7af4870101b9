//! `cargo xtask demo`.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{paths, process, setup};

/// What is handed on to the demo.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Leave the lab up, with the controller running, and say how to enter it.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Lab)?;
    let mut build = process::cargo();
    build.args(["build", "--quiet", "--locked", "--package", "breakout"]);
    build.args(["--package", "breakout-tests", "--bins"]);
    process::stream(&mut build)?;
    let mut demo = Command::new(paths::root().join("target/debug/breakout-demo"));
    if arguments.json {
        demo.arg("--json");
    }
    if arguments.keep {
        demo.arg("--keep");
    }
    let status = demo.status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
