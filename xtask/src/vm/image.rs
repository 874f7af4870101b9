//! A kernel and an initramfs for one machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::exists;
use crate::dist;
use crate::paths;
use crate::process::{output, run_logged};

const LIMIT: Duration = Duration::from_secs(300);

/// Programs that the tests run.
const TOOLS: &[&str] = &[
    "ip",
    "tc",
    "nft",
    "ethtool",
    "sysctl",
    "bpftool",
    "find",
    "setpriv",
    "nsenter",
    "unshare",
    "mount",
    "umount",
    "nstat",
    "modprobe",
    "chmod",
    "kill",
    "conntrack",
    "arping",
    "traceroute",
];

/// Modules that the lab needs; those they depend on come along.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "8021q",
    "sch_ingress",
    "sch_netem",
    "cls_bpf",
    "act_bpf",
    "nf_tables",
    "nf_conntrack",
    "nft_counter",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nf_conntrack_netlink",
    "nft_reject_inet",
    "af_packet",
    "8021q",
    "sch_netem",
    "tun",
    "ip_gre",
    "virtio_pci",
    "virtio_net",
    "vmxnet3",
];

/// Directories of modules that are put into the image.
const MODULE_TREES: &[&str] = &[
    "kernel/net",
    "kernel/drivers/net",
    "kernel/drivers/virtio",
    "kernel/lib",
    "kernel/crypto",
    "kernel/arch",
];

/// What qemu is given.
pub(super) struct Image {
    pub(super) release: String,
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

pub(super) fn build(series: &str, tests: &Path, filter: Option<&str>) -> Result<Image> {
    let vm = directory();
    let unpacked = kernel_package(series)?;
    let release = release_of(&unpacked)?;
    let root = vm.join(format!("root-{series}"));
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for directory in [
        "bin", "dev", "proc", "sys", "run", "tmp", "etc", "usr", "var/lib",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    for link in ["lib", "lib64", "sbin"] {
        fs::create_dir_all(root.join("usr").join(link))?;
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    std::os::unix::fs::symlink("../bin", root.join("usr/bin"))?;
    copy_modules(&unpacked, &root, &release)?;
    copy_programs(&root, tests)?;
    fs::write(root.join("init"), init_script(series == "6.1", filter))?;
    make_executable(&root.join("init"))?;
    let initramfs = vm.join(format!("initramfs-{series}.cpio.gz"));
    pack(&root, &initramfs)?;
    Ok(Image {
        kernel: unpacked.join(format!("boot/vmlinuz-{release}")),
        release,
        initramfs,
    })
}

/// Makes an initramfs of a directory.
pub(super) fn pack(root: &Path, initramfs: &Path) -> Result<()> {
    let pack = format!(
        "cd {} && find . -print0 | cpio --null --create --format=newc --quiet --owner=0:0 | gzip -1 > {}",
        root.display(),
        initramfs.display()
    );
    run_logged(Command::new("sh").args(["-c", &pack]), LIMIT)
}

pub(super) fn directory() -> PathBuf {
    paths::root().join("target/vm")
}

/// A directory of Debian packages that a function fills; filled once, and again if it is to have other packages.
pub(super) fn fetched_once(
    name: &str,
    packages: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let done = directory().join(name);
    let record = directory().join(format!("{name}.packages"));
    if fs::read_to_string(&record).is_ok_and(|fetched| fetched == packages) && done.is_dir() {
        return Ok(done);
    }
    println!("fetching {name} (about two minutes)");
    let unfinished = directory().join(format!("{name}.new"));
    for former in [&done, &unfinished] {
        if former.exists() {
            fs::remove_dir_all(former)?;
        }
    }
    fill(&unfinished)?;
    fs::rename(&unfinished, &done)?;
    fs::write(record, packages)?;
    Ok(done)
}

/// Fetches the newest kernel package of the series and unpacks it.
pub(super) fn kernel_package(series: &str) -> Result<PathBuf> {
    let vm = &directory();
    fs::create_dir_all(vm)?;
    let pattern = format!(
        "^linux-image-{}\\.[0-9].*-cloud-amd64$",
        series.replace('.', "\\.")
    );
    let names = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
    let names = names.unwrap_or_default();
    let newest = names
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|name| numbers(name))
        .with_context(|| {
            format!("no package linux-image-{series}.*-cloud-amd64; run apt-get update")
        })?
        .to_owned();
    let unpacked = vm.join(&newest);
    if unpacked.join("boot").is_dir() {
        return Ok(unpacked);
    }
    run_logged(
        Command::new("apt-get")
            .args(["download", &newest])
            .current_dir(vm),
        LIMIT,
    )?;
    let package = fs::read_dir(vm)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{newest}_")) && name.ends_with(".deb")
        })
        .with_context(|| format!("apt-get download brought no {newest}"))?;
    run_logged(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&unpacked),
        LIMIT,
    )?;
    Ok(unpacked)
}

