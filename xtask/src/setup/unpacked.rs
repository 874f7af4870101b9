//! BIRD and FRRouting, whose parsers read what is exported for them, Prometheus, and coturn, a relay as those of Teams. They are
//! unpacked, not installed: installing them would start them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Step;
use crate::paths;
use crate::process::run_logged;

const PACKAGES: [&str; 4] = ["bird2", "frr", "prometheus", "coturn"];
/// A program of each.
const PROGRAMS: [&str; 4] = [
    "usr/sbin/bird",
    "usr/bin/vtysh",
    "usr/bin/promtool",
    "usr/bin/turnserver",
];
const LIMIT: Duration = Duration::from_secs(300);

/// The packages, with the libraries that they need.
pub(crate) struct Unpacked;

fn place() -> PathBuf {
    paths::root().join("target/unpacked")
}

impl Step for Unpacked {
    fn title(&self) -> String {
        "BIRD, FRRouting, Prometheus and coturn, unpacked, to try beside Breakout".to_owned()
    }

    fn missing(&self) -> Vec<String> {
        let root = place().join("root");
        if PROGRAMS.iter().all(|program| root.join(program).is_file()) {
            return Vec::new();
        }
        let (place, packages) = (place(), PACKAGES.join(" "));
        vec![
            format!(
                "apt-get install --yes --no-install-recommends --download-only \
                 -o Dir::Cache::archives={} {packages}",
                place.display()
            ),
            format!(
                "for deb in {0}/*.deb; do dpkg-deb --extract $deb {0}/root; done",
                place.display()
            ),
        ]
    }

    fn install(&self) -> Result<()> {
        let place = place();
        fs::create_dir_all(place.join("partial"))?;
        run_logged(Command::new("apt-get").arg("update"), LIMIT)?;
        let mut download = Command::new("apt-get");
        download
            .args([
                "install",
                "--yes",
                "--no-install-recommends",
                "--download-only",
                "-o",
            ])
            .arg(format!("Dir::Cache::archives={}", place.display()))
            .args(PACKAGES);
        run_logged(&mut download, LIMIT)
            .context("is this Debian 12 with a reachable package mirror?")?;
        for entry in fs::read_dir(&place)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("--extract").arg(&path).arg(place.join("root"));
                run_logged(&mut unpack, LIMIT)?;
            }
        }
        Ok(())
    }

    fn needs_root(&self) -> bool {
        true
    }
}
