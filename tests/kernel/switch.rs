//! The switch of whole tables while traffic runs: no packet is lost, and none goes a way that neither table has.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{Lab, UNPINNED, config_with_list};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::traffic::{self, Expected, Office, generate};
use crate::{Test, setting};

pub(crate) const TESTS: &[Test] = &[
    ("switches_under_traffic_lose_and_misplace_nothing", switches),
    (
        "switches_in_redirect_mode_lose_and_misplace_nothing",
        switches_in_redirect_mode,
    ),
    ("ipv4_and_ipv6_switch_together", together),
    ("killed_in_the_middle_of_reloads_nothing_is_lost", killed),
];

/// Reloads, each of which switches to the other list, unless BREAKOUT_TEST_SWITCHES says how many: under software
/// emulation each takes long.
const RELOADS: usize = 1000;

fn reloads() -> usize {
    setting("BREAKOUT_TEST_SWITCHES", RELOADS)
}

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

fn flows() -> Vec<Flow> {
    let flows = SENTINELS
        .iter()
        .map(|address| Flow::new(Transport::Udp, address, 443));
    flows.collect()
}

fn site(mode: &str) -> Result<Site> {
    let site = Site::new(&format!("{}{UNPINNED}", config_with_list(mode)))?;
    write(&site, &IN_A)?;
    Ok(site)
}

fn write(site: &Site, prefixes: &[&str]) -> Result<()> {
    let list = json!([{"id": 1, "ips": prefixes, "udpPorts": "443", "category": "Optimize"}]);
    Ok(fs::write(site.path().join("list.json"), list.to_string())?)
}

/// Writes the other list each time.
fn write_next(site: &Site, number: usize) -> Result<()> {
    write(
        site,
        if number.is_multiple_of(2) {
            &IN_B
        } else {
            &IN_A
        },
    )
}

fn switches() -> Result<()> {
    under_traffic("route", |at| reload_often(reloads(), at.lab, at.site))
}

fn switches_in_redirect_mode() -> Result<()> {
    let reloads = reloads().div_ceil(5);
    under_traffic("redirect", |at| reload_often(reloads, at.lab, at.site))
}

fn reload_often(reloads: usize, lab: &Lab, site: &Site) -> Result<()> {
    for number in 0..reloads {
        write_next(site, number)?;
        let reloaded = site.json(&lab.gateway, &["reload"])?;
        ensure!(reloaded["changed"] == true, "{reloaded}");
    }
    println!("{reloads} switches");
    Ok(())
}

/// Kills the controller at another moment of a reload each time, and starts the next one.
fn killed() -> Result<()> {
    let kills = (reloads() / 50).clamp(3, 20);
    under_traffic("route", |office| {
        for number in 0..kills {
            write_next(office.site, number)?;
            let mut reload = office.site.command(&office.lab.gateway, &["reload"])?;
            let reload = reload.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let mut reload = reload?;
            thread::sleep(Duration::from_millis(number as u64 * 3 / 2));
            office.replace()?;
            reload.wait()?;
        }
        println!("{kills} controllers killed");
        Ok(())
    })
}

/// Does some work while the generator sends at full rate, and sees where every packet went.
fn under_traffic(mode: &str, work: impl FnOnce(&mut Office<'_>) -> Result<()>) -> Result<()> {
    let ways: Vec<Expected> = (0..SENTINELS.len())
        .map(|index| match index {
            _ if BOTH.contains(&index) => Expected::Internet,
            _ if NEITHER.contains(&index) => Expected::Wan,
            _ => Expected::Both,
        })
        .collect();
    let lab = Lab::build()?;
    let sentinels: Vec<_> = flows().into_iter().zip(ways).collect();
    traffic::under_traffic(&lab, &site(mode)?, &sentinels, work)
}

/// Every packet has its number, so that their ways can be read in the order in which they were sent. Each packet to a
/// destination that is in one list only tells which list was in force for it. If all of a table switches at once, that
/// changes once a reload, and never back in between.
fn together() -> Result<()> {
    let reloads = reloads().min(200);
    let lab = Lab::build()?;
    let flows: Vec<Flow> = [0, 4, 1, 5]
        .map(|index| Flow::new(Transport::Udp, SENTINELS[index], 443))
        .into();
    lab.own(flows.iter().map(|flow| flow.destination.ip()))?;
    let site = site("route")?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let stop = Arc::new(AtomicBool::new(false));
    let receivers = [&lab.internet, &lab.wan].map(|end| {
        let flag = Arc::clone(&stop);
        end.spawn(move || receive(&flag))
    });
    thread::sleep(Duration::from_millis(100));
    let flag = Arc::clone(&stop);
    let destinations: Vec<SocketAddr> = flows.iter().map(|flow| flow.destination).collect();
    let generator = lab.client.spawn(move || generate(&destinations, &flag));
    let reloaded = reload_often(reloads, &lab, &site);
    stop.store(true, Ordering::Relaxed);
    let sent = generator.join().expect("the generator does not panic")?;
    let [internet, wan] = receivers.map(|receiver| receiver.join().expect("no receiver panics"));
    reloaded?;
    daemon.stop()?;
    let mut left = vec![None; usize::try_from(sent)?];
    for (numbers, is_internet) in [(internet?, true), (wan?, false)] {
        for number in numbers {
            let place = &mut left[usize::try_from(number)?];
            ensure!(
                place.replace(is_internet).is_none(),
                "packet {number} came twice"
            );
        }
    }
    let mut in_force = Vec::with_capacity(left.len());
    for (number, is_internet) in left.into_iter().enumerate() {
        let is_internet = is_internet.with_context(|| format!("packet {number} is lost"))?;
        // The first two destinations are in list A, the others in list B.
        in_force.push(is_internet == (number % flows.len() < 2));
    }
    let changes = in_force
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .count();
    ensure!(
        changes == reloads,
        "{reloads} switches, but the packets saw {changes}"
    );
    println!("{sent} packets, IPv4 and IPv6 in turn, saw {changes} switches");
    Ok(())
}

/// The numbers of all packets that arrive, until some time after the generator has stopped.
fn receive(stop: &AtomicBool) -> Result<Vec<u64>> {
    let sockets = ["0.0.0.0:443", "[::]:443"].map(|address| -> Result<UdpSocket> {
        let domain = if address.starts_with('[') {
            Domain::IPV6
        } else {
            Domain::IPV4
        };
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.parse::<SocketAddr>()?.into())?;
        setsockopt(&socket, RcvBufForce, &(64 << 20))?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    });
    let mut numbers = Vec::new();
    let mut buffer = [0; 8];
    let mut ended = None;
    loop {
        let mut is_idle = true;
        for socket in &sockets {
            let socket = socket.as_ref().map_err(|error| anyhow!("{error:#}"))?;
            while socket.recv(&mut buffer).is_ok() {
                numbers.push(u64::from_be_bytes(buffer));
                is_idle = false;
            }
        }
        if stop.load(Ordering::Relaxed) {
            let ended = ended.get_or_insert_with(Instant::now);
            if is_idle && ended.elapsed() > Duration::from_millis(500) {
                return Ok(numbers);
            }
        }
        if is_idle {
            thread::sleep(Duration::from_micros(200));
        }
    }
}
