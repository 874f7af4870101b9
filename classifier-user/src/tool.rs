//! Other programs that are asked or told something. Each has only so long: one that hangs must not hang the controller.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::Command;
use tokio::time::timeout;

/// Time that a program may take.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Time that it may take while nothing waits for the controller yet, on a machine that is just booting.
pub const LIMIT_AT_START: Duration = Duration::from_secs(15);

/// A program took too long, and was ended.
#[derive(Debug, thiserror::Error)]
#[error("{program} did not answer within {} s, and was ended", limit.as_secs())]
pub struct TimedOut {
    program: String,
    limit: Duration,
}

/// Runs a program and waits for its end.
///
/// # Errors
///
/// When it cannot be started; [`TimedOut`] when it takes too long.
pub async fn output(program: &str, arguments: &[&str]) -> Result<Output> {
    output_within(LIMIT, program, arguments).await
}

/// Runs a program and waits for its end, for so long.
///
/// # Errors
///
/// As [`output`].
pub async fn output_within(limit: Duration, program: &str, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output();
    match timeout(limit, output).await {
        Ok(output) => output.with_context(|| format!("cannot run {program}")),
        Err(_) => Err(TimedOut {
            program: program.to_owned(),
            limit,
        }
        .into()),
    }
}