/// The numbers in a package's name, by which it is sorted.
fn numbers(name: &str) -> Vec<u32> {
    let parts = name.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

pub(super) fn release_of(unpacked: &Path) -> Result<String> {
    for entry in fs::read_dir(unpacked.join("boot"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok(release.to_owned());
        }
    }
    bail!("{} has no kernel", unpacked.display())
}

/// Where the package's modules are.
pub(super) fn modules(unpacked: &Path, release: &str) -> Result<PathBuf> {
    let candidates = [
        unpacked.join("lib/modules"),
        unpacked.join("usr/lib/modules"),
    ];
    candidates
        .iter()
        .map(|directory| directory.join(release))
        .find(|directory| directory.is_dir())
        .context("the kernel package has no modules")
}

pub(super) fn copy_modules(unpacked: &Path, root: &Path, release: &str) -> Result<()> {
    let from = modules(unpacked, release)?;
    let to = root.join("usr/lib/modules").join(release);
    fs::create_dir_all(to.join("kernel"))?;
    for tree in MODULE_TREES {
        if from.join(tree).is_dir() {
            let target = to.join(tree);
            fs::create_dir_all(target.parent().unwrap_or(&to))?;
            run_logged(
                Command::new("cp")
                    .arg("-r")
                    .arg(from.join(tree))
                    .arg(target),
                LIMIT,
            )?;
        }
    }
    index_modules(&from, &to, root, release)
}

/// Takes over the lists of modules, and makes the index that modprobe reads.
pub(super) fn index_modules(from: &Path, to: &Path, root: &Path, release: &str) -> Result<()> {
    for list in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        if from.join(list).is_file() {
            fs::copy(from.join(list), to.join(list))?;
        }
    }
    run_logged(
        Command::new("depmod").arg("-b").arg(root).arg(release),
        LIMIT,
    )
}

/// Copies the tests and tools, with the libraries that they load.
fn copy_programs(root: &Path, tests: &Path) -> Result<()> {
    // What is packaged, because it is fast under emulation, and because it is what runs on gateways.
    let breakout = dist::program(dist::Machine::X86_64)?;
    let mut libraries = BTreeSet::new();
    let mut copy = |from: &Path, name: &str, strip: bool| -> Result<()> {
        exists(from)?;
        let to = root.join("bin").join(name);
        if strip {
            run_logged(Command::new("strip").arg("-o").arg(&to).arg(from), LIMIT)?;
        } else {
            fs::copy(from, &to)?;
        }
        make_executable(&to)?;
        let listing = output(Command::new("ldd").arg(from)).unwrap_or_default();
        for word in listing
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            libraries.insert(PathBuf::from(word));
        }
        Ok(())
    };
    copy(tests, "kernel-tests", true)?;
    copy(&breakout, "breakout", false)?;
    copy(Path::new("/bin/busybox"), "busybox", false)?;
    for tool in TOOLS {
        let path = output(Command::new("sh").args(["-c", &format!("command -v {tool}")]));
        let path = path.with_context(|| format!("{tool} is not installed"))?;
        let path = path.trim();
        // The shell's own kill has no file.
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/bin/{tool}")
        };
        copy(&fs::canonicalize(path)?, tool, false)?;
    }
    for library in libraries {
        let to = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(to.parent().context("a library has a directory")?)?;
        fs::copy(&library, to)?;
    }
    Ok(())
}

pub(super) fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Writes what the machine runs first: the tests that the filter matches, or a selection, which is larger for the oldest kernel.
pub(super) fn init_script(is_oldest: bool, filter: Option<&str>) -> String {
    // One kernel with the service's account, as Debian 12 runs it, and one with root's.
    let (account, kernel) = if is_oldest {
        ("service", "oldest")
    } else {
        ("root", "other")
    };
    let kernel = filter.map_or(kernel, |_| "");
    let modules = MODULES.join(" ");
    let filter = filter.unwrap_or_default();
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /usr/sbin\n\
         export PATH=/bin:/sbin:/usr/sbin:/usr/bin HOME=/tmp RUST_BACKTRACE=0 BREAKOUT_TEST_TRIES=3 BREAKOUT_TEST_LABS=2 BREAKOUT_TEST_SWITCHES=10 BREAKOUT_TEST_CALLS=1 BREAKOUT_TEST_FRAMES=300 BREAKOUT_TEST_KERNEL={kernel} BREAKOUT_TEST_FLAPS=5 BREAKOUT_TEST_LISTS=20 BREAKOUT_TEST_ACCOUNT={account}\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t bpf bpf /sys/fs/bpf\n\
         for m in {modules}; do modprobe $m 2>/dev/null; done\n\
         mkdir -p /etc; echo 127.0.0.1 localhost > /etc/hosts\n\
         ip link set lo up\n\
         kernel-tests --color never --test-threads 1 --skip bulk_tcp {filter} 2>&1\n\
         echo the machine is done\n\
         poweroff -f\n"
    )
}
