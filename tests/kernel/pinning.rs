//! Flows that stay: through a restart of the controller, with a full table, and with the operator's own NAT.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::Stream;

use crate::Test;
use crate::office::{MEDIA, Office, address, config, ways};

pub(crate) const TESTS: &[Test] = &[
    ("pins_survive_the_controller", survive),
    ("a_full_table_of_pins_goes_by_the_ruleset", full),
    ("hard_rules_fail_back_at_once", hard),
    ("the_operators_own_nat_is_moved_along", own_nat),
    ("bypass_moves_everything_at_once", bypass),
];

const QUICK: &str = "probes = []\n[health]\nhold_down = \"500ms\"\n";

fn survive() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let daemon = Daemon::start(site, &lab.gateway)?;
    let local = office.connections(20)?;
    daemon.kill()?;
    // Whoever takes over finds the link down, and up again: those on the WAN stay there.
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    local.rounds(5)?;
    ensure!(ways(&local) == [20, 0, 0], "{:?}", ways(&local));
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(office.is_up(false))?;
    let by_wan = office.connections(20)?;
    daemon.kill()?;
    lab.internet.ip("link set eth0 up")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    // That it was down before is remembered, and so it is held down.
    ensure!(office.new_way()? == "wan");
    daemon.wait_until(office.is_up(true))?;
    ensure!(office.new_way()? == "internet");
    by_wan.rounds(5)?;
    ensure!(ways(&by_wan) == [0, 20, 0], "{:?}", ways(&by_wan));
    let flows = site.json(&lab.gateway, &["flows"])?;
    ensure!(flows["pinned"].as_u64() >= Some(20), "{flows}");
    daemon.stop()?;
    Ok(())
}

fn full() -> Result<()> {
    let office = Office::open(&format!("{QUICK}[pinning]\nsize = 64\n"))?;
    let (lab, site) = (&office.lab, &office.site);
    let daemon = Daemon::start(site, &lab.gateway)?;
    let connections = office.connections(300)?;
    connections.rounds(10)?;
    ensure!(
        ways(&connections) == [300, 0, 0],
        "{:?}",
        ways(&connections)
    );
    let flows = site.json(&lab.gateway, &["flows", "--limit", "1000"])?;
    ensure!(
        flows["pinned"].as_u64() <= Some(64) && flows["size"] == 64,
        "{flows}"
    );
    let metrics = lab.gateway.exec(&format!(
        "curl -sS --unix-socket {} http://breakout/metrics",
        site.socket().display()
    ))?;
    let pinned = metrics
        .lines()
        .find_map(|line| line.strip_prefix("breakout_pin_events_total{event=\"pinned\"} "));
    let pinned: f64 = pinned.unwrap_or_default().parse()?;
    ensure!(
        pinned >= 300.0,
        "more were pinned than there is room for: {pinned}"
    );
    daemon.stop()?;
    Ok(())
}

fn hard() -> Result<()> {
    let rule = "[[policy]]\ncategory = \"optimize\"\naction = \"local\"\nfailback = \"hard\"\n";
    let office = Office::open(&format!("{QUICK}{rule}"))?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    ensure!(site.json(&lab.gateway, &["flows"])?["pinned"] == 0);
    daemon.stop()?;
    Ok(())
}

/// The operator translates addresses himself, to a fixed one. The kernel would go on with it on the other way.
fn own_nat() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    site.configure(&config(QUICK).replace("masquerade = true", ""))?;
    lab.gateway.exec("nft add table ip office")?;
    lab.gateway
        .exec("nft add chain ip office post { type nat hook postrouting priority srcnat ; }")?;
    lab.gateway
        .exec("nft add rule ip office post oifname \"inet\" snat to 10.3.0.1")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    let pulled = Instant::now();
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let gap = call.gap_since(pulled);
    ensure!(gap < Duration::from_secs(1), "silent for {gap:?}");
    daemon.stop()?;
    Ok(())
}

fn bypass() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    ensure!(
        site.output(&lab.gateway, &["bypass", "on", "--for", "1h"])?
            .status
            .success()
    );
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    ensure!(
        site.output(&lab.gateway, &["bypass", "off"])?
            .status
            .success()
    );
    let ended = Instant::now();
    ensure!(office.new_way()? == "internet");
    daemon.wait_until(|_| ended.elapsed() > Duration::from_secs(1))?;
    ensure!(
        call.who_since(ended) == ["wan"],
        "what was moved stays: {:?}",
        call.who_since(ended)
    );
    daemon.stop()?;
    Ok(())
}
