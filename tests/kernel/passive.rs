//! What the traffic itself tells of a path, which probes do not see or see wrongly.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::bulk;
use breakout_tests::live::Stream;
use serde_json::Value;

use crate::Test;
use crate::office::{MAIL, MEDIA, Office, address, config, ways};

pub(crate) const TESTS: &[Test] = &[
    (
        "flows_that_a_firewall_drops_take_the_next_choice",
        broken_ahead,
    ),
    (
        "redirect_whose_replies_a_firewall_drops_takes_the_next_choice",
        broken_replies,
    ),
    ("a_full_link_ends_no_connection", full),
    ("a_link_whose_flows_are_answered_is_not_dead", unprobed),
    (
        "doctor_follows_packets_through_the_firewall",
        through_the_firewall,
    ),
];

const PROBED: &str = "probes = [\"icmp:52.98.1.1\"]\n[health]\nhold_down = \"500ms\"\n";

fn standing(office: &Office) -> Value {
    let status = office.site.json(&office.lab.gateway, &["status"]);
    status.unwrap_or_default()["egress"]["local"]["v4"]["standing"].clone()
}

/// A controller whose probes are answered.
fn probed(office: &Office) -> Result<Daemon<'_>> {
    let mut daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    daemon.wait_until(|_| standing(office)["measure"]["alive"] == true)?;
    Ok(daemon)
}

fn alerts(office: &Office) -> String {
    let status = office.site.json(&office.lab.gateway, &["status"]);
    status.unwrap_or_default()["alerts"].to_string()
}

/// A new connection's way, by whichever of its SYNs.
fn patient_way(office: &Office) -> Result<String> {
    office.lab.client.enter(|| {
        let stream = TcpStream::connect_timeout(&address(MAIL), Duration::from_secs(12))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut identity = String::new();
        BufReader::new(stream).read_line(&mut identity)?;
        Ok(identity.trim().to_owned())
    })
}

/// The ways that a call and four connections find which begin at once.
fn begin(office: &Office) -> Result<(Stream, Vec<String>)> {
    let call = Stream::start(&office.lab.client, address(MEDIA))?;
    let ways = thread::scope(|scope| {
        let connections = [(); 4].map(|()| scope.spawn(|| patient_way(office)));
        let ways = connections.map(|connection| {
            connection
                .join()
                .expect("connecting does not panic")
                .unwrap_or_default()
        });
        ways.to_vec()
    });
    Ok((call, ways))
}

/// Begins flows while the gateway drops them or their answers, lets them through again, and waits until the egress is whole.
fn loses(office: &Office, rule: &str, blamed: &str) -> Result<()> {
    let gateway = &office.lab.gateway;
    let mut daemon = probed(office)?;
    gateway.exec("nft add table inet fw")?;
    gateway.exec("nft add chain inet fw forward { type filter hook forward priority filter ; }")?;
    gateway.exec(&format!("nft add rule inet fw forward {rule} drop"))?;
    // The third SYN, three seconds after the first one, leaves by the other way; on a slow machine the fourth one.
    let (call, ways) = begin(office)?;
    ensure!(ways == ["wan"; 4], "{ways:?}, and {}", standing(office));
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let state = standing(office);
    ensure!(state["state"] == "down" && state["score"] == 0.0, "{state}");
    ensure!(state["measure"]["alive"] == true, "{state}");
    let why = state["why"].as_str().context("it says why")?;
    ensure!(why.contains("what clients begin there is not"), "{why}");
    daemon.wait_until(|_| alerts(office).contains(blamed))?;
    gateway.exec("nft delete table inet fw")?;
    // Some of the flows that begin now try it.
    daemon.wait_until(|_| office.new_way().is_ok() && standing(office)["state"] == "up")?;
    ensure!(office.new_way()? == "internet");
    let answered = standing(office)["answers"].clone();
    ensure!(
        answered["flows"].as_u64().is_some_and(|flows| flows > 0),
        "{answered}"
    );
    daemon.wait_until(|_| alerts(office) == "[]")?;
    daemon.stop()?;
    Ok(())
}

fn broken_ahead() -> Result<()> {
    let office = Office::open(PROBED)?;
    loses(
        &office,
        "iifname lan oifname \"inet\"",
        "steered packets from lan to inet are dropped by a rule in inet fw forward",
    )
}

fn broken_replies() -> Result<()> {
    let office = Office::open(PROBED)?;
    office
        .lab
        .internet
        .ip("route add 10.1.0.0/24 via 10.3.0.1")?;
    let redirect = config(PROBED).replace("masquerade = true", "mode = \"redirect\"");
    office.site.configure(&redirect)?;
    loses(
        &office,
        "iifname \"inet\" oifname lan",
        "answers to steered packets from inet to lan are dropped by a rule in inet fw forward",
    )
}

