//! A controller that is killed while traffic runs, and the next one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};

use super::redirect::reason;
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("killed_in_route_mode_nothing_is_lost", || killed("route")),
    ("killed_in_redirect_mode_nothing_is_lost", || {
        killed("redirect")
    }),
    (
        "an_egress_that_changes_its_mode_keeps_its_flows",
        other_mode,
    ),
    ("unload_removes_what_a_killed_controller_left", unload),
];

/// A stream of datagrams, each answered. Counts those that were not, and those that came back from elsewhere.
fn stream(destination: SocketAddr, stop: &AtomicBool) -> Result<(u32, u32, u32)> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(destination)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let (mut sent, mut lost, mut moved) = (0u32, 0, 0);
    let mut buffer = [0; 128];
    // Bounded, should the test forget to stop it.
    while !stop.load(Ordering::Relaxed) && sent < 60_000 {
        socket.send(&sent.to_be_bytes())?;
        sent += 1;
        match socket.recv(&mut buffer) {
            Ok(count) if buffer[..count].starts_with(b"internet\n") => {}
            Ok(_) => moved += 1,
            Err(_) => lost += 1,
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok((sent, lost, moved))
}

/// A stream that goes on beside a test.
struct Traffic {
    stop: Arc<AtomicBool>,
    stream: JoinHandle<Result<(u32, u32, u32)>>,
}

impl Traffic {
    fn start(lab: &Lab, flow: &Flow) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, destination) = (Arc::clone(&stop), flow.destination);
        let stream = lab.client.spawn(move || stream(destination, &flag));
        Traffic { stop, stream }
    }

    /// Ends the stream. Fails if a datagram was lost, or came back from elsewhere.
    fn arrives_whole(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, lost, moved) = self.stream.join().expect("the stream does not panic")?;
        ensure!(sent > 300, "only {sent} datagrams were sent");
        ensure!(
            (lost, moved) == (0, 0),
            "of {sent} datagrams {lost} were lost and {moved} moved"
        );
        Ok(())
    }
}

/// Nothing of a flow goes another way while an egress changes its mode, in either direction.
fn other_mode() -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let traffic = Traffic::start(&lab, &flow);
    for mode in ["redirect", "route", "redirect"] {
        thread::sleep(Duration::from_millis(200));
        site.configure(&CONFIG.replace("MODE", mode))?;
        site.json(&lab.gateway, &["reload"])?;
    }
    thread::sleep(Duration::from_millis(200));
    traffic.arrives_whole()?;
    let rules = lab.gateway.ip("rule show")?;
    ensure!(!rules.contains("lookup 5001"), "{rules}");
    daemon.stop()?;
    Ok(())
}

fn killed(mode: &str) -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let site = Site::new(&CONFIG.replace("MODE", mode))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| mode == "route" || site.next_hops_known(&lab.gateway))?;
    let generation = site.json(&lab.gateway, &["status"])?["ruleset"]["generation"].clone();

    let traffic = Traffic::start(&lab, &flow);
    thread::sleep(Duration::from_millis(300));
    daemon.kill()?;
    thread::sleep(Duration::from_millis(500));
    let daemon = Daemon::start(&site, &lab.gateway).context("the next controller")?;
    thread::sleep(Duration::from_millis(500));
    daemon.kill()?;
    let daemon = Daemon::start(&site, &lab.gateway).context("the third controller")?;
    thread::sleep(Duration::from_millis(300));
    let status = site.json(&lab.gateway, &["status"])?;
    let stats = site.json(&lab.gateway, &["stats"])?;
    traffic.arrives_whole()?;
    ensure!(status["adopted"] == true, "{status}");
    ensure!(
        status["ruleset"]["generation"].as_u64() > generation.as_u64(),
        "{status}"
    );
    let counted = reason(&stats, "steered") + reason(&stats, "tc_next_hop");
    ensure!(counted > 300, "the counters did not go on: {stats}");
    // In redirect mode the programs need none, and they would slow down everything.
    let expected = usize::from(mode == "route");
    for rules in ["rule show", "-6 rule show"] {
        let rules = lab.gateway.ip(rules)?;
        let found = rules.matches("lookup 5001").count();
        ensure!(found == expected, "{rules}");
    }
    daemon.stop()?;
    Ok(())
}

fn unload() -> Result<()> {
    let lab = Lab::build()?;
    let before = super::cleanup::inventory(&lab)?;
    let site = Site::new(&CONFIG.replace("MODE", "redirect"))?;
    Daemon::start(&site, &lab.gateway)?.kill()?;
    ensure!(
        super::cleanup::inventory(&lab)? != before,
        "nothing was left to remove"
    );
    let output = site.output(&lab.gateway, &["unload"])?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let after = super::cleanup::inventory(&lab)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(!site.socket().exists(), "the socket is still there");
    Ok(())
}
