//! Compiles the data path and puts the object where `datapath::object` includes it.
//!
//! `cargo xtask setup` records a toolchain that can compile eBPF in `target/ebpf/toolchain`. Without that
//! record an empty stub takes the object's place, so that plain cargo commands work anywhere.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    let object = PathBuf::from(variable("OUT_DIR")).join("classifier.o");
    let record = root.join("target/ebpf/toolchain");
    for input in ["classifier-ebpf", "common/src", "common/Cargo.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-changed={}", record.display());
    match fs::read_to_string(&record) {
        Ok(text) => match compile(&root, &toolchain(&text)) {
            Ok(built) => {
                fs::copy(built, object).expect("the object can be copied to OUT_DIR");
            }
            Err(error) => println!("cargo::error=the eBPF object could not be built: {error}"),
        },
        Err(_) => {
            println!(
                "cargo::warning=no eBPF toolchain is set up (cargo xtask setup), so this `breakout` cannot run \
                 the data path"
            );
            fs::write(object, b"").expect("OUT_DIR is writable");
        }
    }
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"))
}

/// The record's lines, `key = value`.
fn toolchain(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once(" = "))
        .collect()
}

fn compile(root: &Path, toolchain: &BTreeMap<&str, &str>) -> Result<PathBuf, String> {
    let key = |key| {
        toolchain
            .get(key)
            .ok_or(format!("the toolchain record has no {key}; run cargo xtask setup"))
    };
    let target_dir = root.join("target/ebpf/build");
    let flags = [
        "--cfg=bpf_target_arch=\"".to_owned()
            + &variable("CARGO_CFG_TARGET_ARCH").to_string_lossy()
            + "\"",
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", key("linker")?),
    ];
    let mut cargo = Command::new(key("cargo")?);
    // What the outer cargo set for its own compiler must not reach the inner one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_") && name != "CARGO_HOME" || name.starts_with("RUST") {
            cargo.env_remove(&*name);
        }
    }
    cargo
        .env("RUSTC", key("rustc")?)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--release", "--locked", "--package", "breakout-ebpf"])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(root);
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(messages.replace('\n', "\ncargo::error="));
    }
    for line in messages.lines().filter(|line| line.starts_with("warning:")) {
        println!("cargo::warning=eBPF: {line}");
    }
    Ok(target_dir.join("bpfel-unknown-none/release/classifier"))
}
