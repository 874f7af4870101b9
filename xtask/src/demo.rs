//! `cargo xtask demo`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{process, setup};

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
    let mut demo = process::test_program("breakout-demo")?;
    if arguments.json {
        demo.arg("--json");
    }
    if arguments.keep {
        demo.arg("--keep");
    }
    process::exit_code(&mut demo)
}
