//! `cargo xtask fuzz`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{paths, process, setup};

/// What libFuzzer needs to see which ways the code takes. They are flags of the stable compiler, for any LLVM.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Coverflow-checks=yes -Cdebug-assertions=yes";

/// What `cargo xtask fuzz` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How long to go on.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// Feeds the header walk. What it finds wrong is left in `target/fuzz`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Fuzz)?;
    let target = paths::root().join("target/fuzz");
    let corpus = target.join("corpus");
    std::fs::create_dir_all(&corpus)?;
    let mut fuzz = process::cargo();
    fuzz.current_dir(paths::root().join("common/fuzz"))
        .env("RUSTFLAGS", COVERAGE)
        .args(["run", "--release", "--quiet", "--target"])
        // With a target named, build scripts are compiled without these flags.
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .arg("--target-dir")
        .arg(&target)
        .args(["--bin", "walk", "--"])
        .arg(&corpus)
        .arg(format!("-max_total_time={}", arguments.seconds))
        .args(["-max_len=2048", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", target.display()));
    process::stream(&mut fuzz)?;
    Ok(ExitCode::SUCCESS)
}
