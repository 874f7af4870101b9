//! `cargo xtask vm --package`: the package's life in a real Debian 12, with systemd and its own kernel.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::image::{
    directory, fetched_once, index_modules, kernel_package, make_executable, modules, pack,
    release_of,
};
use super::{KERNEL, qemu};
use crate::dist::{self, Machine};
use crate::paths;
use crate::process::run_logged;

/// The kernel of Debian 12.
const SERIES: &str = "6.1";
const SCRIPT: &str = "tests/package/in-debian.sh";
const LIMIT: Duration = Duration::from_secs(600);

/// What the script runs, and what an operator would have.
const PACKAGES: &str = "curl,systemd,systemd-sysv,dbus,nftables,iproute2,ca-certificates,kmod,procps,man-db,bash-completion";

/// Modules by which the root file system is reached; all others are in it.
const BOOT_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// Builds two packages and puts them into a Debian.
pub(super) fn prepare() -> Result<super::Machine> {
    let unpacked = kernel_package(SERIES)?;
    let release = release_of(&unpacked)?;
    let disk = disk(&unpacked, &release)?;
    let initramfs = initramfs(&unpacked, &release)?;
    let drive = format!("file={},if=virtio,format=raw,snapshot=on", disk.display());
    let kernel = unpacked.join(format!("boot/vmlinuz-{release}"));
    let mut qemu = qemu("x86_64", &kernel, &initramfs);
    qemu.args(["-cpu", "max", "-drive", &drive]);
    Ok(super::Machine {
        name: "Debian 12".to_owned(),
        qemu,
        kernel_arguments: format!(
            "console=ttyS0 {KERNEL} systemd.show_status=0 systemd.log_target=null"
        ),
        skipped: Vec::new(),
    })
}

/// A disk with a Debian and, in /root, the script and the packages.
fn disk(unpacked: &Path, release: &str) -> Result<PathBuf> {
    let debian = debian()?;
    let root = directory().join("package-root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    run_logged(
        Command::new("cp")
            .args(["--archive", "--reflink=auto"])
            .args([&debian, &root]),
        LIMIT,
    )?;
    fs::create_dir_all(root.join("usr/lib/modules"))?;
    run_logged(
        Command::new("cp")
            .args(["--archive", "--no-target-directory"])
            .arg(modules(unpacked, release)?)
            .arg(root.join("usr/lib/modules").join(release)),
        LIMIT,
    )?;
    run_logged(
        Command::new("depmod").arg("-b").arg(&root).arg(release),
        LIMIT,
    )?;
    let home = root.join("root");
    fs::create_dir_all(home.join("next"))?;
    let version = env!("CARGO_PKG_VERSION");
    for (place, version) in [
        ("next", format!("{version}+next")),
        (".", version.to_owned()),
    ] {
        for file in dist::build(Machine::X86_64, Some(&version))? {
            let name = file.file_name().context("a package has a name")?;
            fs::copy(&file, home.join(place).join(name))?;
        }
    }
    fs::copy(paths::root().join("README.md"), home.join("README.md"))?;
    run_logged(
        Command::new("cp")
            .arg("-r")
            .arg(paths::root().join("docs"))
            .arg(home.join("docs")),
        LIMIT,
    )?;
    let script = home.join("in-debian.sh");
    fs::copy(paths::root().join(SCRIPT), &script)?;
    make_executable(&script)?;
    let units = root.join("etc/systemd/system");
    fs::write(
        units.join("in-debian.service"),
        "[Unit]\nDescription=The tests\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=/root/in-debian.sh\n\
         StandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\nTimeoutStartSec=infinity\n",
    )?;
    let wants = units.join("default.target.wants");
    fs::create_dir_all(&wants)?;
    symlink(
        "/etc/systemd/system/in-debian.service",
        wants.join("in-debian.service"),
    )?;
    symlink("/dev/null", units.join("serial-getty@ttyS0.service"))?;
    let image = directory().join("package.ext4");
    let _ = fs::remove_file(&image);
    run_logged(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&root)
            .arg(&image)
            .arg("2G"),
        LIMIT,
    )?;
    Ok(image)
}

/// A Debian 12 with systemd.
pub(super) fn debian() -> Result<PathBuf> {
    fetched_once("debian-12", PACKAGES, |unfinished| {
        run_logged(
            Command::new("debootstrap")
                .args([
                    "--variant=minbase",
                    &format!("--include={PACKAGES}"),
                    "bookworm",
                ])
                .arg(unfinished),
            LIMIT,
        )?;
        // What is installed comes from files; there is no network in the machine.
        let _ = fs::remove_file(unfinished.join("etc/apt/sources.list"));
        Ok(())
    })
}

/// What finds the disk and goes on there.
fn initramfs(unpacked: &Path, release: &str) -> Result<PathBuf> {
    let root = directory().join("package-initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for place in ["bin", "dev", "proc", "sys", "disk", "usr/lib/modules"] {
        fs::create_dir_all(root.join(place))?;
    }
    symlink("usr/lib", root.join("lib"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is installed")?;
    let from = modules(unpacked, release)?;
    let to = root.join("usr/lib/modules").join(release);
    for tree in [
        "kernel/drivers/virtio",
        "kernel/drivers/block",
        "kernel/fs",
        "kernel/lib",
        "kernel/crypto",
        "kernel/arch",
    ] {
        if from.join(tree).is_dir() {
            fs::create_dir_all(to.join(tree).parent().unwrap_or(&to))?;
            run_logged(
                Command::new("cp")
                    .arg("-rT")
                    .arg(from.join(tree))
                    .arg(to.join(tree)),
                LIMIT,
            )?;
        }
    }
    index_modules(&from, &to, &root, release)?;
    let modules = BOOT_MODULES.join(" ");
    let init = root.join("init");
    fs::write(
        &init,
        format!(
            "#!/bin/busybox sh\n\
             export PATH=/bin\n\
             /bin/busybox --install -s /bin\n\
             mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
             for m in {modules}; do modprobe $m; done\n\
             while [ ! -b /dev/vda ]; do sleep 0.1; done\n\
             mount -t ext4 /dev/vda /disk\n\
             exec switch_root /disk /sbin/init\n"
        ),
    )?;
    make_executable(&init)?;
    let packed = directory().join("package-initramfs.cpio.gz");
    pack(&root, &packed)?;
    Ok(packed)
}
