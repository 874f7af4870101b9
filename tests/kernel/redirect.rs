//! What XDP leaves to the kernel, which still sends it by the right link.

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::seen;
use breakout_tests::server::Servers;
use breakout_tests::wire::{Ipv4Udp, Wire};
use serde_json::Value;

use crate::Test;
use crate::any_link::forwards_nothing;

pub(crate) const TESTS: &[Test] = &[
    ("redirect_leaves_hard_packets_to_the_kernel", hard_packets),
    ("redirect_follows_a_new_mac_of_the_next_hop", new_mac),
    ("replies_are_redirected_too_if_wanted", replies),
    (
        "an_egress_that_takes_no_frames_now_is_left_to_tc",
        no_ndo_xmit,
    ),
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

/// Sends a datagram to Teams media from the client.
fn send(lab: &Lab, datagram: &Ipv4Udp) -> Result<()> {
    let mut frame = lab.ethernet(0x0800)?;
    frame.extend(datagram.to_bytes());
    Wire::open(&lab.client, "eth0")?.send(&frame)
}

fn media() -> Ipv4Udp {
    Ipv4Udp::new([52, 113, 0, 1], 3478)
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
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    seen::watch(&lab.internet, std::slice::from_ref(&flow))?;
    seen::watch(&lab.wan, std::slice::from_ref(&flow))?;
    let cases = [
        ("TTL 1", "kernel_ttl", Ipv4Udp { ttl: 1, ..media() }),
        (
            "IP options",
            "tc_options",
            Ipv4Udp {
                options: vec![1, 1, 1, 0],
                ..media()
            },
        ),
        (
            "longer than the egress MTU",
            "too_big",
            Ipv4Udp {
                payload: 1430,
                ..media()
            },
        ),
        (
            "a first fragment",
            "tc_fragment",
            Ipv4Udp {
                fragment: 0x2000,
                payload: 800,
                ..media()
            },
        ),
    ];
    for (what, counter, datagram) in cases {
        let before = site.json(&lab.gateway, &["stats"])?;
        send(&lab, &datagram).with_context(|| what.to_owned())?;
        daemon.wait_until(|_| {
            let after = site.json(&lab.gateway, &["stats"]).unwrap_or_default();
            reason(&after, counter) == reason(&before, counter) + 1
        })?;
    }
    // The one with options and the first fragment. TTL 1 ended at the gateway, and what was too long was answered.
    let arrived = |end| -> Result<_> { Ok(seen::packets(end)?.remove(&seen::key(&flow))) };
    ensure!(
        arrived(&lab.internet)? == Some(2),
        "{:?} arrived",
        arrived(&lab.internet)?
    );
    ensure!(
        arrived(&lab.wan)? == Some(0),
        "{:?} strayed",
        arrived(&lab.wan)?
    );
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
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
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

/// Without GRO at its other end a veth drops what XDP redirects to it.
fn no_ndo_xmit() -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    lab.own([flow.destination.ip()])?;
    let _internet = Servers::start(&lab.internet, "internet", std::slice::from_ref(&flow))?;
    lab.internet.exec("ethtool -K eth0 gro off")?;
    let site = Site::new(&CONFIG.replace("MODE", "redirect"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    forwards_nothing(&lab.gateway, "lan", "inet")?;
    ensure!(flow.talk(&lab.client)? == "internet");
    let status = site.json(&lab.gateway, &["status"])?;
    let local = &status["egress"]["local"];
    let told = local["why_tc"].as_str().unwrap_or_default();
    ensure!(told.contains("inet takes no redirected frames"), "{status}");
    ensure!(local["hook"] == "tc", "{status}");
    let stats = site.json(&lab.gateway, &["stats"])?;
    ensure!(reason(&stats, "steered") == 0, "{stats}");
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
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    send(&lab, &media())?;
    daemon.wait_until(|_| {
        let stats = site.json(&lab.gateway, &["stats"]).unwrap_or_default();
        reason(&stats, "tc_next_hop") == 1
    })?;
    let stats = site.json(&lab.gateway, &["stats"])?;
    ensure!(reason(&stats, "steered") == 0, "{stats}");
    daemon.stop()?;
    Ok(())
}

/// Both directions of steered flows pass by the kernel, and nothing else does.
fn replies() -> Result<()> {
    let v4 = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    let v6 = Flow::new(Transport::Tcp, "2603:1006::1", 443);
    let other = Flow::new(Transport::Tcp, "203.0.113.1", 443);
    let lab = Lab::build()?;
    let flows = [v4.clone(), v6.clone(), other.clone()];
    let _servers = lab.serve(&flows)?;
    // As on a wire at this end too; and a veth takes redirected frames only where its peer has GRO.
    lab.internet
        .exec("ethtool -K eth0 tx off tso off gso off")?;
    lab.client.exec("ethtool -K eth0 gro on")?;
    let config = CONFIG.replace("MODE", "redirect");
    let config = config.replace("probes = []", "probes = []\nreturn = true");
    let site = Site::new(&config)?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    for flow in [&v4, &v6] {
        let identity = bulk(&lab.client, flow.destination, 10_000_000)?;
        ensure!(identity == "internet", "{identity}");
    }
    ensure!(other.talk(&lab.client)? == "wan");
    seen::no_bad_headers(&lab.client)?;
    let stats = site.json(&lab.gateway, &["stats"])?;
    let count = |way: &str| stats["replies"][way]["packets"].as_u64().unwrap_or(0);
    ensure!(count("redirected") > 10_000, "{}", stats["replies"]);
    ensure!(count("by_kernel") < 50, "{}", stats["replies"]);
    // Without our programs the replies come as before.
    let log = daemon.stop()?;
    ensure!(!log.contains("WARN"), "{log}");
    let left = lab.gateway.exec("ip link show inet")?;
    ensure!(!left.contains("xdp"), "{left}");
    Ok(())
}
