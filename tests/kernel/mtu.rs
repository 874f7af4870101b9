//! Redirect mode to an egress that is narrower than the LAN: what is too long is answered, and segment sizes are held to what fits.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::seen::{self, Counter};
use breakout_tests::server::Servers;
use breakout_tests::wire::Wire;

use crate::Test;
use crate::any_link::{bridge_the_lan, forwards_nothing};
use crate::redirect::reason;

pub(crate) const TESTS: &[Test] = &[
    ("redirect_by_xdp_answers_what_is_too_long", || {
        answers("lan", "")
    }),
    ("redirect_that_translates_answers_what_is_too_long", || {
        answers("lan", "masquerade = true\n")
    }),
    (
        "downloads_by_a_narrow_egress_in_route_mode_go_on",
        downloads,
    ),
    ("redirect_by_tc_answers_what_is_too_long", || {
        answers("br1", "")
    }),
    (
        "redirect_by_tc_carries_aggregates_of_any_length",
        aggregates,
    ),
];

const NARROW: u16 = 1400;

/// Whatever is too long for the egress is lost without a word, in either direction.
fn downloads() -> Result<()> {
    let lab = Lab::build()?;
    let flows = [
        Flow::new(Transport::Tcp, "52.98.1.1", 443),
        Flow::new(Transport::Tcp, "2603:1006::1", 443),
    ];
    lab.own(flows.iter().map(|flow| flow.destination.ip()))?;
    let _servers = Servers::start(&lab.internet, "internet", &flows)?;
    lab.gateway.ip(&format!("link set inet mtu {NARROW}"))?;
    // What is merged would pass.
    for far in [&lab.internet, &lab.client] {
        far.exec("ethtool -K eth0 tso off gso off")?;
    }
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    for flow in &flows {
        let identity = bulk(&lab.client, flow.destination, 500_000)?;
        ensure!(identity == "internet", "{identity}");
    }
    daemon.stop()?;
    Ok(())
}

/// The kernel forwards nothing to the egress here, and has no route by which it could answer.
fn answers(lan: &str, more: &str) -> Result<()> {
    let lab = Lab::build()?;
    if lan == "br1" {
        bridge_the_lan(&lab)?;
    }
    lab.gateway.ip(&format!("link set inet mtu {NARROW}"))?;
    // The servers know nothing of the narrow link, as if it were further away, but for what keeps their own packets whole.
    lab.internet.ip_lines(&format!(
        "route replace 10.1.0.0/24 via 10.3.0.1 mtu {NARROW} advmss 1460
         route replace 10.3.0.1/32 dev eth0 mtu {NARROW} advmss 1460
         route replace fd00:1::/64 via fd00:3::1 mtu {NARROW} advmss 1440"
    ))?;
    let flows = [
        Flow::new(Transport::Tcp, "52.98.1.1", 443),
        Flow::new(Transport::Tcp, "2603:1006::1", 443),
        Flow::new(Transport::Udp, "52.113.0.1", 3478),
        Flow::new(Transport::Udp, "2603:1063::1", 3478),
    ];
    lab.own(flows.iter().map(|flow| flow.destination.ip()))?;
    let _servers = Servers::start(&lab.internet, "internet", &flows)?;
    forwards_nothing(&lab.gateway, lan, "inet")?;
    lab.gateway.ip("route del default")?;
    lab.gateway.ip("-6 route del default")?;
    let config = CONFIG.replace("MODE", "redirect");
    let config = config.replace("probes", &format!("{more}probes"));
    let site = Site::new(&config.replace("\"lan\"", &format!("\"{lan}\"")))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    // XDP takes what the client sends as if it came from a wire. TC takes it merged and without checksums, too.
    let offloads: &[&str] = if lan == "br1" {
        &["on", "off"]
    } else {
        &["off"]
    };
    for offload in offloads {
        lab.client.exec(&format!(
            "ethtool -K eth0 tso {offload} gso {offload} tx {offload}"
        ))?;
        lab.client.ip("route flush cache")?;
        lab.client.ip("-6 route flush cache")?;
        for flow in &flows {
            let before = reason(&site.json(&lab.gateway, &["stats"])?, "too_big");
            match flow.transport {
                Transport::Tcp => sends_segments(&lab, flow)?,
                Transport::Udp => sends_datagrams(&lab, flow)?,
            }
            let after = reason(&site.json(&lab.gateway, &["stats"])?, "too_big");
            ensure!(after > before, "{flow:?}: nothing was too big");
            let route = format!("route get {}", flow.destination.ip());
            let route = lab.client.ip(&route)?;
            ensure!(
                route.contains(&format!("mtu {NARROW}")),
                "{flow:?}: {route}"
            );
        }
    }
    seen::no_bad_headers(&lab.internet)?;
    seen::no_bad_headers(&lab.client)?;
    daemon.stop()?;
    Ok(())
}

