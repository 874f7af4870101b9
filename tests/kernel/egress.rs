//! Egresses that fail, come back and lose packets, under real traffic, and rulesets that change meanwhile.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::{Connections, Stream};
use breakout_tests::netns::Namespace;
use breakout_tests::server::Relay;
use fastrand::Rng;

use crate::office::{MAIL, MEDIA, Office, address, config, list, ways};
use crate::{Test, setting};

pub(crate) const TESTS: &[Test] = &[
    ("a_flapping_link_splits_and_loses_nothing", flapping),
    ("a_dead_link_is_left_within_a_second", dead),
    ("media_leaves_a_lossy_link_and_mail_stays", lossy),
    ("changes_of_list_and_policy_move_no_connection", unmoved),
];

fn flapping() -> Result<()> {
    let flaps = setting("BREAKOUT_TEST_FLAPS", 50);
    let office = Office::open("probes = []\n[health]\nhold_down = \"1s\"\n")?;
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

    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(office.is_up(true))?;
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
    drop(local);

    let mut rng = Rng::with_seed(5);
    for _ in 0..flaps {
        lab.internet.ip("link set eth0 down")?;
        sleep(Duration::from_millis(rng.u64(0..60)));
        lab.internet.ip("link set eth0 up")?;
        sleep(Duration::from_millis(rng.u64(0..60)));
    }
    daemon.wait_until(office.is_up(true))?;
    by_wan.rounds(5)?;
    ensure!(
        ways(&by_wan) == [0, 50, 0],
        "after the flaps: {:?}",
        ways(&by_wan)
    );
    ensure!(office.new_way()? == "internet", "after the flaps");
    let fresh = office.connections(50)?;
    fresh.rounds(3)?;
    ensure!(ways(&fresh) == [50, 0, 0], "{:?}", ways(&fresh));
    // Every connection has the address of the way that it takes.
    for (connections, address) in [(&fresh, "dst=10.3.0.1"), (&by_wan, "dst=10.1.0.2")] {
        for one in connections.now() {
            let port = one.port;
            let entries = lab.gateway.exec(&format!(
                "conntrack -L -p tcp --orig-port-src {port} --dport 443"
            ))?;
            let is_right = entries
                .lines()
                .any(|line| line.contains("ESTABLISHED") && line.contains(address));
            ensure!(is_right, "{}: {entries}", one.identity);
        }
    }
    drop((fresh, by_wan, stream));
    daemon.stop()?;
    let after = everything(&lab.gateway)?;
    ensure!(before == after, "left over:\n{before}\n---\n{after}");
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
    let _relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    proven(&office, &mut daemon)?;
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
fn discard(namespace: &Namespace, expression: &str) -> Result<()> {
    namespace.exec("nft add table ip lossy")?;
    namespace.exec("nft add chain ip lossy in { type filter hook prerouting priority -300 ; }")?;
    namespace.exec(&format!(
        "nft add rule ip lossy in iifname eth0 {expression} drop"
    ))?;
    Ok(())
}

fn lossy() -> Result<()> {
    let more = format!(
        "{PROBES}[health]\ninterval = \"30ms\"\nhold_down = \"2s\"\n[pinning]\nmedia_hold = \"1s\"\n"
    );
    let office = Office::open(&more)?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own(["52.112.0.9".parse()?])?;
    let _relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    proven(&office, &mut daemon)?;
    let mail = office.connections(20)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    discard(&lab.internet, "udp dport 3478 numgen random mod 100 < 20")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let state = |wanted: &'static str| {
        move |_: &Daemon<'_>| {
            let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
            status["egress"]["local"]["v4"]["standing"]["state"] == wanted
        }
    };
    daemon.wait_until(state("degraded"))?;
    let lost = Instant::now();
    mail.rounds(20)?;
    ensure!(ways(&mail) == [20, 0, 0], "mail stays: {:?}", ways(&mail));
    ensure!(office.new_way()? == "internet", "new mail too");
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
    sleep(Duration::from_secs(3));
    let next = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| next.now().as_deref() == Some("internet"))?;
    mail.rounds(3)?;
    ensure!(ways(&mail) == [20, 0, 0], "{:?}", ways(&mail));
    daemon.stop()?;
    Ok(())
}

/// Connections on both ways go on where they are while lists and policies come and go, also those that a new list or rule
/// would put elsewhere.
fn unmoved() -> Result<()> {
    let (lists, policies) = (
        setting("BREAKOUT_TEST_LISTS", 1000),
        setting("BREAKOUT_TEST_LISTS", 1000) / 10,
    );
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.gateway.exec("nft add table ip track")?;
    // The ordinary path's connections are tracked, as with any firewall that keeps states.
    lab.gateway
        .exec("nft add chain ip track forward { type filter hook forward priority 0 ; }")?;
    lab.gateway
        .exec("nft add rule ip track forward ct state established accept")?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    let ends = [address(MAIL), address("203.0.113.1:443")];
    let connections = Connections::open(&lab.client, &ends, 200)?;
    connections.rounds(2)?;
    ensure!(
        ways(&connections) == [100, 100, 0],
        "{:?}",
        ways(&connections)
    );
    let mut rng = Rng::with_seed(7);
    let started = Instant::now();
    for number in 0..lists + policies {
        if number % 11 == 10 {
            let rules = match rng.u8(0..4) {
                0 => "[[policy]]\nsets = 11\naction = \"local\"\n",
                1 => "[[policy]]\ncategory = \"optimize\"\naction = \"local\"\n",
                2 => "[[policy]]\ncategory = \"optimize\"\naction = \"pass\"\n",
                _ => "[[policy]]\nsets = 1\nsources = \"10.9.0.0/16\"\naction = \"local\"\n",
            };
            site.configure(&config(&format!("probes = []\n{rules}")))?;
        } else {
            // The ordinary path's destination is of the list or not; mail's disappears and comes back.
            let mut others: Vec<String> = (0..rng.u8(1..9))
                .map(|n| format!("198.18.{n}.0/24"))
                .collect();
            if rng.bool() {
                others.push("203.0.113.0/24".to_owned());
            }
            let text = list(&others);
            let text = if rng.bool() {
                text.replace("52.98.0.0/16", "52.99.0.0/16")
            } else {
                text
            };
            std::fs::write(site.path().join("list.json"), text)?;
        }
        let reloaded = site.output(&lab.gateway, &["reload"])?;
        ensure!(
            reloaded.status.success(),
            "{}",
            String::from_utf8_lossy(&reloaded.stderr)
        );
    }
    println!(
        "{lists} lists and {policies} policies in {:?}",
        started.elapsed()
    );
    let last = connections.rounds(3)?;
    ensure!(
        ways(&connections) == [100, 100, 0],
        "{:?} {:?}",
        ways(&connections),
        last.iter().find(|one| one.error.is_some())
    );
    daemon.stop()?;
    Ok(())
}
