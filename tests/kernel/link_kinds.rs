//! Links that not every kernel has: VLAN interfaces, and links that delay and lose packets.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::netns::Namespace;
use breakout_tests::wire::{Ipv4Udp, Wire};

use crate::Test;
use crate::redirect::reason;

pub(crate) const TESTS: &[Test] = &[
    ("vlan_tags_count_wherever_they_stand", tags),
    (VLAN, vlan_interface),
    (NETEM, lossy_link),
];

const VLAN: &str = "a_vlan_interface_is_a_lan_like_any_other";
const NETEM: &str = "a_link_that_delays_and_loses_packets_is_no_obstacle";

/// Why this kernel cannot run a test of a kind of link, if so.
pub(crate) fn lacks(name: &str) -> Option<&'static str> {
    let (command, missing) = match name {
        VLAN => (
            "ip link add link bo-probe name bo-vlan type vlan id 7",
            "needs VLAN interfaces (CONFIG_VLAN_8021Q)",
        ),
        NETEM => (
            "tc qdisc add dev bo-probe root netem delay 1ms",
            "needs netem (CONFIG_NET_SCH_NETEM)",
        ),
        _ => return None,
    };
    let tried = Namespace::create(format!("bo{}-probe", std::process::id())).and_then(|place| {
        place.ip("link add bo-probe type veth peer name bo-peer")?;
        place.exec(command)
    });
    tried.is_err().then_some(missing)
}

/// The kernel takes the outer tag out of the frame before TC sees it.
fn tags() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let wire = Wire::open(&lab.client, "eth0")?;
    let mut header = lab.ethernet(0)?;
    header.truncate(12);
    for (tags, expected) in [
        (0, "steered"),
        (1, "steered"),
        (2, "steered"),
        (3, "vlan_depth"),
        (4, "vlan_depth"),
    ] {
        let before = reason(&site.json(&lab.gateway, &["stats"])?, expected);
        let mut frame = header.clone();
        for tag in 0..tags {
            frame.extend([0x81, 0x00, 0, 7 + tag]);
        }
        frame.extend([0x08, 0x00]);
        frame.extend(Ipv4Udp::new([52, 113, 0, 1], 3478).to_bytes());
        wire.send(&frame)?;
        let after = reason(&site.json(&lab.gateway, &["stats"])?, expected);
        ensure!(
            after == before + 1,
            "{tags} tags: {expected} went from {before} to {after}"
        );
    }
    daemon.stop()?;
    Ok(())
}

/// The office is in VLAN 7, on both ends of the wire.
fn vlan_interface() -> Result<()> {
    for mode in ["route", "redirect"] {
        let flows = [
            Flow::new(Transport::Tcp, "52.98.1.1", 443),
            Flow::new(Transport::Udp, "2603:1063::1", 3478),
            Flow::new(Transport::Tcp, "198.51.100.7", 443),
        ];
        let lab = Lab::build()?;
        let _servers = lab.serve(&flows)?;
        lab.client.ip_lines(
            "addr flush dev eth0
             link add link eth0 name eth0.7 type vlan id 7
             link set eth0.7 up
             addr add 10.1.0.2/24 dev eth0.7
             addr add fd00:1::2/64 dev eth0.7 nodad
             route replace default via 10.1.0.1
             route replace default via fd00:1::1",
        )?;
        lab.gateway.ip_lines(
            "addr flush dev lan
             link add link lan name lan.7 type vlan id 7
             link set lan.7 up
             addr add 10.1.0.1/24 dev lan.7
             addr add fd00:1::1/64 dev lan.7 nodad",
        )?;
        let mut config = CONFIG.replace("MODE", mode);
        if mode == "route" {
            config = config.replace("\"lan\"", "\"lan.7\"");
        }
        let site = Site::new(&config)?;
        let mut daemon = Daemon::start(&site, &lab.gateway)?;
        daemon.wait_until(|_| mode == "route" || site.next_hops_known(&lab.gateway))?;
        for (flow, expected) in flows.iter().zip(["internet", "internet", "wan"]) {
            let identity = flow.talk(&lab.client)?;
            ensure!(
                identity == expected,
                "{mode}: {flow:?} came out at {identity}"
            );
        }
        daemon.stop()?;
    }
    Ok(())
}

fn lossy_link() -> Result<()> {
    for mode in ["route", "redirect"] {
        let flow = Flow::new(Transport::Tcp, "52.98.1.1", 443);
        let lab = Lab::build()?;
        let _servers = lab.serve(std::slice::from_ref(&flow))?;
        let site = Site::new(&CONFIG.replace("MODE", mode))?;
        let mut daemon = Daemon::start(&site, &lab.gateway)?;
        daemon.wait_until(|_| mode == "route" || site.next_hops_known(&lab.gateway))?;
        lab.internet
            .exec("tc qdisc add dev eth0 root netem delay 5ms 2ms loss 2%")?;
        let destination: SocketAddr = flow.destination;
        let identity = bulk(&lab.client, destination, 300_000)?;
        ensure!(identity == "internet", "{mode}: came out at {identity}");
        daemon.stop()?;
    }
    Ok(())
}
