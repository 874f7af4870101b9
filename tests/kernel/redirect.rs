//! What XDP leaves to the kernel, which still sends it by the right link.

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::seen;
use breakout_tests::server::Servers;
use serde_json::Value;

use super::flows::next_hops_known;
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("redirect_leaves_hard_packets_to_the_kernel", hard_packets),
    ("redirect_follows_a_new_mac_of_the_next_hop", new_mac),
    (
        "redirect_without_next_hop_is_forwarded_by_the_kernel",
        no_next_hop,
    ),
];

/// Packets counted under a reason.
pub(crate) fn reason(stats: &Value, name: &str) -> u64 {
    let reasons = stats["reasons"].as_array().into_iter().flatten();
    let found = reasons.filter(|reason| reason["reason"] == name);
    found.filter_map(|reason| reason["packets"].as_u64()).sum()
}

/// Sends datagrams from the client: to Teams media, with these socket options.
fn send(lab: &Lab, script: &str) -> Result<()> {
    let mut command = lab.client.command("python3");
    command.args(["-c", script]);
    breakout_tests::netns::run(&mut command).map(drop)
}

fn hard_packets() -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    lab.own([flow.destination.ip()])?;
    // The egress is narrower than the LAN.
    lab.gateway.ip("link set inet mtu 1400")?;
    lab.internet.ip("link set eth0 mtu 1400")?;
    let site = Site::new(&CONFIG.replace("MODE", "redirect"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| next_hops_known(&site, &lab))?;
    seen::watch(&lab.internet, std::slice::from_ref(&flow))?;
    seen::watch(&lab.wan, std::slice::from_ref(&flow))?;
    let prelude = "import socket as s; u = s.socket(s.AF_INET, s.SOCK_DGRAM); \
                   to = ('52.113.0.1', 3478); ";
    for (what, counter, script) in [
        (
            "TTL 1",
            "kernel_ttl",
            "u.setsockopt(0, s.IP_TTL, 1); u.sendto(b'x', to)",
        ),
        (
            "IP options",
            "kernel_options",
            "u.setsockopt(0, s.IP_OPTIONS, bytes([1, 1, 1, 0])); u.sendto(b'x', to)",
        ),
        (
            "longer than the egress MTU, DF clear",
            "kernel_mtu",
            "u.setsockopt(0, 10, 0); u.sendto(b'x' * 1450, to)",
        ),
        (
            "a first fragment",
            "kernel_fragment",
            "u.setsockopt(0, 10, 0); u.sendto(b'x' * 2000, to)",
        ),
    ] {
        let before = site.json(&lab.gateway, &["stats"])?;
        send(&lab, &format!("{prelude}{script}")).with_context(|| what.to_owned())?;
        let after = site.json(&lab.gateway, &["stats"])?;
        let counted = reason(&after, counter) - reason(&before, counter);
        ensure!(counted == 1, "{what}: {counter} counted {counted}: {after}");
    }
    // The options packet whole, the long one in fragments that the receiver put together. TTL 1 ended at the gateway.
    let arrived = seen::packets(&lab.internet)?.remove(&seen::key(&flow));
    ensure!(arrived >= Some(2), "{arrived:?} arrived by the local link");
    let strayed = seen::packets(&lab.wan)?.remove(&seen::key(&flow));
    ensure!(strayed == Some(0), "{strayed:?} strayed to the WAN");
    daemon.stop()?;
    Ok(())
}

fn new_mac() -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    lab.own([flow.destination.ip()])?;
    let _internet = Servers::start(&lab.internet, "internet", std::slice::from_ref(&flow))?;
    let site = Site::new(&CONFIG.replace("MODE", "redirect"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| next_hops_known(&site, &lab))?;
    ensure!(flow.talk(&lab.client)? == "internet");
    lab.internet.ip("link set eth0 address 02:00:00:00:be:ef")?;
    // What a router does when its MAC address changes.
    lab.gateway
        .ip("neigh replace 10.3.0.2 dev inet lladdr 02:00:00:00:be:ef nud reachable")?;
    daemon.wait_until(|_| {
        let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
        status["egress"]["local"]["v4"]["mac"] == "02:00:00:00:be:ef"
    })?;
    ensure!(flow.talk(&lab.client)? == "internet");
    daemon.stop()?;
    Ok(())
}

fn no_next_hop() -> Result<()> {
    let lab = Lab::build()?;
    // Nobody has this address, so it is never resolved.
    let config = CONFIG
        .replace("MODE", "redirect")
        .replace("10.3.0.2", "10.3.0.77");
    let site = Site::new(&config)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    send(
        &lab,
        "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('52.113.0.1', 3478))",
    )?;
    let stats = site.json(&lab.gateway, &["stats"])?;
    ensure!(reason(&stats, "kernel_next_hop") == 1, "{stats}");
    ensure!(reason(&stats, "steered") == 0, "{stats}");
    daemon.stop()?;
    Ok(())
}
