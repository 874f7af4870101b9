//! What a test needs that not every machine has.

use std::process::Command;

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
