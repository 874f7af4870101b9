//! Reloads: all or nothing, and nothing flows wrong meanwhile.

use std::fs;

use anyhow::{Result, ensure};
use breakout::datapath::Asker;
use breakout::ruleset::{Ruleset, compile};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{Lab, config_with_list};
use breakout_tests::programs;
use breakout_tests::server::Servers;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_new_list_changes_the_way", new_list),
    ("a_bad_list_or_config_changes_nothing", bad_reload),
    ("the_mode_changes_in_a_reload", new_mode),
    (
        "the_gateways_own_addresses_are_never_steered",
        own_addresses,
    ),
    ("a_list_that_outgrows_the_tables_gets_larger_ones", growth),
    (
        "a_failed_installation_leaves_the_one_before_in_force",
        failed_installation,
    ),
    ("sighup_reloads", sighup),
];

fn list(prefixes: &[String]) -> Value {
    json!([{"id": 1, "serviceArea": "Exchange", "ips": prefixes, "tcpPorts": "443", "udpPorts": "443",
            "category": "Optimize", "required": true, "expressRoute": true}])
}

fn write_list(site: &Site, prefixes: &[&str]) -> Result<()> {
    let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    fs::write(site.path().join("list.json"), list(&prefixes).to_string())?;
    Ok(())
}

fn way(site: &Site, lab: &Lab, destination: &str) -> Result<String> {
    let answer = site.json(
        &lab.gateway,
        &["explain", destination, "--proto", "tcp", "--port", "443"],
    )?;
    Ok(answer["verdict"].as_str().unwrap_or_default().to_owned())
}

fn new_list() -> Result<()> {
    let lab = Lab::build()?;
    let flows = [
        Flow::new(Transport::Tcp, "198.51.100.7", 443),
        Flow::new(Transport::Tcp, "203.0.113.7", 443),
    ];
    let _servers = lab.serve(&flows)?;
    let site = Site::new(&config_with_list("route"))?;
    write_list(&site, &["198.51.100.0/24"])?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(flows[0].talk(&lab.client)? == "internet");
    ensure!(flows[1].talk(&lab.client)? == "wan");
    write_list(&site, &["203.0.113.0/24"])?;
    let reloaded = site.json(&lab.gateway, &["reload"])?;
    ensure!(reloaded["changed"] == true, "{reloaded}");
    ensure!(
        reloaded["to_generation"].as_u64() == reloaded["from_generation"].as_u64().map(|g| g + 1),
        "{reloaded}"
    );
    ensure!(flows[0].talk(&lab.client)? == "wan");
    ensure!(flows[1].talk(&lab.client)? == "internet");
    let again = site.json(&lab.gateway, &["reload"])?;
    ensure!(again["changed"] == false, "{again}");
    daemon.stop()?;
    Ok(())
}

fn bad_reload() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&config_with_list("route"))?;
    write_list(&site, &["198.51.100.0/24"])?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let before = site.json(&lab.gateway, &["status"])?;
    let refused = |code: i32, part: &str| -> Result<()> {
        let output = site.output(&lab.gateway, &["reload"])?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code),
            "{:?}: {message}",
            output.status
        );
        ensure!(message.contains(part), "{message}");
        let after = site.json(&lab.gateway, &["status"])?;
        ensure!(after["ruleset"] == before["ruleset"], "{after}");
        ensure!(way(&site, &lab, "198.51.100.7")? == "steer");
        Ok(())
    };
    fs::write(site.path().join("list.json"), "<html>log in</html>")?;
    refused(4, "HTML page")?;
    fs::write(site.path().join("list.json"), "[{\"id\": 1, \"ips\": [")?;
    refused(4, "cut off")?;
    fs::write(site.path().join("list.json"), "[]")?;
    refused(4, "no usable endpoint set")?;
    let sets = (2..=4096).map(|id| {
        json!({"id": id, "ips": [format!("10.{}.{}.0/24", id / 256, id % 256)], "tcpPorts": id.to_string(),
               "category": "Optimize"})
    });
    let too_large: Value = sets.collect();
    fs::write(site.path().join("list.json"), too_large.to_string())?;
    refused(4, "the ruleset is too large: it needs a table of")?;
    write_list(&site, &["203.0.113.0/24"])?;
    site.configure(&config_with_list("route").replace("\"inet\"", "\"nowhere\""))?;
    refused(7, "no interface nowhere")?;
    daemon.stop()?;
    Ok(())
}

fn new_mode() -> Result<()> {
    let lab = Lab::build()?;
    let flow = Flow::new(Transport::Tcp, "198.51.100.7", 443);
    lab.own([flow.destination.ip()])?;
    let _internet = Servers::start(&lab.internet, "internet", std::slice::from_ref(&flow))?;
    let site = Site::new(&config_with_list("route"))?;
    write_list(&site, &["198.51.100.0/24"])?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    for mode in ["redirect", "route", "redirect"] {
        site.configure(&config_with_list(mode))?;
        site.json(&lab.gateway, &["reload"])?;
        let status = site.json(&lab.gateway, &["status"])?;
        let xdp = status["lan"][0]["xdp"] == "native";
        ensure!(xdp == (mode == "redirect"), "{status}");
        let shown = lab.gateway.ip("link show lan")?;
        ensure!(shown.contains("prog/xdp") == xdp, "{mode}: {shown}");
        ensure!(flow.talk(&lab.client)? == "internet", "{mode}");
    }
    daemon.wait_until(|_| true)?;
    daemon.stop()?;
    Ok(())
}

