//! Where things lie in the repository.

use std::path::{Path, PathBuf};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Everything that the set-up makes.
pub(crate) fn ebpf() -> PathBuf {
    root().join("target/ebpf")
}

/// The record of the toolchain that compiles eBPF; `classifier-user/build.rs` reads it.
pub(crate) fn toolchain_record() -> PathBuf {
    ebpf().join("toolchain")
}

/// The linker of eBPF objects.
pub(crate) fn linker() -> PathBuf {
    ebpf().join("linker/bin/bpf-linker")
}
