//! Redirect mode forwards what the kernel forwards: frames that are wrong in one way each, sent through both.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::wire::{Ipv4Udp, Wire, checksum};

use crate::Test;
use crate::redirect::reason;

pub(crate) const TESTS: &[Test] = &[("redirect_forwards_what_the_kernel_forwards", as_the_kernel)];

/// What is wrong with a packet, and the packet from its IP header on. Its destination's last byte is its number.
type Case = (&'static str, Vec<u8>);

fn v4(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = Ipv4Udp {
        payload: 64,
        ..Ipv4Udp::new([52, 113, 1, 0], 3478)
    }
    .to_bytes();
    change(&mut packet);
    packet
}

fn from_v4(source: [u8; 4]) -> Vec<u8> {
    v4(|packet| packet[12..16].copy_from_slice(&source))
}

fn from_v6(source: &str) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().expect("an address");
    let destination: Ipv6Addr = "2603:1063::100".parse().expect("an address");
    let mut packet = vec![0x60, 0, 0, 0, 0, 72, 17, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([0x30, 0x39, 0x0d, 0x96, 0, 72, 0x12, 0x34]);
    packet.resize(112, b'x');
    packet
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        ("nothing", v4(|_| {})),
        ("a wrong checksum", v4(|packet| packet[8] ^= 1)),
        ("bytes behind it", v4(|packet| packet.resize(200, b'y'))),
        ("a TTL of 2", v4(|packet| packet[8] = 2)),
        ("reserved flags", v4(|packet| packet[6] = 0x80)),
        ("from this network", from_v4([0, 0, 0, 9])),
        ("from nowhere", from_v4([0, 0, 0, 0])),
        ("from loopback", from_v4([127, 0, 0, 1])),
        ("from a group", from_v4([224, 0, 0, 5])),
        ("from the reserved addresses", from_v4([240, 0, 0, 5])),
        ("from the broadcast address", from_v4([255, 255, 255, 255])),
        ("from the gateway's LAN address", from_v4([10, 1, 0, 1])),
        ("from the gateway's egress address", from_v4([10, 3, 0, 1])),
        ("from the LAN's broadcast address", from_v4([10, 1, 0, 255])),
        ("from a stranger", from_v4([10, 9, 9, 9])),
        ("from a client like the gateway", from_v4([10, 1, 0, 65])),
        ("nothing, IPv6", from_v6("fd00:1::2")),
        ("from loopback, IPv6", from_v6("::1")),
        ("from nowhere, IPv6", from_v6("::")),
        ("from the link, IPv6", from_v6("fe80::1")),
        ("from a group, IPv6", from_v6("ff02::1")),
        ("from an IPv4 address, IPv6", from_v6("::ffff:10.1.0.2")),
        ("from the gateway's own, IPv6", from_v6("fd00:1::1")),
        ("from a stranger, IPv6", from_v6("2001:db8::1")),
    ];
    for (number, (what, packet)) in (1u8..).zip(&mut cases) {
        let is_v4 = packet[0] >> 4 == 4;
        packet[if is_v4 { 19 } else { 39 }] = number;
        if is_v4 {
            packet[10..12].fill(0);
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum);
            if *what == "a wrong checksum" {
                packet[10] ^= 1;
            }
        }
    }
    cases
}

/// The lengths of those packets that arrive at the far end, by what is wrong with them.
fn arriving(lab: &Lab, cases: &[Case]) -> Result<BTreeMap<&'static str, usize>> {
    let far_end = Wire::listen(&lab.internet, "eth0")?;
    let client = Wire::open(&lab.client, "eth0")?;
    for (_, packet) in cases {
        let is_v4 = packet[0] >> 4 == 4;
        let mut frame = lab.ethernet(if is_v4 { 0x0800 } else { 0x86dd })?;
        frame.extend(packet);
        client.send(&frame)?;
    }
    let mut arrived = BTreeMap::new();
    while let Some(frame) = far_end.receive() {
        let packet = &frame[14..];
        let number = match frame[12..14] {
            [0x08, 0x00] if packet[16..19] == [52, 113, 1] => packet[19],
            [0x86, 0xdd] if packet[24..28] == [0x26, 0x03, 0x10, 0x63] => packet[39],
            _ => continue,
        };
        if let Some((what, _)) = cases.get(usize::from(number) - 1) {
            arrived.insert(*what, packet.len());
        }
    }
    Ok(arrived)
}

fn as_the_kernel() -> Result<()> {
    let lab = Lab::build()?;
    let cases = cases();
    let mut outcomes = Vec::new();
    for mode in ["route", "redirect"] {
        let site = Site::new(&CONFIG.replace("MODE", mode))?;
        let mut daemon = Daemon::start(&site, &lab.gateway)?;
        daemon.wait_until(|_| mode == "route" || site.next_hops_known(&lab.gateway))?;
        outcomes.push(arriving(&lab, &cases)?);
        if mode == "redirect" {
            let stats = site.json(&lab.gateway, &["stats"])?;
            let redirected = reason(&stats, "steered");
            // The plain ones of both families, those with a TTL, flags or a tail of their own, and sources that are odd, and that the
            // kernel forwards from all the same.
            ensure!(redirected == 12, "{redirected} were redirected: {stats}");
            ensure!(reason(&stats, "kernel_damaged") == 1, "{stats}");
            ensure!(reason(&stats, "kernel_source") == 11, "{stats}");
        }
        daemon.stop()?;
    }
    let [by_kernel, by_redirect] = &outcomes[..] else {
        unreachable!("there are two modes");
    };
    ensure!(
        by_kernel == by_redirect,
        "by the kernel {by_kernel:?}, in redirect mode {by_redirect:?}"
    );
    for arrives in [
        "nothing",
        "nothing, IPv6",
        "bytes behind it",
        "from a stranger",
    ] {
        ensure!(by_kernel.contains_key(arrives), "{arrives}: {by_kernel:?}");
    }
    for dropped in ["a wrong checksum", "from loopback", "from the link, IPv6"] {
        ensure!(!by_kernel.contains_key(dropped), "{dropped}: {by_kernel:?}");
    }
    Ok(())
}