/// The client merges its packets to more than the 64 KiB that an IP header can tell of (BIG TCP).
fn aggregates() -> Result<()> {
    let lab = Lab::build()?;
    bridge_the_lan(&lab)?;
    let flow = Flow::new(Transport::Tcp, "2603:1006::1", 443);
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    forwards_nothing(&lab.gateway, "br1", "inet")?;
    lab.client.ip("link set eth0 gso_max_size 180000")?;
    // A slow machine would merge fewer.
    lab.client.sysctl("net.ipv4.tcp_min_tso_segs", 100)?;
    let config = CONFIG.replace("MODE", "redirect");
    let site = Site::new(&config.replace("\"lan\"", "\"br1\""))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    let long = Counter::start(&lab.client, "long", "meta length > 65575")?;
    for _ in 0..5 {
        let identity = bulk(&lab.client, flow.destination, 5_000_000)?;
        ensure!(identity == "internet", "{identity}");
        if long.packets()? > 0 {
            break;
        }
    }
    ensure!(long.packets()? > 0, "nothing was long");
    seen::no_bad_headers(&lab.internet)?;
    let stats = site.json(&lab.gateway, &["stats"])?;
    ensure!(reason(&stats, "malformed") == 0, "{stats}");
    daemon.stop()?;
    Ok(())
}

/// An upload of segments that are too long at first; and what the SYN announced when it left.
fn sends_segments(lab: &Lab, flow: &Flow) -> Result<()> {
    let far_end = Wire::listen(&lab.internet, "eth0")?;
    let identity = bulk(&lab.client, flow.destination, 1_000_000)?;
    ensure!(identity == "internet", "{flow:?} came out at {identity}");
    let ip = if flow.destination.is_ipv4() { 20 } else { 40 };
    let announced = loop {
        let frame = far_end.receive().context("no SYN came")?;
        if let Some(size) = segment_size(&frame, ip) {
            break size;
        }
    };
    let fitting = NARROW - 20 - u16::try_from(ip)?;
    ensure!(announced == fitting, "{flow:?} announced {announced}");
    Ok(())
}

/// The segment size that a SYN announces in its first option.
pub(crate) fn segment_size(frame: &[u8], ip: usize) -> Option<u16> {
    let tcp = frame.get(14 + ip..)?;
    let is_tcp = frame[if ip == 20 { 23 } else { 20 }] == 6;
    let is_syn = is_tcp && tcp.get(13)? & 0x12 == 0x02 && tcp.get(20..22)? == [2, 4];
    is_syn.then(|| u16::from_be_bytes([tcp[22], tcp[23]]))
}

/// A socket of this namespace that talks to a remote.
pub(crate) fn connected(remote: SocketAddr) -> Result<UdpSocket> {
    let any = if remote.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(socket)
}

/// Datagrams that leave as fragments. The first ones are lost until the client knows how long they may be.
fn sends_datagrams(lab: &Lab, flow: &Flow) -> Result<()> {
    let destination = flow.destination;
    lab.client.enter(move || {
        let socket = connected(destination)?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let sent = vec![b'x'; 5000];
        for _ in 0..10 {
            let mut answer = vec![0; 6000];
            // Errors are what the kernel has just heard: that the packet was too long.
            let received = socket.send(&sent).and_then(|_| socket.recv(&mut answer));
            if received.is_ok_and(|length| length > sent.len()) {
                return Ok(());
            }
        }
        anyhow::bail!("{destination} did not answer")
    })
}
