//! `cargo xtask chaos`.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{paths, process, setup};

/// What is handed on.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How long, for both modes together.
    #[arg(long, value_name = "N", default_value_t = 15)]
    minutes: u64,
    /// What decides the order of what happens: that of an earlier run, to see it again.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Lab)?;
    let mut build = process::cargo();
    build.args(["build", "--quiet", "--locked", "--package", "breakout"]);
    build.args(["--package", "breakout-tests", "--bins"]);
    process::stream(&mut build)?;
    let mut chaos = Command::new(paths::root().join("target/debug/breakout-chaos"));
    chaos.args(["--seconds", &(arguments.minutes * 30).to_string()]);
    if let Some(seed) = arguments.seed {
        chaos.args(["--seed", &seed.to_string()]);
    }
    let status = chaos.status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
