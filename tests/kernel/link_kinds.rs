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
use crate::tunnels::GRE;

pub(crate) const TESTS: &[Test] = &[
    ("vlan_tags_count_wherever_they_stand", tags),
    (VLAN, vlan_interface),
    (NETEM, lossy_link),
];

pub(crate) const VLAN: &str = "a_vlan_interface_is_a_lan_like_any_other";
pub(crate) const NETEM: &str = "a_link_that_delays_and_loses_packets_is_no_obstacle";

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
        GRE => (
            "ip link add bo-gre type gre local 10.8.0.1 remote 10.8.0.2",
            "needs GRE tunnels (CONFIG_NET_IPGRE)",
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

/// The office is in VLAN 7 and the provider in VLAN 8, on both ends of the wires. In redirect mode TC forwards.
/// What comes tagged to a LAN that is named by its card is steered in route mode only: which VLANs the gateway is in the kernel knows.
fn vlan_interface() -> Result<()> {
    for (mode, lan, egress) in [
        ("route", "lan.7", "inet.8"),
        ("redirect", "lan.7", "inet"),
        ("redirect", "lan.7", "inet.8"),
        ("route", "lan", "inet.8"),
    ] {
        let flows = [
            Flow::new(Transport::Tcp, "52.98.1.1", 443),
            Flow::new(Transport::Udp, "2603:1063::1", 3478),
            Flow::new(Transport::Tcp, "198.51.100.7", 443),
        ];
        let lab = Lab::build()?;
        let _servers = lab.serve(&flows)?;
        tag(&lab.client, "eth0", 7, ["10.1.0.2", "fd00:1::2"])?;
        tag(&lab.gateway, "lan", 7, ["10.1.0.1", "fd00:1::1"])?;
        lab.client
            .ip_lines("route replace default via 10.1.0.1\nroute replace default via fd00:1::1")?;
        if egress == "inet.8" {
            tag(&lab.gateway, "inet", 8, ["10.3.0.1", "fd00:3::1"])?;
            tag(&lab.internet, "eth0", 8, ["10.3.0.2", "fd00:3::2"])?;
            lab.gateway.sysctl("net.ipv4.conf.inet/8.rp_filter", 0)?;
            lab.internet.ip_lines(
                "route replace 10.1.0.0/24 via 10.3.0.1\nroute replace fd00:1::/64 via fd00:3::1",
            )?;
        }
        let config = CONFIG.replace("MODE", mode);
        let config = config.replace("\"lan\"", &format!("\"{lan}\""));
        let site = Site::new(&config.replace("\"inet\"", &format!("\"{egress}\"")))?;
        let daemon = Daemon::start(&site, &lab.gateway)?;
        for (flow, expected) in flows.iter().zip(["internet", "internet", "wan"]) {
            let identity = flow.talk(&lab.client)?;
            ensure!(
                identity == expected,
                "{mode}, {lan} to {egress}: {flow:?} came out at {identity}"
            );
        }
        let local = site.json(&lab.gateway, &["status"])?["egress"]["local"].clone();
        let expected = match (mode, egress) {
            ("redirect", "inet.8") => "inet.8 is a vlan",
            ("redirect", _) => "no LAN interface has native XDP",
            _ => "null",
        };
        ensure!(
            local["why_tc"].to_string().contains(expected),
            "{mode}, {lan} to {egress}: {local}"
        );
        daemon.stop()?;
    }
    Ok(())
}

/// Moves the addresses of an interface to a VLAN of it.
fn tag(namespace: &Namespace, interface: &str, vlan: u16, [v4, v6]: [&str; 2]) -> Result<()> {
    namespace.ip_lines(&format!(
        "addr flush dev {interface}
         link add link {interface} name {interface}.{vlan} type vlan id {vlan}
         link set {interface}.{vlan} up
         addr add {v4}/24 dev {interface}.{vlan}
         addr add {v6}/64 dev {interface}.{vlan} nodad"
    ))
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
