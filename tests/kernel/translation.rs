//! Addresses of steered packets: our own table, which others may flush, and the operator's own translation, which has to follow
//! flows wherever something moves them.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::Stream;
use breakout_tests::wire::Wire;
use nix::sys::signal::Signal;

use crate::Test;
use crate::office::{MEDIA, Office, address, config};

pub(crate) const TESTS: &[Test] = &[
    ("our_table_is_made_again_if_somebody_flushes_all", flushed),
    ("the_operators_own_nat_is_moved_along", by_a_link),
    (
        "the_operators_own_nat_in_a_zone_is_moved_along",
        by_a_link_in_a_zone,
    ),
    ("what_leaves_untranslated_is_dropped", guarded),
    ("what_a_bypass_moves_is_translated_afresh", by_a_bypass),
    ("what_a_stop_moves_is_translated_afresh", by_a_stop),
    ("what_a_hard_rule_moves_is_translated_afresh", by_a_rule),
    ("unload_removes_our_table_too", unloaded),
    ("flows_of_a_gap_of_our_rules_are_translated_again", gap),
    ("a_rule_that_only_looks_like_ours_is_replaced", lookalike),
    (
        "a_call_that_returns_with_its_ports_is_translated",
        returning,
    ),
    ("a_cleared_mark_is_an_alert", cleared_mark),
    (
        "somebody_elses_translation_is_an_alert",
        translated_by_others,
    ),
];

const QUICK: &str = "probes = []\n[health]\nhold_down = \"500ms\"\n";

/// `systemctl reload nftables` runs a file that begins so.
fn flushed() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    for command in ["nft flush ruleset", "nft flush table inet breakout-5001"] {
        let gone = Instant::now();
        lab.gateway.exec(command)?;
        daemon.wait_until(|daemon| daemon.log().matches("was made again").count() > 0)?;
        daemon.wait_until(|_| office.new_way().is_ok_and(|way| way == "internet"))?;
        // Not only by the look every ten seconds.
        ensure!(
            gone.elapsed() < Duration::from_secs(5),
            "{command}: {:?}",
            gone.elapsed()
        );
    }
    ensure!(call.now().as_deref() == Some("internet"));
    let events = site.json(&lab.gateway, &["events"])?.to_string();
    ensure!(events.contains("\"kind\":\"nat\""), "{events}");
    daemon.stop()?;
    Ok(())
}

/// An office whose operator translates addresses himself, to a fixed one. The kernel goes on with it on any other way, for as long
/// as there are packets.
fn with_own_nat(more: &str) -> Result<Office> {
    let office = Office::open(QUICK)?;
    let settings = format!("{QUICK}{more}");
    office
        .site
        .configure(&config(&settings).replace("masquerade = true", ""))?;
    let gateway = &office.lab.gateway;
    gateway.exec("nft add table ip office")?;
    gateway.exec("nft add chain ip office post { type nat hook postrouting priority srcnat ; }")?;
    gateway.exec("nft add rule ip office post oifname \"inet\" snat to 10.3.0.1")?;
    Ok(office)
}

/// Waits until the call goes the WAN, as whoever it is there: with the inet's address nothing would come back.
fn moves(daemon: &mut Daemon<'_>, call: &Stream) -> Result<()> {
    let moved = Instant::now();
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let gap = call.gap_since(moved);
    ensure!(gap < Duration::from_secs(1), "silent for {gap:?}");
    Ok(())
}

fn by_a_link() -> Result<()> {
    leaves_a_dead_link(&with_own_nat("")?)
}

/// A call moves when its link dies.
fn leaves_a_dead_link(office: &Office) -> Result<()> {
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    lab.internet.ip("link set eth0 down")?;
    moves(&mut daemon, &call)?;
    daemon.stop()?;
    Ok(())
}

/// The operator tracks connections in a zone, and translates on both links.
fn by_a_link_in_a_zone() -> Result<()> {
    let office = with_own_nat("")?;
    for rule in [
        "chain ip office zones { type filter hook prerouting priority raw ; }",
        "rule ip office zones ct zone set 7",
        "rule ip office post oifname \"wan\" snat to 10.2.0.1",
    ] {
        office.lab.gateway.exec(&format!("nft add {rule}"))?;
    }
    leaves_a_dead_link(&office)
}

