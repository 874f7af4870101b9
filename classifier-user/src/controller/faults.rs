//! Steps that tests have fail. A release has none of it.

use anyhow::Result;

/// Comes before each step of an order that can fail. In builds for tests the file that `BREAKOUT_FAULT` names counts down to the
/// step that fails.
#[cfg(debug_assertions)]
pub(super) fn step(name: &str) -> Result<()> {
    use std::fs;

    let Some(file) = std::env::var_os("BREAKOUT_FAULT") else {
        return Ok(());
    };
    let left = fs::read_to_string(&file).ok();
    let left: Option<u32> = left.and_then(|text| text.trim().parse().ok());
    let Some(left) = left.filter(|left| *left > 0) else {
        return Ok(());
    };
    fs::write(&file, (left - 1).to_string())?;
    anyhow::ensure!(left > 1, "a test has this step fail: {name}");
    Ok(())
}

#[cfg(not(debug_assertions))]
pub(super) fn step(_: &str) -> Result<()> {
    Ok(())
}
