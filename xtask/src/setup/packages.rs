//! Debian packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Step;
use crate::process::{output, run_logged};

/// apt may have to fetch a few hundred megabytes.
const LIMIT: Duration = Duration::from_secs(900);

/// Packages that are wanted together.
pub(crate) struct Packages {
    why: &'static str,
    names: &'static [&'static str],
}

/// What compiling needs: bpf-linker links with LLVM, whose version must not be older than the compiler's.
pub(crate) fn build() -> Packages {
    Packages {
        why: "LLVM for the eBPF linker, and a C toolchain to link with",
        names: &[
            "gcc",
            "libc6-dev",
            "llvm-22-dev",
            "libpolly-22-dev",
            "zlib1g-dev",
        ],
    }
}

/// What the lab runs.
pub(crate) fn lab() -> Packages {
    Packages {
        why: "tools for the lab's namespaces and counters, and what gateways have beside Breakout",
        names: &[
            "iproute2",
            "nftables",
            "ethtool",
            "procps",
            "bpftool",
            "conntrack",
            "curl",
            "dnsmasq-base",
            "iperf3",
            "iptables",
            "iputils-arping",
            "isc-dhcp-client",
            "netsniff-ng",
            "socat",
            "squid",
            "tcpreplay",
            "tmux",
            "traceroute",
        ],
    }
}

/// What Breakout is measured with and beside.
pub(crate) fn bench() -> Packages {
    Packages {
        why: "peers and traffic for the benchmarks",
        names: &["ipset", "iptables", "iperf3"],
    }
}

/// What libFuzzer is compiled with.
pub(crate) fn fuzz() -> Packages {
    Packages {
        why: "a C++ compiler for libFuzzer",
        names: &["g++", "gcc", "libc6-dev"],
    }
}

/// What boots other kernels.
pub(crate) fn machines() -> Packages {
    Packages {
        why: "qemu, to run the kernel tests under other kernels",
        names: &[
            "debootstrap",
            "e2fsprogs",
            "qemu-system-x86",
            "busybox-static",
            "cpio",
            "kmod",
            "binutils",
        ],
    }
}

/// Programs that boot 64-bit ARM, beside those.
pub(crate) fn arm() -> Packages {
    Packages {
        why: "qemu for 64-bit ARM",
        names: &["qemu-system-arm"],
    }
}

/// What compiles and checks packages for gateways.
pub(crate) fn dist() -> Packages {
    Packages {
        why: "C compilers for static programs, of this and the other kind of machine",
        names: &[
            "binutils",
            "gcc-aarch64-linux-gnu",
            "libc6-dev-arm64-cross",
            "musl-tools",
        ],
    }
}

/// What the second recipe for the eBPF compiler needs.
pub(crate) fn debian_rust() -> Packages {
    Packages {
        why: "Debian's Rust with the source of core, to compile eBPF",
        names: &["rustc-web", "cargo-web", "rust-web-src"],
    }
}

impl Packages {
    /// Those that are not installed.
    pub(crate) fn absent(&self) -> Vec<&'static str> {
        let listing = output(Command::new("dpkg-query").args([
            "--show",
            "--showformat",
            "${Package} ${db:Status-Status}\\n",
        ]));
        let listing = listing.unwrap_or_default();
        let installed = |name: &&str| {
            listing
                .lines()
                .any(|line| line == format!("{name} installed"))
        };
        self.names
            .iter()
            .copied()
            .filter(|name| !installed(name))
            .collect()
    }
}

/// Where Debian's packages ask whether they may start their services (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Keeps packages from starting services while it is there, unless somebody has a policy for that already.
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    fn start() -> Result<Self> {
        let is_ours = !Path::new(POLICY).exists();
        if is_ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n")
                .context("cannot keep services from starting")?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(NoServices { is_ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

impl Step for Packages {
    fn title(&self) -> String {
        format!("Debian packages: {}", self.why)
    }

    fn missing(&self) -> Vec<String> {
        let absent = self.absent();
        if absent.is_empty() {
            return Vec::new();
        }
        vec![
            "apt-get update".to_owned(),
            format!(
                "apt-get install --yes --no-install-recommends {}",
                absent.join(" ")
            ),
        ]
    }

    fn install(&self) -> Result<()> {
        let apt = || {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        };
        run_logged(apt().arg("update"), LIMIT)
            .context("is this Debian 12 with a reachable package mirror?")?;
        // Only the programs are wanted: no proxy shall run on this machine because of us.
        let _no_services = NoServices::start()?;
        run_logged(
            apt()
                .args(["install", "--yes", "--no-install-recommends"])
                .args(self.absent()),
            LIMIT,
        )
    }

    fn needs_root(&self) -> bool {
        true
    }
}
