//! rustfmt and clippy for the toolchain that builds the rest.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::Step;
use crate::process::{output, run_logged};

const LIMIT: Duration = Duration::from_secs(120);

/// The components that the checks of the source need.
pub(crate) struct Components;

impl Components {
    fn absent() -> Vec<&'static str> {
        let there = |tool: &str| output(Command::new("cargo").args([tool, "--version"])).is_some();
        let tools = [("fmt", "rustfmt"), ("clippy", "clippy")];
        let absent = tools.into_iter().filter(|(tool, _)| !there(tool));
        absent.map(|(_, component)| component).collect()
    }
}

impl Step for Components {
    fn title(&self) -> String {
        "rustfmt and clippy, to check the source".to_owned()
    }

    fn missing(&self) -> Vec<String> {
        let absent = Self::absent();
        if absent.is_empty() {
            return Vec::new();
        }
        vec![format!("rustup component add {}", absent.join(" "))]
    }

    fn install(&self) -> Result<()> {
        let mut command = Command::new("rustup");
        command.args(["component", "add"]).args(Self::absent());
        run_logged(&mut command, LIMIT)
    }

    fn needs_root(&self) -> bool {
        false
    }
}
