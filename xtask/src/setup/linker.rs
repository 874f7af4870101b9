//! bpf-linker, built into the repository's target folder.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::Step;
use crate::paths;
use crate::process::{cargo, line, run_logged};

/// The version that is known to work with the pinned aya.
const VERSION: &str = "0.13.0";
/// The LLVM that it links with.
pub(super) const LLVM: u32 = 22;
const LIMIT: Duration = Duration::from_secs(900);

/// The linker of eBPF objects.
pub(crate) struct Linker;

impl Linker {
    fn command() -> Command {
        let mut command = cargo();
        command
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
            .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{LLVM}"),
            ])
            .arg("--root")
            .arg(paths::ebpf().join("linker"));
        command
    }
}

impl Step for Linker {
    fn title(&self) -> String {
        format!("bpf-linker {VERSION}, to link the eBPF object (built in target/, about a minute)")
    }

    fn missing(&self) -> Vec<String> {
        if paths::linker().is_file() {
            return Vec::new();
        }
        vec![line(&Self::command())]
    }

    fn install(&self) -> Result<()> {
        let mut command = Self::command();
        command.env("CARGO_TARGET_DIR", paths::ebpf().join("linker-build"));
        run_logged(&mut command, LIMIT)
    }

    fn needs_root(&self) -> bool {
        false
    }
}
