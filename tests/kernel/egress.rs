//! Egresses that fail, come back and lose packets, under real traffic, and rulesets that change meanwhile.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::{Connections, Stream};
use breakout_tests::netns::Namespace;
use breakout_tests::seen::Counter;
use breakout_tests::server::{Relay, Web};
use fastrand::Rng;

use crate::office::{MEDIA, Office, address, config, ways};
use crate::redirect::reason;
use crate::{Test, setting};

pub(crate) const TESTS: &[Test] = &[
    ("a_flapping_link_splits_and_loses_nothing", flapping),
    ("a_dead_link_is_left_within_a_second", dead),
    ("media_leaves_a_lossy_link_and_mail_stays", lossy),
];

fn flapping() -> Result<()> {
    let office = Office::open("probes = []\n[health]\nhold_down = \"2s\"\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let before = everything(&lab.gateway)?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let local = office.connections(200)?;
    let stream = Stream::start(&lab.client, address(MEDIA))?;
    local.rounds(3)?;
    ensure!(ways(&local) == [200, 0, 0], "{:?}", ways(&local));
    daemon.wait_until(|_| stream.now().as_deref() == Some("internet"))?;

    let pulled = Instant::now();
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(|_| stream.now().as_deref() == Some("wan"))?;
    let gap = stream.gap_since(pulled);
    ensure!(
        gap < Duration::from_secs(1),
        "the stream was silent for {gap:?}"
    );
    ensure!(office.new_way()? == "wan");
    let by_wan = office.connections(50)?;
    by_wan.rounds(3)?;

    // Whatever has moved does not move back, not for a packet.
    let ports = |connections: &Connections| {
        let ports: Vec<String> = (connections.now().iter())
            .map(|one| one.port.to_string())
            .collect();
        ports.join(", ")
    };
    // Without a protocol, neighbour discovery by ICMPv6 would have a port too: its first two bytes, 34560.
    let by_inet = |ports: String| {
        format!("oifname \"inet\" meta l4proto {{ tcp, udp }} th sport {{ {ports} }}")
    };
    let moved = by_inet(format!("{}, {}", ports(&local), stream.port()));
    let moved = Counter::start(&lab.gateway, "moved", &moved)?;
    let wrong = Counter::start(&lab.gateway, "wrong", &by_inet(ports(&by_wan)))?;
    let back = Instant::now();
    lab.internet.ip("link set eth0 up")?;
    ensure!(office.new_way()? == "wan", "the link is held down at first");
    daemon.wait_until(office.is_up(true))?;
    ensure!(
        back.elapsed() >= Duration::from_secs(2),
        "used again after {:?}",
        back.elapsed()
    );
    let returned = Instant::now();
    ensure!(
        office.new_way()? == "internet",
        "new connections go by the link that is back"
    );
    by_wan.rounds(10)?;
    ensure!(
        ways(&by_wan) == [0, 50, 0],
        "those that began on the WAN stay: {:?}",
        ways(&by_wan)
    );
    ensure!(
        stream.who_since(returned) == ["wan"],
        "the call stays where it is: {:?}",
        stream.who_since(returned)
    );
    let went_back = moved.packets()? + wrong.packets()?;
    ensure!(went_back == 0, "{went_back} packets went back");
    drop((local, stream, moved));

    // With hardly any hold-down each flap moves what can be moved, and new connections begin all the while.
    let quick = "probes = []\n[health]\nhold_down = \"50ms\"\n";
    site.configure(&config(quick))?;
    ensure!(site.output(&lab.gateway, &["reload"])?.status.success());
    let begun = flap(&office)?;
    daemon.wait_until(office.is_up(true))?;
    for connections in begun.iter().chain([&by_wan]) {
        connections.rounds(3)?;
    }
    ensure!(
        ways(&by_wan) == [0, 50, 0] && wrong.packets()? == 0,
        "after the flaps: {:?}, {} packets went back",
        ways(&by_wan),
        wrong.packets()?
    );
    ensure!(office.new_way()? == "internet", "after the flaps");
    let fresh = office.connections(50)?;
    fresh.rounds(3)?;
    ensure!(ways(&fresh) == [50, 0, 0], "{:?}", ways(&fresh));
    for connections in begun.iter().chain([&by_wan, &fresh]) {
        have_their_ways_address(&lab.gateway, connections)?;
    }
    drop((fresh, by_wan, begun, wrong));
    daemon.stop()?;
    let marks = lab.gateway.exec("conntrack -L")?;
    ensure!(
        marks
            .lines()
            .all(|line| !line.contains("mark=") || line.contains("mark=0 ")),
        "marks are left over: {marks}"
    );
    let after = everything(&lab.gateway)?;
    ensure!(before == after, "left over:\n{before}\n---\n{after}");
    Ok(())
}

/// Pulls the link at random times, and opens some connections each time.
fn flap(office: &Office) -> Result<Vec<Connections>> {
    let flaps = setting("BREAKOUT_TEST_FLAPS", 50);
    let mut rng = Rng::with_seed(5);
    let mut begun = Vec::new();
    for number in 0..flaps {
        office.lab.internet.ip("link set eth0 down")?;
        sleep(Duration::from_millis(rng.u64(0..120)));
        office.lab.internet.ip("link set eth0 up")?;
        sleep(Duration::from_millis(rng.u64(0..250)));
        if number % 5 == 0 {
            begun.push(office.connections(2)?);
        }
    }
    Ok(begun)
}

/// Every connection that goes on has the address of the way that it takes.
fn have_their_ways_address(gateway: &Namespace, connections: &Connections) -> Result<()> {
    for one in connections.now().iter().filter(|one| one.error.is_none()) {
        let port = one.port;
        let entries = gateway.exec(&format!(
            "conntrack -L -p tcp --orig-port-src {port} --dport 443"
        ))?;
        let address = match one.identity.as_str() {
            "internet" => "dst=10.3.0.1",
            _ => "dst=10.1.0.2",
        };
        let tracked: Vec<&str> = entries
            .lines()
            .filter(|line| line.contains("tcp"))
            .collect();
        let is_right = tracked.len() == 1
            && tracked[0].contains("ESTABLISHED")
            && tracked[0].contains(address);
        ensure!(is_right, "{}: {entries}", one.identity);
    }
    Ok(())
}

/// Rules, our kind of routes, and nftables: what a controller could leave behind.
fn everything(gateway: &Namespace) -> Result<String> {
    let mut text = String::new();
    for command in [
        "ip rule show",
        "ip -6 rule show",
        "ip route show table all",
        "nft list ruleset",
    ] {
        text.push_str(&gateway.exec(command)?);
    }
    let lines = text
        .lines()
        .filter(|line| !line.contains("fe80:") && !line.contains("ff00::"));
    // The order of routes is that of their making, and flags tell of the carrier.
    let mut lines: Vec<String> = lines
        .map(|line| line.replace(" linkdown", "").trim().to_owned())
        .collect();
    lines.sort();
    Ok(lines.join("\n"))
}

const PROBES: &str = "probes = [\"stun:52.112.0.9:3478\", \"tcp:52.98.1.1:443\"]\n";

/// The link has a carrier, but nothing comes back.
fn dead() -> Result<()> {
    let office = Office::open(PROBES)?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own(["52.112.0.9".parse()?])?;
    // A probe that left by the WAN would be answered there.
    let _relays = [
        Relay::start(&lab.internet, address("52.112.0.9:3478"))?,
        Relay::start(&lab.wan, address("52.112.0.9:3478"))?,
    ];
    let probes = "oifname \"wan\" ip saddr 10.2.0.1 ip daddr { 52.112.0.9, 52.98.1.1 }";
    let leaked = Counter::start(&lab.gateway, "leaked", probes)?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    // Another tool's rule that sends everything by the main table.
    lab.gateway.ip("rule add lookup main priority 100")?;
    proven(&office, &mut daemon)?;
    // On a busy machine the first answers may take long; a call that began then would stay on the WAN.
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    lab.gateway.ip("rule del priority 100")?;
    let stream = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| stream.now().as_deref() == Some("internet"))?;
    let cut = Instant::now();
    discard(&lab.internet, "")?;
    daemon.wait_until(|_| stream.now().as_deref() == Some("wan"))?;
    let gap = stream.gap_since(cut);
    println!("on the other way after {gap:?}");
    ensure!(
        gap < Duration::from_secs(1),
        "the stream was silent for {gap:?}"
    );
    ensure!(office.new_way()? == "wan");
    let status = site.json(&lab.gateway, &["status"])?;
    let standing = &status["egress"]["local"]["v4"]["standing"];
    ensure!(
        standing["state"] == "down" && standing["score"] == 0.0,
        "{standing}"
    );
    ensure!(
        standing["why"]
            .as_str()
            .is_some_and(|why| why.contains("no probe is answered")),
        "{standing}"
    );
    ensure!(leaked.packets()? == 0, "probes left by the WAN");
    let rules = lab.gateway.ip("rule show")?;
    ensure!(rules.contains("lookup 5001"), "the rule is gone: {rules}");
    let passed = reason(&site.json(&lab.gateway, &["stats"])?, "egress_down");
    ensure!(passed > 0, "what takes the ordinary path is not counted");
    daemon.stop()?;
    Ok(())
}

