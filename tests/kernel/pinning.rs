//! Flows that stay: through a restart of the controller, with a full table, and with the operator's own NAT.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::lab::connect;
use breakout_tests::live::{Connections, Stream};
use breakout_tests::netns::Namespace;
use breakout_tests::seen::Counter;
use socket2::{Domain, Socket, Type};

use crate::Test;
use crate::office::{MAIL, MEDIA, Office, address, config, list, ways};

pub(crate) const TESTS: &[Test] = &[
    ("pins_survive_the_controller", survive),
    ("a_full_table_of_pins_goes_by_the_ruleset", full),
    ("hard_rules_fail_back_at_once", hard),
    ("bypass_moves_everything_at_once", bypass),
    ("a_clients_media_moves_together_or_not_at_all", together),
    ("what_has_begun_before_the_start_stays", begun_before),
    (
        "a_port_that_is_used_again_splits_no_connection",
        port_used_again,
    ),
    ("rules_of_one_lan_move_nobodys_flows", one_lan),
];

const QUICK: &str = "probes = []\n[health]\nhold_down = \"500ms\"\n";

fn survive() -> Result<()> {
    // Longer than a start takes on a slow machine.
    let office = Office::open(&QUICK.replace("500ms", "3s"))?;
    let (lab, site) = (&office.lab, &office.site);
    let daemon = Daemon::start(site, &lab.gateway)?;
    let local = office.connections(20)?;
    daemon.kill()?;
    // Whoever takes over finds the link down, and up again: those on the WAN stay there.
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    local.rounds(5)?;
    ensure!(ways(&local) == [20, 0, 0], "{:?}", ways(&local));
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(office.is_up(false))?;
    let by_wan = office.connections(20)?;
    daemon.kill()?;
    lab.internet.ip("link set eth0 up")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    // That it was down before is remembered, and so it is held down.
    ensure!(office.new_way()? == "wan");
    daemon.wait_until(office.is_up(true))?;
    ensure!(office.new_way()? == "internet");
    by_wan.rounds(5)?;
    ensure!(ways(&by_wan) == [0, 20, 0], "{:?}", ways(&by_wan));
    let flows = site.json(&lab.gateway, &["flows"])?;
    ensure!(flows["pinned"].as_u64() >= Some(20), "{flows}");
    daemon.stop()?;
    Ok(())
}

/// More flows than there is room for begin on the WAN. Once the link is back, those that found none go by the ruleset.
fn full() -> Result<()> {
    let office = Office::open(&format!("{QUICK}[pinning]\nsize = 64\n"))?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(office.is_up(false))?;
    let connections = office.connections(300)?;
    connections.rounds(3)?;
    ensure!(
        ways(&connections) == [0, 300, 0],
        "{:?}",
        ways(&connections)
    );
    let flows = site.json(&lab.gateway, &["flows", "--limit", "1000"])?;
    ensure!(
        (Some(64)..=Some(128)).contains(&flows["pinned"].as_u64()) && flows["size"] == 64,
        "{flows}"
    );
    let unknown = || -> Result<f64> {
        let metrics = lab.gateway.exec(&format!(
            "curl -sS --unix-socket {} http://breakout/metrics",
            site.socket().display()
        ))?;
        let line = "breakout_pin_events_total{event=\"unknown\"} ";
        let count = metrics.lines().find_map(|text| text.strip_prefix(line));
        Ok(count.context("the metric")?.parse()?)
    };
    ensure!(
        unknown()? > 300.0,
        "that flows found no room is not counted: {}",
        unknown()?
    );
    let passed = Counter::start(&lab.gateway, "inet", "oifname \"inet\" tcp dport 443")?;
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(office.is_up(true))?;
    ensure!(office.new_way()? == "internet");
    let before = passed.packets()?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(
        passed.packets()? > before,
        "flows without a pin go by the ruleset"
    );
    daemon.stop()?;
    Ok(())
}

fn hard() -> Result<()> {
    let rule = "[[policy]]\ncategory = \"optimize\"\naction = \"local\"\nfailback = \"hard\"\n";
    let office = Office::open(&format!("{QUICK}{rule}"))?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    ensure!(site.json(&lab.gateway, &["flows"])?["pinned"] == 0);
    daemon.stop()?;
    Ok(())
}

fn bypass() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    ensure!(
        site.output(&lab.gateway, &["bypass", "on", "--for", "1h"])?
            .status
            .success()
    );
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    ensure!(
        site.output(&lab.gateway, &["bypass", "off"])?
            .status
            .success()
    );
    let ended = Instant::now();
    ensure!(office.new_way()? == "internet");
    daemon.wait_until(|_| ended.elapsed() > Duration::from_secs(1))?;
    ensure!(
        call.who_since(ended) == ["wan"],
        "what was moved stays: {:?}",
        call.who_since(ended)
    );
    daemon.stop()?;
    Ok(())
}

