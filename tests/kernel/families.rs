//! IPv4 and IPv6 of one link stand on their own, and flows of both are kept and moved alike.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::{Connections, Stream};

use crate::Test;
use crate::office::{MAIL6, MEDIA6, Office, address, config, ways};

pub(crate) const TESTS: &[Test] = &[
    ("ipv6_is_left_where_only_ipv6_is_dead", only_v6),
    ("ipv6_flows_stay_and_move_like_others", flows),
    ("a_family_that_is_not_there_is_no_alert", absent),
    ("a_learnt_gateway_that_is_gone_is_an_alert", learnt),
];

const PROBES: &str =
    "probes = [\"icmp:10.3.0.2\", \"icmp:fd00:3::2\"]\n[health]\nhold_down = \"500ms\"\n";

fn only_v6() -> Result<()> {
    let office = Office::open(PROBES)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    daemon.wait_until(office.is_in_state("v6", "up"))?;
    ensure!(office.new_way()? == "internet" && office.new_way6()? == "internet");
    lab.internet.exec("nft add table ip6 dead")?;
    lab.internet.exec(
        "nft add chain ip6 dead in { type filter hook prerouting priority -300 ; policy drop ; }",
    )?;
    daemon.wait_until(office.is_in_state("v6", "down"))?;
    ensure!(office.new_way6()? == "wan" && office.new_way()? == "internet");
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(
        status["egress"]["local"]["v4"]["standing"]["state"] == "up",
        "{status}"
    );
    lab.internet.exec("nft delete table ip6 dead")?;
    daemon.wait_until(office.is_in_state("v6", "up"))?;
    ensure!(office.new_way6()? == "internet");
    daemon.stop()?;
    Ok(())
}

fn flows() -> Result<()> {
    let office = Office::open("probes = []\n[health]\nhold_down = \"500ms\"\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA6))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    let pulled = Instant::now();
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let gap = call.gap_since(pulled);
    ensure!(gap < Duration::from_secs(1), "silent for {gap:?}");
    let by_wan = Connections::open(&lab.client, &[address(MAIL6)], 20)?;
    lab.internet.ip("link set eth0 up")?;
    // With the carrier the kernel has taken the far end's address and route away.
    lab.internet
        .ip("addr replace fd00:3::2/64 dev eth0 nodad")?;
    daemon.wait_until(office.is_in_state("v6", "up"))?;
    let back = Instant::now();
    ensure!(office.new_way6()? == "internet");
    by_wan.rounds(10)?;
    ensure!(ways(&by_wan) == [0, 20, 0], "{:?}", ways(&by_wan));
    ensure!(
        call.who_since(back) == ["wan"],
        "{:?}",
        call.who_since(back)
    );
    daemon.stop()?;
    Ok(())
}

/// Most links at branch offices have IPv4 only.
fn absent() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    site.configure(&config("probes = []\n").replace("gateway6", "# gateway6"))?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(
        status["alerts"].as_array().is_some_and(Vec::is_empty)
            && status["egress"]["local"]["v6"]["standing"].is_null(),
        "{status}"
    );
    let metrics = lab.gateway.exec(&format!(
        "curl -sS --unix-socket {} http://breakout/metrics",
        site.socket().display()
    ))?;
    ensure!(
        metrics.contains("breakout_egress_state{egress=\"local\",family=\"ipv4\",state=\"up\"} 1")
            && !metrics.contains("family=\"ipv6\",state"),
        "{metrics}"
    );
    daemon.stop()?;
    Ok(())
}

fn learnt() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    site.configure(&config("probes = []\n").replace("gateway", "# gateway"))?;
    lab.gateway
        .ip("route add default via 10.3.0.2 dev inet metric 500")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(
        site.output(&lab.gateway, &["status", "--check"])?
            .status
            .success()
    );
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(office.is_up(false))?;
    let checked = site.output(&lab.gateway, &["status", "--check"])?;
    ensure!(checked.status.code() == Some(9), "{checked:?}");
    let message = String::from_utf8_lossy(&checked.stderr).into_owned();
    ensure!(
        message.contains("egress local is down for IPv4"),
        "{message}"
    );
    daemon.stop()?;
    Ok(())
}