/// Waits until the relay has answered.
fn proven(office: &Office, daemon: &mut Daemon<'_>) -> Result<()> {
    daemon.wait_until(|_| {
        let status = office
            .site
            .json(&office.lab.gateway, &["status"])
            .unwrap_or_default();
        let measure = &status["egress"]["local"]["v4"]["standing"]["measure"];
        measure["targets"][0]["proven"] == true && measure["targets"][1]["proven"] == true
    })
}

/// Has a namespace discard what comes in from the gateway: all of it, or what an expression matches.
pub(crate) fn discard(namespace: &Namespace, expression: &str) -> Result<()> {
    namespace.exec("nft add table ip lossy")?;
    namespace.exec("nft add chain ip lossy in { type filter hook prerouting priority -300 ; }")?;
    namespace.exec(&format!(
        "nft add rule ip lossy in iifname eth0 {expression} drop"
    ))?;
    Ok(())
}

fn lossy() -> Result<()> {
    // A single front door has three lost tries in a row every now and then.
    let probes = PROBES.replace("]\n", ", \"tcp:52.112.0.9:80\", \"tcp:52.112.0.9:443\"]\n");
    let more = format!(
        "{probes}[health]\ninterval = \"30ms\"\nhold_down = \"2s\"\n[pinning]\nmedia_hold = \"1s\"\n"
    );
    let office = Office::open(&more)?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own(["52.112.0.9".parse()?])?;
    let _relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    let _doors = [
        Web::start(&lab.internet, address("52.112.0.9:80"), "internet")?,
        Web::start(&lab.internet, address("52.112.0.9:443"), "internet")?,
    ];
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    proven(&office, &mut daemon)?;
    let mail = office.connections(20)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    discard(&lab.internet, "numgen random mod 100 < 20")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let state = |wanted: &'static str| {
        move |_: &Daemon<'_>| {
            let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
            status["egress"]["local"]["v4"]["standing"]["state"] == wanted
        }
    };
    daemon.wait_until(state("degraded"))?;
    let lost = Instant::now();
    mail.rounds(5)?;
    ensure!(
        ways(&mail) == [20, 0, 0],
        "mail stays: {:?} {}",
        ways(&mail),
        daemon.log()
    );
    ensure!(office.new_way()? == "internet", "new mail too");
    let standing =
        site.json(&lab.gateway, &["status"])?["egress"]["local"]["v4"]["standing"].clone();
    let loss = standing["measure"]["loss"].as_f64().unwrap_or_default();
    ensure!(
        standing["standard"] == true && standing["media"] == false && (0.02..0.4).contains(&loss),
        "{standing}"
    );
    ensure!(
        call.who_since(lost) == ["wan"],
        "the call does not flap: {:?}",
        call.who_since(lost)
    );
    lab.internet.exec("nft delete table ip lossy")?;
    daemon.wait_until(state("up"))?;
    ensure!(
        call.now().as_deref() == Some("wan"),
        "the call ends where it is"
    );
    drop(call);
    // The hold, in ticks of two seconds.
    sleep(Duration::from_secs(5));
    let next = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| next.now().as_deref() == Some("internet"))?;
    mail.rounds(3)?;
    ensure!(
        ways(&mail) == [20, 0, 0],
        "{:?} {}",
        ways(&mail),
        daemon.log()
    );
    daemon.stop()?;
    Ok(())
}