/// An upload fills 2 Mbit/s and a second of buffer on either side.
fn full() -> Result<()> {
    let office = Office::open(PROBED)?;
    let lab = &office.lab;
    let mut daemon = probed(&office)?;
    let connections = office.connections(20)?;
    ensure!(ways(&connections) == [20, 0, 0], "{:?}", ways(&connections));
    for (namespace, device) in [(&lab.gateway, "inet"), (&lab.internet, "eth0")] {
        namespace.exec(&format!(
            "tc qdisc replace dev {device} root tbf rate 2mbit burst 20k limit 250k"
        ))?;
    }
    let (upload, states) = thread::scope(|scope| {
        let upload = scope.spawn(|| bulk(&lab.client, address(MAIL), 2_500_000));
        let mut states = Vec::new();
        while !upload.is_finished() {
            states.push(standing(&office));
            thread::sleep(Duration::from_millis(100));
        }
        (upload.join().expect("sending does not panic"), states)
    });
    ensure!(upload? == "internet");
    let is_down = states.iter().find(|state| state["state"] == "down");
    ensure!(is_down.is_none(), "{is_down:?}");
    ensure!(
        states.iter().any(|state| state["congested"] == true),
        "{:?}",
        states.last()
    );
    ensure!(ways(&connections) == [20, 0, 0], "{:?}", ways(&connections));
    // What is full and dead is dead.
    let dead = Instant::now();
    lab.internet.exec("nft add table inet silent")?;
    lab.internet.exec(
        "nft add chain inet silent in { type filter hook input priority filter ; policy drop ; }",
    )?;
    daemon.wait_until(|_| standing(&office)["state"] == "down")?;
    ensure!(
        dead.elapsed() < Duration::from_secs(8),
        "{:?}",
        dead.elapsed()
    );
    daemon.stop()?;
    Ok(())
}

/// Somebody's filter takes the probes, and nothing else.
fn unprobed() -> Result<()> {
    let office = Office::open(PROBED)?;
    let lab = &office.lab;
    let mut daemon = probed(&office)?;
    let connections = office.connections(10)?;
    lab.internet.exec("nft add table inet filter")?;
    lab.internet
        .exec("nft add chain inet filter in { type filter hook input priority filter ; }")?;
    lab.internet
        .exec("nft add rule inet filter in icmp type echo-request drop")?;
    daemon.wait_until(|_| standing(&office)["measure"]["alive"] == false)?;
    let silent = Instant::now();
    while silent.elapsed() < Duration::from_secs(4) {
        let now = standing(&office);
        ensure!(now["standard"] == true && now["media"] == false, "{now}");
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(ways(&connections) == [10, 0, 0], "{:?}", ways(&connections));
    // Nobody is answered any more.
    drop(connections);
    daemon.wait_until(|_| standing(&office)["state"] == "down")?;
    daemon.stop()?;
    Ok(())
}

/// Rules as nft has them in their JSON, each with what doctor shall say; nothing where it has nothing to.
const FIREWALLS: [(&str, &str); 9] = [
    ("", ""),
    (
        "chain f { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname { \"lan\", \"wlan0\" } accept; }",
        "",
    ),
    (
        "chain f { type filter hook forward priority 0; policy drop; ct state vmap { established : accept, related : accept, invalid : drop }; meta l4proto { tcp, udp } iifname . oifname vmap { \"lan\" . \"inet\" : jump out, \"lan\" . \"wan\" : accept }; }; chain out { tcp dport { 80, 443 } accept; udp dport 3478-3481 accept; }",
        "",
    ),
    (
        "chain f { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname \"lan\" oifname \"wan\" accept; }",
        "steered packets from lan to inet are dropped by the policy of inet x f, as TCP",
    ),
    (
        "chain f { type filter hook forward priority 0; policy accept; iifname \"lan\" oifname \"inet\" udp dport 3478-3481 reject; }",
        "dropped by a rule in inet x f, as UDP",
    ),
    (
        "chain f { type filter hook forward priority 0; policy drop; iifname \"lan\" accept; iifname \"wan\" ct state established accept; }",
        "answers to steered packets from inet to lan are dropped by the policy of inet x f",
    ),
    (
        "set inside { type ipv4_addr; flags interval; elements = { 192.168.0.0/16 }; }; chain f { type filter hook forward priority 0; ip saddr != @inside oifname \"inet\" drop; }",
        "dropped by a rule in inet x f, as TCP",
    ),
    (
        "chain n { type nat hook postrouting priority 100; oifname \"wan\" masquerade; }",
        "no rule here translates what leaves by inet",
    ),
    (
        "chain n { type nat hook postrouting priority 100; ip saddr 10.0.0.0/8 snat ip to 10.2.0.1; }",
        "with the source address 10.2.0.1, which is another interface's",
    ),
];

fn through_the_firewall() -> Result<()> {
    let office = Office::open("")?;
    let gateway = &office.lab.gateway;
    let without = config("").replace("masquerade = true", "");
    for (rules, said) in FIREWALLS {
        let site = Site::new(&if said.contains("translates") || said.contains("source") {
            without.clone()
        } else {
            config("")
        })?;
        std::fs::copy(
            office.site.path().join("list.json"),
            site.path().join("list.json"),
        )?;
        let file = site.path().join("rules.nft");
        std::fs::write(
            &file,
            format!(
                "flush ruleset\ntable inet x {{\n{}\n}}\n",
                rules.replace("; chain", "\nchain")
            ),
        )?;
        gateway.exec(&format!("nft -f {}", file.display()))?;
        let doctor = site.output(gateway, &["doctor", "--json"])?;
        let findings = String::from_utf8_lossy(&doctor.stdout).into_owned();
        let is_right = if said.is_empty() {
            !findings.contains("dropped by") && !findings.contains("translates")
        } else {
            findings.contains(said)
        };
        ensure!(is_right, "{rules}: {findings}");
    }
    Ok(())
}