/// A call that the WAN took before the controller started, without pins that keep it there: to the kernel it is a connection that is not
/// translated. None of its packets leaves by the egress with the client's address.
fn guarded() -> Result<()> {
    let office = Office::open(&format!("{QUICK}[pinning]\nenabled = false\n"))?;
    let (lab, site) = (&office.lab, &office.site);
    let call = Stream::start(&lab.client, address(MEDIA))?;
    let begun = Instant::now();
    while call.now().as_deref() != Some("wan") {
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "there is no call"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let wire = Wire::listen(&lab.internet, "eth0")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    daemon.wait_until(|_| {
        let events = site.json(&lab.gateway, &["events"]).unwrap_or_default();
        events.to_string().contains("had not translated them")
    })?;
    daemon.stop()?;
    let mut sources = BTreeSet::new();
    while let Some(frame) = wire.receive() {
        if frame.get(12..14) == Some(&[8, 0]) {
            sources.extend(frame.get(26..30).map(<[u8]>::to_vec));
        }
    }
    ensure!(sources.contains([10, 3, 0, 1].as_slice()), "{sources:?}");
    ensure!(!sources.contains([10, 1, 0, 2].as_slice()), "{sources:?}");
    Ok(())
}

fn by_a_bypass() -> Result<()> {
    let office = with_own_nat("")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    ensure!(
        site.output(&lab.gateway, &["bypass", "on"])?
            .status
            .success()
    );
    moves(&mut daemon, &call)?;
    daemon.stop()?;
    Ok(())
}

fn by_a_stop() -> Result<()> {
    for is_killed in [false, true] {
        let office = with_own_nat("")?;
        let (lab, site) = (&office.lab, &office.site);
        let mut daemon = Daemon::start(site, &lab.gateway)?;
        let call = Stream::start(&lab.client, address(MEDIA))?;
        daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
        if is_killed {
            daemon.kill()?;
            ensure!(site.output(&lab.gateway, &["unload"])?.status.success());
        } else {
            daemon.signal(Signal::SIGTERM)?;
            daemon.stop()?;
        }
        let stopped = Instant::now();
        while call.now().as_deref() != Some("wan") {
            ensure!(
                stopped.elapsed() < Duration::from_secs(5),
                "the call ended with the controller"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// A rule whose flows nothing keeps on their way.
fn by_a_rule() -> Result<()> {
    let rule = |action: &str| {
        format!("[[policy]]\ncategory = \"optimize\"\naction = \"{action}\"\nfailback = \"hard\"\n")
    };
    let office = with_own_nat(&rule("local"))?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    let passing = format!(
        "{QUICK}{}",
        rule("pass").replace("failback = \"hard\"\n", "")
    );
    site.configure(&config(&passing).replace("masquerade = true", ""))?;
    ensure!(site.output(&lab.gateway, &["reload"])?.status.success());
    moves(&mut daemon, &call)?;
    daemon.stop()?;
    Ok(())
}

/// Also where neither the configuration nor the state can be read any more.
fn unloaded() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    Daemon::start(site, &lab.gateway)?.kill()?;
    ensure!(
        lab.gateway
            .exec("nft list tables")?
            .contains("breakout-5001")
    );
    std::fs::write(site.path().join("state/state.json"), "{")?;
    let output = site.output(&lab.gateway, &["unload"])?;
    ensure!(output.status.success(), "{output:?}");
    let tables = lab.gateway.exec("nft list tables")?;
    ensure!(!tables.contains("breakout"), "{tables}");
    Ok(())
}

/// As a restart of systemd-networkd deletes them. What leaves by the WAN meanwhile is not translated there.
fn gap() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let calls: Vec<Stream> = (0..20)
        .map(|_| Stream::start(&lab.client, address(MEDIA)))
        .collect::<Result<_>>()?;
    let all_are_at = |end: &str| calls.iter().all(|call| call.now().as_deref() == Some(end));
    daemon.wait_until(|_| all_are_at("internet"))?;
    for _ in 0..4 {
        let _ = lab.gateway.ip("rule del pref 900");
    }
    // Some began anew in the gap: within seconds all are translated for their way again, so that none loses anything.
    daemon.wait_until(|_| {
        let since = Instant::now();
        thread::sleep(Duration::from_secs(1));
        calls
            .iter()
            .all(|call| call.lost_since(since) <= 2 && call.who_since(since) == ["internet"])
    })?;
    daemon.stop()?;
    Ok(())
}

fn lookalike() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    // As many chains and rules as before.
    lab.gateway.exec(
        "nft flush chain inet breakout-5001 postrouting ; add rule inet breakout-5001 postrouting oifname \"inet\" counter accept",
    )?;
    daemon.wait_until(|daemon| daemon.log().contains("was made again"))?;
    daemon.wait_until(|_| office.new_way().is_ok_and(|way| way == "internet"))?;
    // What is as it was made is left alone.
    let made = daemon.log().matches("was made again").count();
    let since = Instant::now();
    daemon.wait_until(|_| since.elapsed() > Duration::from_secs(12))?;
    ensure!(
        daemon.log().matches("was made again").count() == made,
        "{}",
        daemon.log()
    );
    daemon.stop()?;
    Ok(())
}

/// A call begins while the link is down, pauses, and goes on from the same port when the link is back: to the kernel it is the
/// same connection, which is not translated.
fn returning() -> Result<()> {
    let settings = format!("{QUICK}[pinning]\nmedia_hold = \"1s\"\nudp_idle = \"1s\"\n");
    let office = Office::open(&settings)?;
    let (lab, site) = (&office.lab, &office.site);
    lab.internet.ip("link set eth0 down")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let source = address("10.1.0.2:50004");
    let call = Stream::start_from(&lab.client, source, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    drop(call);
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(office.is_up(true))?;
    let paused = Instant::now();
    daemon.wait_until(|_| paused.elapsed() > Duration::from_secs(4))?;
    let call = Stream::start_from(&lab.client, source, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    daemon.stop()?;
    Ok(())
}

fn alerts(office: &Office) -> String {
    let status = office.site.json(&office.lab.gateway, &["status"]);
    status.unwrap_or_default()["alerts"].to_string()
}

/// A rule of somebody else clears the mark before the kernel routes, so that packets leave by the WAN.
fn cleared_mark() -> Result<()> {
    for masquerade in ["masquerade = true", ""] {
        let office = Office::open(QUICK)?;
        let (lab, site) = (&office.lab, &office.site);
        site.configure(&config(QUICK).replace("masquerade = true", masquerade))?;
        lab.internet.ip("route add 10.1.0.0/24 via 10.3.0.1")?;
        let mut daemon = Daemon::start(site, &lab.gateway)?;
        let call = Stream::start(&lab.client, address(MEDIA))?;
        daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
        let calm = Instant::now();
        daemon.wait_until(|_| calm.elapsed() > Duration::from_secs(8))?;
        ensure!(alerts(&office) == "[]", "{}", alerts(&office));
        lab.gateway.exec("nft add table inet qos")?;
        lab.gateway
            .exec("nft add chain inet qos pre { type filter hook prerouting priority mangle ; }")?;
        lab.gateway
            .exec("nft add rule inet qos pre iifname lan meta mark set 0")?;
        let cleared = Instant::now();
        daemon.wait_until(|_| alerts(&office).contains("steered"))?;
        ensure!(
            cleared.elapsed() < Duration::from_secs(12),
            "{:?}",
            cleared.elapsed()
        );
        lab.gateway.exec("nft delete table inet qos")?;
        let _new = Stream::start(&lab.client, address(MEDIA))?;
        daemon.wait_until(|_| alerts(&office) == "[]")?;
        daemon.stop()?;
    }
    Ok(())
}

fn translated_by_others() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    lab.gateway.exec("nft add table ip other")?;
    lab.gateway
        .exec("nft add chain ip other post { type nat hook postrouting priority 90 ; }")?;
    lab.gateway
        .exec("nft add rule ip other post oifname \"inet\" snat to 192.0.2.77")?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| alerts(&office).contains("192.0.2.77"))?;
    drop(call);
    lab.gateway.exec("nft delete table ip other")?;
    daemon.wait_until(|_| {
        let _ = office.new_way();
        alerts(&office) == "[]"
    })?;
    daemon.stop()?;
    Ok(())
}
