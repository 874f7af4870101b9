//! What cannot work is refused with a clear error, the documented exit code, and nothing half installed.

use std::fs;

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::netns::run;

use super::cleanup::inventory;
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("missing_interfaces_are_refused", missing_interfaces),
    ("generic_xdp_only_if_allowed_and_loudly", generic_xdp),
    (
        "a_gateway_that_is_not_on_link_is_refused",
        gateway_elsewhere,
    ),
    ("an_egress_without_any_gateway_is_refused", no_gateway),
    ("a_config_typo_is_refused", typo),
    ("bad_lists_are_refused", bad_lists),
    ("a_huge_broken_list_costs_little", huge),
    ("a_second_controller_is_refused", second_controller),
    ("another_xdp_program_is_respected", foreign_xdp),
    ("without_root_it_says_so", not_root),
    ("commands_without_a_controller_say_so", nobody_there),
];

/// Starts a controller that must fail with this code and words, and leave nothing behind.
pub(crate) fn refused(
    lab: &Lab,
    config: &str,
    more: &[&str],
    code: i32,
    words: &[&str],
) -> Result<String> {
    let site = Site::new(config)?;
    refused_at(lab, &site, more, code, words)
}

pub(crate) fn refused_at(
    lab: &Lab,
    site: &Site,
    more: &[&str],
    code: i32,
    words: &[&str],
) -> Result<String> {
    let before = inventory(lab)?;
    let output = site.output(&lab.gateway, &[&["run"], more].concat())?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(code),
        "ended with {:?} instead of {code}: {message}",
        output.status.code()
    );
    for word in words {
        ensure!(message.contains(word), "\"{word}\" is not in: {message}");
    }
    let after = inventory(lab)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    Ok(message)
}

fn missing_interfaces() -> Result<()> {
    let lab = Lab::build()?;
    let config = CONFIG.replace("MODE", "route");
    let no_lan = config.replace("\"lan\"", "\"lan7\"");
    refused(
        &lab,
        &no_lan,
        &[],
        7,
        &["[[lan]]", "no interface lan7", "ip link"],
    )?;
    let no_inet = config.replace("\"inet\"", "\"inet7\"");
    refused(
        &lab,
        &no_inet,
        &[],
        7,
        &["egress local", "no interface inet7"],
    )?;
    Ok(())
}

fn generic_xdp() -> Result<()> {
    let lab = Lab::build()?;
    lab.gateway.ip("link add br0 type bridge")?;
    lab.gateway.ip("link set br0 up")?;
    let config = CONFIG.replace("MODE", "redirect").replace(
        "interface = \"lan\"",
        "interface = \"br0\"\nxdp = \"generic\"",
    );
    let site = Site::new(&config)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(daemon.log().contains("GENERIC mode"), "{}", daemon.log());
    let shown = lab.gateway.ip("link show br0")?;
    ensure!(shown.contains("xdpgeneric"), "{shown}");
    daemon.stop()?;
    Ok(())
}

fn gateway_elsewhere() -> Result<()> {
    let lab = Lab::build()?;
    let config = CONFIG.replace("MODE", "route");
    let elsewhere = config.replace("10.3.0.2", "10.9.9.9");
    refused(
        &lab,
        &elsewhere,
        &[],
        7,
        &["10.9.9.9 is not on link on inet", "10.3.0.1/24"],
    )?;
    let own = config.replace("10.3.0.2", "10.3.0.1");
    refused(&lab, &own, &[], 7, &["this machine's own address"])?;
    Ok(())
}

fn no_gateway() -> Result<()> {
    let lab = Lab::build()?;
    let config: String = CONFIG
        .replace("MODE", "route")
        .lines()
        .filter(|line| !line.starts_with("gateway"))
        .map(|line| format!("{line}\n"))
        .collect();
    refused(
        &lab,
        &config,
        &[],
        7,
        &["no gateway is known for inet", "Set gateway"],
    )?;
    Ok(())
}

fn typo() -> Result<()> {
    let lab = Lab::build()?;
    let config = CONFIG
        .replace("MODE", "route")
        .replace("gateway6 =", "gatway6 =");
    refused(
        &lab,
        &config,
        &[],
        3,
        &[
            "breakout.toml:12",
            "unknown key \"gatway6\"",
            "did you mean \"gateway6\"?",
        ],
    )?;
    Ok(())
}

fn bad_lists() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let file = site.path().join("list.json");
    let path = file.to_string_lossy().into_owned();
    for (text, words) in [
        ("<!DOCTYPE html><html></html>", "HTML page"),
        ("[{\"id\": 1, \"ips\": [\"52.96.0.0/14\"", "is cut off"),
        ("[]", "has no usable endpoint set"),
        (
            "[{\"id\": 8, \"urls\": [\"*.outlook.com\"], \"tcpPorts\": \"443\"}]",
            "no usable",
        ),
        (
            "{\"error\": 429}",
            "is no response of the endpoints web service",
        ),
    ] {
        fs::write(&file, text)?;
        refused_at(&lab, &site, &["--list", &path], 4, &[words, &path])?;
    }
    fs::remove_file(&file)?;
    refused_at(
        &lab,
        &site,
        &["--list", &path],
        4,
        &["cannot read the list"],
    )?;
    Ok(())
}

