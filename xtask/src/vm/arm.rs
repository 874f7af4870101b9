//! `cargo xtask vm --arch aarch64`: the programs under Debian's kernel for 64-bit ARM, in qemu by software emulation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::image::{
    copy_modules, directory, fetched_once, init_script, make_executable, pack, release_of,
};
use super::{Machine, build_tests, qemu};
use crate::dist;
use crate::process::run_logged;

/// The kernel, and programs that the tests run.
const PACKAGES: &str = "linux-image-cloud-arm64,busybox-static,iproute2,nftables,ethtool,procps,kmod,bpftool,conntrack,iputils-arping";
/// The tests that are run if no others are asked for: the verifier and the compiler of that kernel take the programs, and they
/// decide as they should.
const TESTS: &str = "golden_verdicts";
/// Where its packages have programs and libraries.
const TREES: [&str; 5] = ["bin", "sbin", "lib", "usr/bin", "usr/sbin"];
const LIMIT: Duration = Duration::from_secs(600);

/// A machine that runs tests.
pub(super) fn prepare(filter: Option<&str>) -> Result<Machine> {
    let debian = debian()?;
    let release = release_of(&debian)?;
    let root = directory().join("root-arm64");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for place in ["dev", "proc", "sys", "run", "tmp", "etc", "usr", "var/lib"] {
        fs::create_dir_all(root.join(place))?;
    }
    for tree in TREES.into_iter().chain(["usr/lib/aarch64-linux-gnu"]) {
        copy(&debian.join(tree), &root.join(tree))?;
    }
    // The copy has all of them; these are those that the tests need.
    fs::remove_dir_all(root.join("lib/modules"))?;
    std::os::unix::fs::symlink("../usr/lib/modules", root.join("lib/modules"))?;
    copy_modules(&debian, &root, &release)?;
    let machine = dist::Machine::Aarch64;
    for (program, name) in [
        (dist::program(machine)?, "breakout"),
        (build_tests(Some(machine))?, "kernel-tests"),
    ] {
        let to = root.join("bin").join(name);
        fs::copy(&program, &to).with_context(|| format!("cannot copy {}", program.display()))?;
        make_executable(&to)?;
    }
    let init = root.join("init");
    fs::write(&init, init_script(false, Some(filter.unwrap_or(TESTS))))?;
    make_executable(&init)?;
    let initramfs = directory().join("initramfs-arm64.cpio.gz");
    pack(&root, &initramfs)?;
    let kernel = debian.join(format!("boot/vmlinuz-{release}"));
    let mut qemu = qemu("aarch64", &kernel, &initramfs);
    qemu.args(["-machine", "virt", "-cpu", "max,pauth-impdef=on"]);
    Ok(Machine::of_kernel_tests(release, qemu, "ttyAMA0"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    run_logged(
        Command::new("cp")
            .args(["--archive", "--no-target-directory"])
            .args([from, to]),
        LIMIT,
    )
}

/// Debian 12 for the machine: packages that are only unpacked, since nothing of them can run here.
fn debian() -> Result<PathBuf> {
    fetched_once("debian-12-arm64", PACKAGES, |unfinished| {
        let fetched = directory().join("debian-12-arm64.packages-only");
        if fetched.exists() {
            fs::remove_dir_all(&fetched)?;
        }
        run_logged(
            Command::new("debootstrap")
                .args(["--arch=arm64", "--variant=minbase", "--download-only"])
                .arg(format!("--include={PACKAGES}"))
                .arg("bookworm")
                .arg(&fetched),
            LIMIT,
        )?;
        for package in fs::read_dir(fetched.join("var/cache/apt/archives"))? {
            let package = package?.path();
            let is_package = package
                .extension()
                .is_some_and(|extension| extension == "deb");
            if is_package {
                run_logged(
                    Command::new("dpkg-deb")
                        .arg("--extract")
                        .arg(&package)
                        .arg(unfinished),
                    LIMIT,
                )?;
            }
        }
        Ok(fs::remove_dir_all(&fetched)?)
    })
}
