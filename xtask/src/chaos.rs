//! `cargo xtask chaos`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{process, setup};

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
    let mut chaos = process::test_program("breakout-chaos")?;
    chaos.args(["--seconds", &(arguments.minutes * 30).to_string()]);
    if let Some(seed) = arguments.seed {
        chaos.args(["--seed", &seed.to_string()]);
    }
    process::exit_code(&mut chaos)
}
