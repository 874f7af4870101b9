//! After a stop everything is as it was before the start.

use std::fmt::Write;

use anyhow::{Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::requirements::kernel_at_least;
use nix::sys::signal::Signal;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sigterm_removes_everything_in_route_mode", || {
        stopped("route")
    }),
    ("sigterm_removes_everything_in_redirect_mode", || {
        stopped("redirect")
    }),
    ("sigint_stops_too", sigint),
];

/// Everything in the gateway that a controller could leave behind.
pub(crate) fn inventory(lab: &Lab) -> Result<String> {
    let mut all = String::new();
    for command in [
        "ip link show",
        "ip rule show",
        "ip -6 rule show",
        "ip route show table all",
        "ip -6 route show table all",
        "tc qdisc show",
        "tc filter show dev lan ingress",
        "nft list ruleset",
        "bpftool net show",
    ] {
        // Counters and times change by themselves.
        let text = lab.gateway.exec(command)?;
        let stable = text
            .lines()
            .map(|line| line.split(" expires ").next().unwrap_or(line));
        for line in stable {
            writeln!(all, "{line}")?;
        }
    }
    // Debian 12's bpftool does not know TCX yet. Kernels before 6.6 have a TC filter, which is listed above.
    if kernel_at_least(6, 6)? {
        let tcx = lab.gateway.enter(|| {
            let (_, programs) = SchedClassifier::query_tcx("lan", TcAttachType::Ingress)?;
            Ok(programs
                .iter()
                .map(|program| program.id())
                .collect::<Vec<_>>())
        })?;
        for id in tcx {
            writeln!(all, "breakout_tc or another TCX program {id} on lan")?;
        }
    }
    Ok(all)
}

/// Pins of this site, wherever the BPF file system is.
fn pins(site: &Site) -> Result<String> {
    let marker = site
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let found = breakout_tests::netns::run(std::process::Command::new("find").args([
        "/sys/fs/bpf",
        "-path",
        &format!("*{marker}*"),
    ]))?;
    Ok(found)
}

fn stopped(mode: &str) -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", mode))?;
    let before = inventory(&lab)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let during = inventory(&lab)?;
    ensure!(during.contains("lookup 5001"), "{during}");
    ensure!(
        during.contains("breakout_tc") && during.contains("breakout_xdp") == (mode == "redirect"),
        "{during}"
    );
    ensure!(!pins(&site)?.is_empty(), "nothing is pinned");
    ensure!(site.socket().exists());
    daemon.stop()?;
    let after = inventory(&lab)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(pins(&site)?.is_empty(), "pins are left: {}", pins(&site)?);
    ensure!(!site.socket().exists(), "the socket is left");
    Ok(())
}

fn sigint() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let before = inventory(&lab)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.signal(Signal::SIGINT)?;
    daemon.stop()?;
    ensure!(inventory(&lab)? == before);
    Ok(())
}