/// A list that covers everything steers nothing to the gateway, whose addresses change.
fn own_addresses() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&config_with_list("route"))?;
    write_list(&site, &["10.0.0.0/8", "fd00::/8"])?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    for (address, expected) in [
        ("10.1.0.1", "pass"),
        ("10.1.0.2", "steer"),
        ("10.1.0.255", "pass"),
        ("10.3.0.1", "pass"),
        ("10.1.0.9", "steer"),
        ("fd00:1::1", "pass"),
        ("fd00:1::9", "steer"),
    ] {
        ensure!(way(&site, &lab, address)? == expected, "{address}");
    }
    for address in ["10.1.0.9", "fd00:1::9"] {
        lab.gateway.ip(&format!("addr add {address} dev lan"))?;
        daemon.wait_until(|_| way(&site, &lab, address).is_ok_and(|way| way == "pass"))?;
        lab.gateway.ip(&format!("addr del {address} dev lan"))?;
        daemon.wait_until(|_| way(&site, &lab, address).is_ok_and(|way| way == "steer"))?;
    }
    daemon.stop()?;
    Ok(())
}

fn growth() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&config_with_list("route"))?;
    write_list(&site, &["198.51.100.0/24"])?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let bytes = |status: &Value| status["ruleset"]["table_bytes"].as_u64().unwrap_or(0);
    let small = bytes(&site.json(&lab.gateway, &["status"])?);
    let many: Vec<String> = (0..=255u32)
        .flat_map(|b| {
            (0..64u32).map(move |c| format!("100.{b}.{}.{}/32", c * 3, (b * 7 + c) % 256))
        })
        .collect();
    fs::write(site.path().join("list.json"), list(&many).to_string())?;
    site.json(&lab.gateway, &["reload"])?;
    let large = bytes(&site.json(&lab.gateway, &["status"])?);
    ensure!(large > small, "{small} bytes grew to {large}");
    for address in [&many[0], &many[8000], &many[16383]] {
        let address = address.trim_end_matches("/32");
        ensure!(way(&site, &lab, address)? == "steer", "{address}");
    }
    ensure!(way(&site, &lab, "198.51.100.7")? == "pass");
    daemon.stop()?;
    Ok(())
}

/// The first LAN takes the new programs, the second refuses: both go back, and the controller still has them.
fn failed_installation() -> Result<()> {
    let lab = Lab::build()?;
    let flow = Flow::new(Transport::Tcp, "198.51.100.7", 443);
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    lab.gateway
        .ip("link add lan2 type veth peer name lan2-peer")?;
    // An interface takes no generic XDP program beside a native one.
    let mut other = Asker::load(programs::object(), &compile(&Ruleset::default())?)?;
    lab.gateway.enter(|| other.attach("pass_all", "lan2"))?;
    let two_lans = |mode: &str| {
        format!(
            "{}\n[[lan]]\ninterface = \"lan2\"\nxdp = \"generic\"\n",
            config_with_list(mode)
        )
    };
    let site = Site::new(&two_lans("route"))?;
    write_list(&site, &["198.51.100.0/24"])?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let before = super::cleanup::inventory(&lab)?;
    site.configure(&two_lans("redirect"))?;
    let output = site.output(&lab.gateway, &["reload"])?;
    ensure!(output.status.code() == Some(7), "{:?}", output.status);
    let message = String::from_utf8_lossy(&output.stderr);
    let why = "the XDP program cannot be attached to lan2";
    ensure!(
        message.contains("nothing has changed") && message.contains(why),
        "{message}"
    );
    let after = super::cleanup::inventory(&lab)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(flow.talk(&lab.client)? == "internet");
    // The controller and the programs are still of one mind: what it publishes now is what they do.
    site.configure(&two_lans("route"))?;
    write_list(&site, &["203.0.113.0/24"])?;
    site.json(&lab.gateway, &["reload"])?;
    ensure!(flow.talk(&lab.client)? == "wan");
    daemon.stop()?;
    Ok(())
}

fn sighup() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&config_with_list("route"))?;
    write_list(&site, &["198.51.100.0/24"])?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    write_list(&site, &["203.0.113.0/24"])?;
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_until(|daemon| daemon.log().contains("reloaded: generation"))?;
    ensure!(way(&site, &lab, "203.0.113.7")? == "steer");
    fs::write(site.path().join("list.json"), "[]")?;
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_until(|daemon| daemon.log().contains("not reloaded"))?;
    ensure!(way(&site, &lab, "203.0.113.7")? == "steer");
    daemon.stop()?;
    Ok(())
}
