//! The policy with real traffic: who is steered, what is only shown, and the switch that steers nothing.

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::manual::{block, type_in};
use serde_json::Value;

use crate::Test;
use crate::redirect::reason;

pub(crate) const TESTS: &[Test] = &[
    ("rules_ask_for_sources_ports_and_lans", clients),
    ("custom_sets_and_sign_in_are_steered_by_name", by_name),
    ("shadow_shows_and_steers_nothing", shadow),
    ("a_share_of_the_clients_is_steered", share),
    ("bypass_steers_nothing_ends_and_survives", bypass),
];

const EXCHANGE: &str = "52.98.1.1";
const EXCHANGE_V6: &str = "2603:1006::1";

fn site(rules: &str) -> Result<Site> {
    Site::new(&format!("{}\n{rules}", CONFIG.replace("MODE", "route")))
}

/// Gives the client another address, which it uses from then on.
fn be(lab: &Lab, address: &str) -> Result<()> {
    let (family, length, gateway) = if address.contains(':') {
        ("-6", 64, "fd00:1::1")
    } else {
        ("-4", 24, "10.1.0.1")
    };
    lab.client
        .ip(&format!("addr replace {address}/{length} dev eth0 nodad"))?;
    lab.client
        .ip(&format!(
            "{family} route replace default via {gateway} src {address}"
        ))
        .map(drop)
}

fn explain(site: &Site, lab: &Lab, more: &[&str]) -> Result<Value> {
    let question = ["explain", EXCHANGE, "--proto", "tcp", "--port", "443"];
    site.json(&lab.gateway, &[&question[..], more].concat())
}

fn clients() -> Result<()> {
    let lab = Lab::build()?;
    let [https, http, v6] = [(EXCHANGE, 443), (EXCHANGE, 80), (EXCHANGE_V6, 443)]
        .map(|(address, port)| Flow::new(Transport::Tcp, address, port));
    let _servers = lab.serve(&[https.clone(), http.clone(), v6.clone()])?;
    let site = site(
        "[[policy]]\nname = \"staff\"\ncategory = \"optimize\"\nports = \"tcp 443\"\n\
         sources = [\"10.1.0.32/28\", \"fd00:1::20/123\"]\nlan = \"lan\"\naction = \"local\"\n",
    )?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    for (address, v6_address, expected) in [
        ("10.1.0.31", "fd00:1::1f", "wan"),
        ("10.1.0.32", "fd00:1::20", "internet"),
        ("10.1.0.47", "fd00:1::3f", "internet"),
        ("10.1.0.48", "fd00:1::40", "wan"),
    ] {
        be(&lab, address)?;
        be(&lab, v6_address)?;
        ensure!(https.talk(&lab.client)? == expected, "{address}");
        ensure!(v6.talk(&lab.client)? == expected, "{v6_address}");
        ensure!(http.talk(&lab.client)? == "wan", "{address}");
        let answer = explain(&site, &lab, &["--from", address])?;
        let verdict = if expected == "internet" {
            "steer"
        } else {
            "pass"
        };
        ensure!(answer["verdict"] == verdict, "{answer}");
        ensure!(answer["depends_on_client"] == true, "{answer}");
        let rule = answer["rule"].as_str();
        ensure!(rule == (verdict == "steer").then_some("staff"), "{answer}");
    }
    daemon.stop()?;
    Ok(())
}

