//! What a test needs that not every machine has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// What is missing for tests with namespaces and eBPF, or `None`.
pub fn missing() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("needs root".to_owned());
    }
    if let Err(error) = breakout::datapath::object() {
        let text = error.to_string();
        return Some(text.split('.').next().unwrap_or(&text).to_owned());
    }
    for tool in ["ip", "nft", "ethtool", "sysctl"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return Some(format!("needs {tool}; install it with `cargo xtask setup`"));
        }
    }
    None
}

/// A program of a Debian package that `cargo xtask setup` has unpacked in the repository's target folder.
pub fn unpacked(program: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/unpacked/root");
    let mut places = ["usr/bin", "usr/sbin"]
        .map(|place| root.join(place).join(program))
        .into_iter();
    places.find(|path| path.is_file())
}

/// Returns whether this kernel has at least this version.
///
/// # Errors
///
/// When /proc is not mounted.
pub fn kernel_at_least(major: u32, minor: u32) -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.trim().parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(version >= (major, minor))
}
