//! `cargo xtask bench`.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{paths, process, setup};

/// What is handed on to the benchmarks.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Fewer sizes and rounds.
    #[arg(long)]
    quick: bool,
    /// Compare with the last run, which is kept, and fail where a ratio is worse by more than its noise: about five minutes.
    #[arg(long, conflicts_with = "only")]
    check: bool,
    /// Only these parts: lookup, program, forward, flows, passing, masquerade, sizes, reload-under-traffic, tcp, reload,
    /// memory.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Bench)?;
    let mut build = process::cargo();
    build.args([
        "build",
        "--release",
        "--quiet",
        "--locked",
        "--package",
        "breakout",
    ]);
    build.args(["--package", "breakout-tests", "--bins"]);
    process::stream(&mut build)?;
    let out = paths::root().join("target/bench");
    let mut bench = Command::new(paths::root().join("target/release/breakout-bench"));
    bench.arg("--out").arg(&out);
    if arguments.quick {
        bench.arg("--quick");
    }
    if arguments.check {
        bench.arg("--check");
    }
    for part in &arguments.only {
        bench.args(["--only", part]);
    }
    let status = bench.status()?;
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    if arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "\nbench.md, bench.json and the plots are in {}",
        out.display()
    );
    Ok(ExitCode::SUCCESS)
}
