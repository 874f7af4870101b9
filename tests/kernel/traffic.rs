//! Traffic at full rate while something is changed: no packet may be lost, and none may go a wrong way.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::Flow;
use breakout_tests::lab::Lab;
use breakout_tests::seen;

/// Rounds of packets after which the generator stops alone.
const MAX_ROUNDS: u64 = 8_000_000;

/// Where the packets of a flow may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// By the local link only.
    Internet,
    /// By the ordinary path only.
    Wan,
    /// By the one and then by the other.
    Both,
}

/// Does some work while the generator sends at full rate, and sees where every packet went.
pub(crate) fn under_traffic(
    lab: &Lab,
    site: &Site,
    sentinels: &[(Flow, Expected)],
    work: impl FnOnce(&mut Office<'_>) -> Result<()>,
) -> Result<()> {
    under_traffic_with(lab, site, sentinels, &[], work)
}

/// The same with a controller that has further arguments.
pub(crate) fn under_traffic_with(
    lab: &Lab,
    site: &Site,
    sentinels: &[(Flow, Expected)],
    arguments: &'static [&'static str],
    work: impl FnOnce(&mut Office<'_>) -> Result<()>,
) -> Result<()> {
    let flows: Vec<Flow> = sentinels.iter().map(|(flow, _)| flow.clone()).collect();
    lab.own(flows.iter().map(|flow| flow.destination.ip()))?;
    let mut daemon = Daemon::start_with(site, &lab.gateway, arguments)?;
    let status = site.json(&lab.gateway, &["status"])?;
    if status["egress"]["local"]["mode"] == "redirect" {
        daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    }
    let mut office = Office {
        lab,
        site,
        arguments,
        daemon: Some(daemon),
    };
    for end in [&lab.internet, &lab.wan] {
        seen::watch(end, &flows)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let destinations: Vec<SocketAddr> = flows.iter().map(|flow| flow.destination).collect();
    let generator = lab.client.spawn(move || generate(&destinations, &flag));
    let worked = work(&mut office);
    stop.store(true, Ordering::Relaxed);
    let sent = generator.join().expect("the generator does not panic");
    thread::sleep(Duration::from_millis(200));
    let counted =
        seen::packets(&lab.internet).and_then(|left| Ok((left, seen::packets(&lab.wan)?)));
    worked?;
    if let Some(daemon) = office.daemon.take() {
        daemon.stop()?;
    }
    let (sent, (internet, wan)) = (sent? / flows.len() as u64, counted?);
    ensure!(sent > 200, "only {sent} rounds were sent");
    for (flow, expected) in sentinels {
        let key = seen::key(flow);
        let (left, right) = (internet[&key], wan[&key]);
        ensure!(
            left + right == sent,
            "{key}: {left} + {right} of {sent} arrived"
        );
        let is_right = match expected {
            Expected::Internet => right == 0,
            Expected::Wan => left == 0,
            Expected::Both => left > 0 && right > 0,
        };
        ensure!(
            is_right,
            "{key}: {left} packets took the local link and {right} the WAN, not {expected:?}"
        );
    }
    println!("{sent} packets to each of {} destinations", flows.len());
    Ok(())
}

/// Where the controller runs that is the present one.
pub(crate) struct Office<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) site: &'a Site,
    arguments: &'static [&'static str],
    daemon: Option<Daemon<'a>>,
}

impl Office<'_> {
    /// Kills the controller where it is, and starts the next one.
    pub(crate) fn replace(&mut self) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        self.start_next()
    }

    /// Stops the controller in order, does something, and starts the next one.
    pub(crate) fn hand_over(&mut self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop()?;
        }
        meanwhile()?;
        self.start_next()
    }

    fn start_next(&mut self) -> Result<()> {
        let next = Daemon::start_with(self.site, &self.lab.gateway, self.arguments);
        if next.is_err() {
            // Nobody else takes over what the killed one left.
            self.site.output(&self.lab.gateway, &["unload"])?;
        }
        self.daemon = Some(next?);
        Ok(())
    }
}

/// Sends numbered packets to all destinations in turn. Returns how many.
pub(crate) fn generate(destinations: &[SocketAddr], stop: &AtomicBool) -> Result<u64> {
    let v4 = UdpSocket::bind("0.0.0.0:0")?;
    let v6 = UdpSocket::bind("[::]:0")?;
    let mut number = 0u64;
    for _ in 0..MAX_ROUNDS {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for destination in destinations {
            let socket = if destination.is_ipv4() { &v4 } else { &v6 };
            send(socket, &number.to_be_bytes(), destination)?;
            number += 1;
        }
        thread::sleep(BREAK);
    }
    Ok(number)
}

/// The break after each round. Without one a busy machine lets the queues between the namespaces overflow, and a packet
/// lost there says nothing of the switch.
const BREAK: Duration = Duration::from_micros(20);

/// Sends one packet. Where nobody listens, the answer to an earlier packet must not count as a failure of this one.
fn send(socket: &UdpSocket, bytes: &[u8], destination: &SocketAddr) -> Result<()> {
    for _ in 0..1000 {
        if socket.send_to(bytes, destination).is_ok() {
            return Ok(());
        }
    }
    Err(std::io::Error::last_os_error()).with_context(|| format!("cannot send to {destination}"))
}
