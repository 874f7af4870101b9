//! What the build scripts of `classifier-user` and `tests` have in common. They include this file and `object.rs`.

use std::env;
use std::fs;
use std::path::PathBuf;

use crate::object::{Toolchain, compile};

/// Compiles an object and puts it into OUT_DIR, as `NAME.o`.
///
/// `cargo xtask setup` records a toolchain that can compile eBPF in `target/ebpf/toolchain`. Without that record, or
/// with BREAKOUT_EBPF=stub, an empty stub takes the object's place, so that plain cargo commands work anywhere.
pub(crate) fn build_script(object: &str) {
    let variable = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    let place = PathBuf::from(variable("OUT_DIR")).join(format!("{object}.o"));
    let record = root.join("target/ebpf/toolchain");
    for input in [
        "classifier-ebpf",
        "common/src",
        "common/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
        "xtask/src/build_script.rs",
        "xtask/src/object.rs",
        "target/ebpf/toolchain",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=BREAKOUT_EBPF");
    let stub = env::var_os("BREAKOUT_EBPF").is_some_and(|value| value == "stub");
    let recorded = fs::read_to_string(record).ok().filter(|_| !stub);
    let Some(recorded) = recorded else {
        println!(
            "cargo::warning=no eBPF toolchain is set up (cargo xtask setup), so there is nothing to load into the kernel"
        );
        fs::write(place, b"").expect("OUT_DIR is writable");
        return;
    };
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    let built = Toolchain::parse(&recorded).and_then(|toolchain| {
        let target_dir = root.join("target/ebpf/build");
        compile(
            &root,
            object,
            &toolchain,
            &target_dir,
            &arch.to_string_lossy(),
        )
    });
    match built {
        Ok((built, warnings)) => {
            fs::copy(built, place).expect("the object can be copied to OUT_DIR");
            for warning in warnings {
                println!("cargo::warning=eBPF: {warning}");
            }
        }
        Err(error) => {
            for line in error.lines() {
                println!("cargo::error=eBPF: {line}");
            }
        }
    }
}