fn second_controller() -> Result<()> {
    let lab = Lab::build()?;
    let config = CONFIG.replace("MODE", "route");
    let site = Site::new(&config)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    refused_at(&lab, &site, &[], 8, &["another controller (process"])?;
    // Other directories, but the same interface.
    refused(
        &lab,
        &config,
        &[],
        8,
        &["another Breakout controller", "lan"],
    )?;
    // Another interface, but the same tables and marks.
    lab.gateway
        .ip("link add lan2 type veth peer name lan2-peer")?;
    lab.gateway.ip("link set lan2 up")?;
    let other = config.replace("\"lan\"", "\"lan2\"");
    refused(
        &lab,
        &other,
        &[],
        8,
        &["rules for the tables from 5001", "[routing] table"],
    )?;
    // With numbers of its own it may.
    let numbers = "\n[routing]\nmark_mask = 0x0000ff00\nrule_priority = 5100\ntable = 6001\n";
    let other_site = Site::new(&format!("{other}{numbers}"))?;
    let other_daemon = Daemon::start(&other_site, &lab.gateway)?;
    other_daemon.stop()?;
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(status["egress"]["local"]["v4"]["up"] == true, "{status}");
    ensure!(lab.gateway.ip("rule show")?.contains("lookup 5001"));
    daemon.stop()?;
    Ok(())
}

fn foreign_xdp() -> Result<()> {
    let lab = Lab::build()?;
    // The XDP program of another controller, which has died, stands for anybody's.
    let redirect = CONFIG.replace("MODE", "redirect");
    let other = Site::new(&redirect)?;
    Daemon::start(&other, &lab.gateway)?.kill()?;
    refused(
        &lab,
        &redirect,
        &[],
        8,
        &[
            "another Breakout controller's program is attached to lan",
            "breakout unload",
        ],
    )?;
    let output = other.output(&lab.gateway, &["unload"])?;
    ensure!(output.status.success());
    Ok(())
}

fn not_root() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    run(std::process::Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(site.path()))?;
    let before = inventory(&lab)?;
    let binary = breakout_tests::daemon::binary()?;
    let public = site.path().join("breakout");
    fs::copy(binary, &public)?;
    let mut command = lab.gateway.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&public)
        .args(["run", "--config"])
        .arg(site.config());
    let output = command.output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(5),
        "{:?}: {message}",
        output.status
    );
    ensure!(
        message.contains("CAP_NET_ADMIN") && message.contains("sudo"),
        "{message}"
    );
    ensure!(inventory(&lab)? == before);
    Ok(())
}

fn nobody_there() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    for command in ["status", "stats", "reload"] {
        let output = site.output(&lab.gateway, &[command])?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(6), "{command}: {message}");
        ensure!(
            message.contains("no controller listens on"),
            "{command}: {message}"
        );
    }
    let question = ["explain", "52.98.1.1", "--proto", "tcp", "--port", "443"];
    let output = site.output(&lab.gateway, &question)?;
    ensure!(output.status.success());
    ensure!(String::from_utf8_lossy(&output.stderr).contains("this answer is offline"));
    ensure!(String::from_utf8_lossy(&output.stdout).contains("steer to egress \"local\""));
    let list = site.json(&lab.gateway, &["list", "show"])?;
    ensure!(
        list["endpoint_sets"]
            .as_array()
            .is_some_and(|sets| sets.len() == 10),
        "{list}"
    );
    let check = site.json(&lab.gateway, &["check"])?;
    ensure!(
        check["steered_sets"] == serde_json::json!([1, 11, 31]),
        "{check}"
    );
    Ok(())
}

/// A watched file of 57 MiB without a row of use: it is read once, beside everything else, and leaves hardly anything.
fn huge() -> Result<()> {
    let lab = Lab::build()?;
    let config = CONFIG
        .replace("MODE", "route")
        .replace("source = \"builtin\"", "source = \"list.json\"");
    let site = Site::new(&config)?;
    let mut text = "[null".to_owned();
    text += &",null".repeat(60_000);
    text += &" ".repeat(57 << 20);
    text.push(']');
    fs::write(site.path().join("list.json"), text)?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|daemon| daemon.log().contains("no usable endpoint set"))?;
    let put_aside = site.path().join("state/lists/Worldwide/unreadable");
    let before = fs::metadata(&put_aside)?;
    ensure!(
        before.len() <= 64 << 10,
        "{} bytes are put aside",
        before.len()
    );
    // It is looked at every second.
    std::thread::sleep(std::time::Duration::from_secs(3));
    ensure!(
        fs::metadata(&put_aside)?.modified()? == before.modified()?,
        "it was put aside again"
    );
    let status = site.json(&lab.gateway, &["status"])?;
    let error = status["follow"][0]["last_error"]
        .as_str()
        .unwrap_or_default();
    ensure!(error.contains("no usable endpoint set"), "{status}");
    let memory = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    ensure!(
        peak.is_some_and(|peak| peak < 250 << 10),
        "{peak:?} KiB at most"
    );
    daemon.stop()?;
    Ok(())
}
