//! Compiles eBPF objects. Shared with the build scripts, so it needs only std.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A toolchain that can build `core` for eBPF: the content of the record that the set-up writes.
pub(crate) struct Toolchain {
    /// The cargo to run.
    pub(crate) cargo: PathBuf,
    /// The rustc whose source of `core` is installed.
    pub(crate) rustc: PathBuf,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// Reads a record.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let values: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .collect();
        let path = |key: &str| {
            let value = values.get(key).map(PathBuf::from);
            value.ok_or(format!(
                "the toolchain record has no {key}; run cargo xtask setup"
            ))
        };
        Ok(Toolchain {
            cargo: path("cargo")?,
            rustc: path("rustc")?,
            linker: path("linker")?,
        })
    }
}

/// Compiles one of the objects, `classifier` or `bench`. Returns its path and the compiler's warnings.
pub(crate) fn compile(
    root: &Path,
    object: &str,
    toolchain: &Toolchain,
    target_dir: &Path,
    target_arch: &str,
) -> Result<(PathBuf, Vec<String>), String> {
    let flags = [
        format!("--cfg=bpf_target_arch=\"{target_arch}\""),
        "-Cdebuginfo=2".to_owned(),
        // 32-bit arithmetic and jumps: Linux 5.1.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
    ];
    let mut cargo = Command::new(&toolchain.cargo);
    // What an outer cargo set for its own compiler must not reach this one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_") && text != "CARGO_HOME" || text.starts_with("RUST") {
            cargo.env_remove(&name);
        }
    }
    cargo
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "breakout-ebpf",
            "--bin",
            object,
        ])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(root);
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(messages.into_owned());
    }
    let warnings = messages.lines().filter(|line| line.starts_with("warning:"));
    Ok((
        target_dir.join("bpfel-unknown-none/release").join(object),
        warnings.map(str::to_owned).collect(),
    ))
}
