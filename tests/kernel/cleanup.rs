//! After a stop everything is as it was before the start.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use aya::maps::loaded_maps;
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::requirements::kernel_at_least;
use nix::sys::signal::Signal;
use serde_json::Value;

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
    settle(lab)?;
    let mut all = String::new();
    for command in [
        "ip link show",
        "ip rule show",
        "ip -6 rule show",
        "ip route show table all",
        "ip -6 route show table all",
        "tc qdisc show",
        "tc filter show dev lan ingress",
        "tc filter show dev lan egress",
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
        for id in tcx_programs(lab)? {
            writeln!(all, "breakout_tc or another TCX program {id} on lan")?;
        }
    }
    Ok(all)
}

/// Waits until the kernel has noticed that the links are up, which it does behind.
fn settle(lab: &Lab) -> Result<()> {
    for _ in 0..100 {
        let links = lab.gateway.ip("-o link show type veth up")?;
        let with_carrier = links.lines().filter(|link| link.contains("LOWER_UP"));
        if !links.contains("state UNKNOWN") && has_v6_addresses(lab, with_carrier.count())? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("the links do not come up")
}

/// Returns whether so many links, those with carrier, have their link-local address, and all IPv6 addresses have their routes: the kernel adds them a moment
/// after it was asked to.
fn has_v6_addresses(lab: &Lab, links: usize) -> Result<bool> {
    let addresses = lab.gateway.ip("-6 -o addr show")?;
    let routes = lab.gateway.ip("-6 route show table local")?;
    let words = addresses.split_ascii_whitespace();
    let added = words.filter_map(|word| word.split_once('/'));
    let mut added = added.map(|(address, _)| address);
    let is_link_local = |line: &&str| line.starts_with("local fe80:");
    Ok(routes.lines().filter(is_link_local).count() >= links
        && added.all(|address| routes.contains(&format!("local {address} "))))
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

/// The ids of the TC programs on both sides of the gateway's LAN interface, where they are attached by TCX.
fn tcx_programs(lab: &Lab) -> Result<Vec<u32>> {
    lab.gateway.enter(|| {
        let mut all = Vec::new();
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx("lan", side)?;
            all.extend(programs.iter().map(|program| program.id()));
        }
        Ok(all)
    })
}

/// The ids of the programs on the gateway's LAN interface, and of their maps.
fn attached(lab: &Lab) -> Result<(Vec<u32>, Vec<u32>)> {
    let listing = lab.gateway.exec("bpftool --json net show")?;
    let mut ids = BTreeSet::new();
    collect_ids(&serde_json::from_str(&listing)?, &mut ids);
    if kernel_at_least(6, 6)? {
        ids.extend(tcx_programs(lab)?);
    }
    let mut maps = BTreeSet::new();
    for program in loaded_programs() {
        let Ok(program) = program else { continue };
        if ids.contains(&program.id()) {
            maps.extend(program.map_ids()?.unwrap_or_default());
        }
    }
    Ok((ids.into_iter().collect(), maps.into_iter().collect()))
}

/// All numbers under the key `id`.
fn collect_ids(value: &Value, ids: &mut BTreeSet<u32>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_ids(item, ids)),
        Value::Object(fields) => {
            for (key, field) in fields {
                match field.as_u64() {
                    Some(id) if key == "id" => ids.extend(u32::try_from(id)),
                    _ => collect_ids(field, ids),
                }
            }
        }
        _ => {}
    }
}

/// Returns whether the kernel has freed these programs and maps, which it does a moment after their last user has gone.
fn freed(programs: &[u32], maps: &[u32]) -> Result<bool> {
    for _ in 0..100 {
        let program = loaded_programs()
            .flatten()
            .any(|p| programs.contains(&p.id()));
        let map = loaded_maps().flatten().any(|m| maps.contains(&m.id()));
        if !program && !map {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}

fn stopped(mode: &str) -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", mode))?;
    let before = inventory(&lab)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let during = inventory(&lab)?;
    let has_rules = during.contains("lookup 5001");
    ensure!(has_rules == (mode == "route"), "{during}");
    ensure!(
        during.contains("breakout_tc") && during.contains("breakout_xdp") == (mode == "redirect"),
        "{during}"
    );
    ensure!(!pins(&site)?.is_empty(), "nothing is pinned");
    ensure!(site.socket().exists());
    let (programs, maps) = attached(&lab)?;
    ensure!(
        programs.len() == if mode == "redirect" { 3 } else { 2 },
        "{programs:?}"
    );
    ensure!(maps.len() >= 5, "{maps:?}");
    daemon.stop()?;
    let after = inventory(&lab)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(
        freed(&programs, &maps)?,
        "programs {programs:?} or maps {maps:?} are still loaded"
    );
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