fn by_name() -> Result<()> {
    let lab = Lab::build()?;
    let [own, sign_in, exchange] = ["192.0.2.9", "20.190.128.1", EXCHANGE]
        .map(|address| Flow::new(Transport::Tcp, address, 443));
    let _servers = lab.serve(&[own.clone(), sign_in.clone(), exchange.clone()])?;
    let rules = |sets: &str| {
        format!(
            "[[custom]]\nname = \"branch tools\"\nprefixes = [\"192.0.2.0/28\"]\nports = \"tcp 443\"\n\
             [[policy]]\ncustom = \"branch tools\"\naction = \"local\"\n\
             [[policy]]\n{sets}\naction = \"local\"\n"
        )
    };
    let site = site(&rules("category = \"allow\""))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(own.talk(&lab.client)? == "internet");
    ensure!(sign_in.talk(&lab.client)? == "wan");
    ensure!(
        exchange.talk(&lab.client)? == "wan",
        "no rule is about Optimize"
    );
    let output = site.output(&lab.gateway, &["check"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        text.contains("does not steer endpoint set Worldwide 56 (sign-in)"),
        "{text}"
    );
    site.configure(&format!(
        "{}\n{}",
        CONFIG.replace("MODE", "route"),
        rules("sets = [56]")
    ))?;
    let done = site.json(&lab.gateway, &["reload"])?;
    let text = done["delta"]["sets"].to_string();
    ensure!(
        text.contains("Worldwide 56") && text.contains("rule 2 -> local"),
        "{text}"
    );
    ensure!(sign_in.talk(&lab.client)? == "internet");
    let stats = site.json(&lab.gateway, &["stats"])?;
    let sets = stats["endpoint_sets"]
        .as_array()
        .context("sets are counted")?;
    let custom = sets
        .iter()
        .find(|set| set["service_area"] == "branch tools");
    let custom = custom.context("the custom set is counted")?;
    ensure!(custom["packets"].as_u64() > Some(4), "{custom}");
    daemon.stop()?;
    Ok(())
}

fn shadow() -> Result<()> {
    let lab = Lab::build()?;
    let flow = Flow::new(Transport::Tcp, EXCHANGE, 443);
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let rule = "[[policy]]\ncategory = \"optimize\"\naction = \"local\"\n";
    let site = site(&format!("{rule}shadow = true\n"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(flow.talk(&lab.client)? == "wan");
    let stats = site.json(&lab.gateway, &["stats"])?;
    ensure!(
        reason(&stats, "shadow") > 4 && reason(&stats, "steered") == 0,
        "{stats}"
    );
    ensure!(explain(&site, &lab, &[])?["reason"] == "shadow");
    // The whole configuration, by one key at its top.
    site.configure(&format!(
        "shadow = true\n{}\n{rule}",
        CONFIG.replace("MODE", "route")
    ))?;
    site.json(&lab.gateway, &["reload"])?;
    ensure!(flow.talk(&lab.client)? == "wan");
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(
        status["alerts"][0]
            .as_str()
            .is_some_and(|text| text.starts_with("SHADOW")),
        "{status}"
    );
    site.configure(&format!("{}\n{rule}", CONFIG.replace("MODE", "route")))?;
    site.json(&lab.gateway, &["reload"])?;
    ensure!(flow.talk(&lab.client)? == "internet");
    daemon.stop()?;
    Ok(())
}

fn share() -> Result<()> {
    let lab = Lab::build()?;
    let flow = Flow::new(Transport::Tcp, EXCHANGE, 443);
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let site = site("[[policy]]\ncategory = \"optimize\"\nshare = \"50 %\"\naction = \"local\"\n")?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let mut steered = 0;
    for host in 10..40 {
        let address = format!("10.1.0.{host}");
        be(&lab, &address)?;
        let way = flow.talk(&lab.client)?;
        let answer = explain(&site, &lab, &["--from", &address])?;
        ensure!(
            (answer["verdict"] == "steer") == (way == "internet"),
            "{address}: {way}, {answer}"
        );
        ensure!(flow.talk(&lab.client)? == way, "{address} keeps its way");
        steered += usize::from(way == "internet");
    }
    ensure!((5..25).contains(&steered), "{steered} of 30 clients");
    daemon.stop()?;
    Ok(())
}

fn bypass() -> Result<()> {
    let lab = Lab::build()?;
    let flow = Flow::new(Transport::Tcp, EXCHANGE, 443);
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let site = site("")?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(flow.talk(&lab.client)? == "internet");
    let before = site.json(&lab.gateway, &["status"])?["ruleset"].clone();
    site.json(&lab.gateway, &["bypass", "on"])?;
    ensure!(flow.talk(&lab.client)? == "wan");
    let output = site.output(&lab.gateway, &["status", "--check"])?;
    ensure!(output.status.code() == Some(9), "{:?}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.starts_with("!! BYPASS: nothing is steered"), "{text}");
    // It is the same ruleset, and a reload does not end the bypass.
    site.json(&lab.gateway, &["reload"])?;
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(status["ruleset"]["hash"] == before["hash"], "{status}");
    ensure!(flow.talk(&lab.client)? == "wan");
    // Neither a crash nor a restart ends it, but its time does.
    site.json(&lab.gateway, &["bypass", "on", "--for", "8s"])?;
    daemon.kill()?;
    ensure!(flow.talk(&lab.client)? == "wan");
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(flow.talk(&lab.client)? == "wan");
    ensure!(reason(&site.json(&lab.gateway, &["stats"])?, "bypass") > 4);
    daemon.wait_until(|daemon| daemon.log().contains("the time of the bypass is over"))?;
    ensure!(flow.talk(&lab.client)? == "internet");
    type_in(&site, &lab.gateway, &block("docs/policy.md", "sh", 2)?)?;
    ensure!(flow.talk(&lab.client)? == "internet");
    ensure!(
        site.output(&lab.gateway, &["status", "--check"])?
            .status
            .success()
    );
    let history = site.json(&lab.gateway, &["history"])?;
    let entries = history.as_array().context("the journal has lines")?;
    let switches = entries.iter().filter(|entry| entry["action"] == "bypass");
    let who: Vec<&str> = switches.filter_map(|entry| entry["who"].as_str()).collect();
    ensure!(
        who == ["operator", "operator", "timer", "operator", "operator"],
        "{who:?}"
    );
    daemon.stop()?;
    Ok(())
}
