//! The switch of whole tables while traffic runs: no packet is lost, and none goes a way that neither table has.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::seen;
use serde_json::json;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("switches_under_traffic_lose_and_misplace_nothing", switches)];

/// Reloads, each of which switches to the other list, unless BREAKOUT_TEST_SWITCHES says how many: under software
/// emulation each takes long.
const RELOADS: usize = 1000;
/// Rounds of packets after which the generator stops alone.
const MAX_ROUNDS: u64 = 2_000_000;

/// Destinations in list A, in list B, in both and in neither; IPv4 and IPv6.
const SENTINELS: [&str; 8] = [
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.3",
    "198.51.100.4",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8::3",
    "2001:db8::4",
];
const IN_A: [&str; 4] = [
    "198.51.100.1/32",
    "198.51.100.3/32",
    "2001:db8::1/128",
    "2001:db8::3/128",
];
const IN_B: [&str; 4] = [
    "198.51.100.2/32",
    "198.51.100.3/32",
    "2001:db8::2/128",
    "2001:db8::3/128",
];
const BOTH: [usize; 2] = [2, 6];
const NEITHER: [usize; 2] = [3, 7];

fn switches() -> Result<()> {
    let lab = Lab::build()?;
    let flows: Vec<Flow> = SENTINELS
        .iter()
        .map(|address| Flow::new(Transport::Udp, address, 443))
        .collect();
    lab.own(flows.iter().map(|flow| flow.destination.ip()))?;
    let config = CONFIG
        .replace("MODE", "route")
        .replace("[list]", "[list]\nfile = \"list.json\"");
    let site = Site::new(&config)?;
    let write = |prefixes: &[&str]| {
        let list = json!([{"id": 1, "ips": prefixes, "udpPorts": "443", "category": "Optimize"}]);
        fs::write(site.path().join("list.json"), list.to_string())
    };
    write(&IN_A)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    for end in [&lab.internet, &lab.wan] {
        seen::watch(end, &flows)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let destinations: Vec<SocketAddr> = flows.iter().map(|flow| flow.destination).collect();
    let generator = lab.client.spawn(move || generate(&destinations, &flag));
    let chosen = std::env::var("BREAKOUT_TEST_SWITCHES").ok();
    let reloads = chosen.and_then(|text| text.parse().ok()).unwrap_or(RELOADS);
    let reload = || -> Result<()> {
        for number in 0..reloads {
            write(if number % 2 == 0 { &IN_B } else { &IN_A })?;
            let reloaded = site.json(&lab.gateway, &["reload"])?;
            ensure!(reloaded["changed"] == true, "{reloaded}");
        }
        Ok(())
    };
    let reloaded = reload();
    stop.store(true, Ordering::Relaxed);
    let sent = generator.join().expect("the generator does not panic")?;
    reloaded?;
    ensure!(sent > 1000, "only {sent} rounds were sent");
    thread::sleep(Duration::from_millis(200));
    let internet = seen::packets(&lab.internet)?;
    let wan = seen::packets(&lab.wan)?;
    for (index, flow) in flows.iter().enumerate() {
        let key = seen::key(flow);
        let (left, right) = (internet[&key], wan[&key]);
        ensure!(
            left + right == sent,
            "{key}: {left} + {right} of {sent} arrived"
        );
        if BOTH.contains(&index) {
            ensure!(
                right == 0,
                "{key} is in both lists, but {right} packets took the WAN"
            );
        } else if NEITHER.contains(&index) {
            ensure!(
                left == 0,
                "{key} is in neither list, but {left} packets were steered"
            );
        } else {
            ensure!(
                left > 0 && right > 0,
                "{key} never switched: {left}, {right}"
            );
        }
    }
    println!(
        "{sent} packets to each of {} destinations, {reloads} switches",
        flows.len()
    );
    daemon.stop()?;
    Ok(())
}

/// The break after each round. Without one a busy machine lets the queues between the namespaces overflow, and a packet
/// lost there says nothing of the switch.
const BREAK: Duration = Duration::from_micros(20);

/// Sends to all destinations in turn.
fn generate(destinations: &[SocketAddr], stop: &AtomicBool) -> Result<u64> {
    let v4 = UdpSocket::bind("0.0.0.0:0")?;
    let v6 = UdpSocket::bind("[::]:0")?;
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) && rounds < MAX_ROUNDS {
        for destination in destinations {
            let socket = if matches!(destination.ip(), IpAddr::V4(_)) {
                &v4
            } else {
                &v6
            };
            // Nobody listens; the answer to an earlier packet must not count as a failure of this one.
            while socket.send_to(b"x", destination).is_err() {}
        }
        rounds += 1;
        thread::sleep(BREAK);
    }
    Ok(rounds)
}