/// Audio, video and screen of one client are three flows. One that begins while the others are on the WAN joins them there; another
/// client's does not.
fn together() -> Result<()> {
    let office = Office::open(&format!("{QUICK}[pinning]\nmedia_hold = \"2s\"\n"))?;
    let (lab, site) = (&office.lab, &office.site);
    lab.client.ip("addr add 10.1.0.3/24 dev eth0")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(office.is_up(false))?;
    let from = |client: &str| Stream::start_from(&lab.client, address(client), address(MEDIA));
    let audio = from("10.1.0.2:0")?;
    daemon.wait_until(|_| audio.now().as_deref() == Some("wan"))?;
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(office.is_up(true))?;
    let back = Instant::now();
    let (video, other) = (from("10.1.0.2:0")?, from("10.1.0.3:0")?);
    daemon.wait_until(|_| video.now().is_some() && other.now().is_some())?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(
        audio.who_since(back) == ["wan"] && video.who_since(back) == ["wan"],
        "{:?} {:?}",
        audio.who_since(back),
        video.who_since(back)
    );
    ensure!(
        other.who_since(back) == ["internet"],
        "{:?}",
        other.who_since(back)
    );
    drop((audio, video));
    std::thread::sleep(Duration::from_millis(4500));
    let next = from("10.1.0.2:0")?;
    daemon.wait_until(|_| next.now().is_some())?;
    ensure!(next.now().as_deref() == Some("internet"), "the next call");
    daemon.stop()?;
    Ok(())
}

/// Whatever is under way when Breakout is started, on a gateway that tracks connections.
fn begun_before() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    lab.gateway.exec("nft add table ip track")?;
    lab.gateway
        .exec("nft add chain ip track forward { type filter hook forward priority 0 ; }")?;
    lab.gateway
        .exec("nft add rule ip track forward ct state established accept")?;
    let connections = office.connections(20)?;
    connections.rounds(2)?;
    let wrong = Counter::start(&lab.gateway, "wrong", "oifname \"inet\" tcp dport 443")?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    connections.rounds(5)?;
    ensure!(ways(&connections) == [0, 20, 0], "{:?}", ways(&connections));
    ensure!(wrong.packets()? == 0, "{} packets", wrong.packets()?);
    ensure!(office.new_way()? == "internet");
    daemon.stop()?;
    Ok(())
}

/// A connection from a port that was pinned to the egress, after its destination is none of the list any more.
fn port_used_again() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let daemon = Daemon::start(site, &lab.gateway)?;
    let from_port = |port: u16| {
        lab.client.enter(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            // It is closed by a reset, so that the port is free at once.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], port)).into())?;
            socket.connect_timeout(&address(MAIL).into(), Duration::from_secs(3))?;
            let mut stream = std::net::TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            let mut greeting = [0; 16];
            let count = std::io::Read::read(&mut stream, &mut greeting)?;
            Ok(String::from_utf8_lossy(&greeting[..count])
                .trim()
                .to_owned())
        })
    };
    ensure!(from_port(40_123)? == "internet");
    let text = list(&[]).replace("52.98.0.0/16", "52.99.0.0/16");
    std::fs::write(site.path().join("list.json"), text)?;
    ensure!(site.output(&lab.gateway, &["reload"])?.status.success());
    let split = Counter::start(&lab.gateway, "split", "oifname \"inet\" tcp sport 40123")?;
    ensure!(from_port(40_123)? == "wan");
    ensure!(
        split.packets()? == 0,
        "{} packets went by the egress",
        split.packets()?
    );
    daemon.stop()?;
    Ok(())
}

/// A rule for the clients behind the second LAN interface comes. Their connections stay where they are.
fn one_lan() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let guests = Namespace::create(lab.client.name().replace("client", "guests"))?;
    connect(&guests, "eth0", &lab.gateway, "lan2")?;
    guests.ip_lines("addr add 10.8.0.2/24 dev eth0\nroute add default via 10.8.0.1")?;
    lab.gateway.ip("addr add 10.8.0.1/24 dev lan2")?;
    lab.wan.ip("route add 10.8.0.0/24 via 10.2.0.1")?;
    lab.gateway.exec("nft add table ip track")?;
    lab.gateway
        .exec("nft add chain ip track forward { type filter hook forward priority 0 ; }")?;
    lab.gateway
        .exec("nft add rule ip track forward ct state established accept")?;
    let rule = |lan: &str| {
        format!("{QUICK}[[policy]]\ncategory = \"optimize\"\nlan = \"{lan}\"\naction = \"local\"\n")
    };
    let both = |more: &str| format!("{}\n[[lan]]\ninterface = \"lan2\"\n", config(more));
    site.configure(&both(&rule("lan")))?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    let connections = Connections::open(&guests, &[address(MAIL)], 20)?;
    connections.rounds(2)?;
    ensure!(ways(&connections) == [0, 20, 0], "{:?}", ways(&connections));
    let wrong = Counter::start(&lab.gateway, "wrong", "oifname \"inet\" tcp dport 443")?;
    site.configure(&both(&rule("lan2")))?;
    ensure!(site.output(&lab.gateway, &["reload"])?.status.success());
    connections.rounds(5)?;
    ensure!(ways(&connections) == [0, 20, 0], "{:?}", ways(&connections));
    ensure!(wrong.packets()? == 0, "{} packets moved", wrong.packets()?);
    let fresh = Connections::open(&guests, &[address(MAIL)], 5)?;
    ensure!(ways(&fresh) == [5, 0, 0], "{:?}", ways(&fresh));
    daemon.stop()?;
    Ok(())
}
