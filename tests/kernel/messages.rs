//! What commands say when the machine, its files or its kernel is not as they need it, where that needs root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site, binary};
use breakout_tests::fake_service::Mood;
use breakout_tests::lab::{CONFIG, Lab};

use super::bad_input::{refused, refused_at};
use super::follow::{Office, list};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("places_that_cannot_be_used_are_named", places),
    ("a_socket_that_another_controller_has", socket),
    ("nft_that_is_missing_or_fails", without_nft),
    ("interfaces_that_cannot_have_programs", interfaces),
    ("unload_says_what_it_cannot_do", unload),
    ("a_pin_directory_that_is_none", pin_directory),
    ("commands_that_need_root_say_so", for_root),
    ("a_reload_that_would_need_a_restart", restart_needed),
    ("orders_about_lists_that_cannot_be_followed", orders),
];

/// Runs a command in the gateway that must end with this code, and say these words.
fn says(mut command: Command, code: i32, words: &[&str]) -> Result<()> {
    let output = command.output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code) && words.iter().all(|word| message.contains(word)),
        "{command:?} ended with {}, not with {code} and {words:?}: {message}",
        output.status
    );
    Ok(())
}

fn route() -> String {
    CONFIG.replace("MODE", "route")
}

/// A place with a whole configuration, to which nothing is added.
fn written(config: &str) -> Result<Site> {
    let site = Site::new("")?;
    fs::write(site.config(), config)?;
    Ok(site)
}

fn places() -> Result<()> {
    let lab = Lab::build()?;
    let state = |line: &str| {
        format!(
            "{}\n[control]\nsocket = \"control.sock\"\n[state]\n{line}\n",
            route()
        )
    };
    let socket = |line: &str| {
        format!(
            "{}\n[state]\ndirectory = \"state\"\n[control]\n{line}\n",
            route()
        )
    };
    let long = format!("socket = \"{}.sock\"", "x".repeat(120));
    for (config, words) in [
        (
            state("directory = \"file/state\""),
            "cannot make the state directory",
        ),
        (
            socket("socket = \"file/control.sock\""),
            "cannot make the directory",
        ),
        (socket("socket = \"file\""), "is there and is no socket"),
        (socket(&long), "cannot listen on the control socket"),
    ] {
        let site = written(&config)?;
        fs::write(site.path().join("file"), "")?;
        refused_at(&lab, &site, &[], 7, &[words])?;
    }
    for (name, words) in [
        ("lock/", "cannot open "),
        ("rulesets", "cannot make the directory"),
        ("lists", "cannot make the directory"),
    ] {
        let site =
            Site::new(&route().replace("source = \"builtin\"", "source = \"https://192.0.2.1\""))?;
        let place = site.path().join("state").join(name);
        let state = site.path().join("state");
        fs::create_dir(&state)?;
        // As the site's is, the directory is the controller's user's.
        let owner = fs::metadata(site.path())?;
        chown(&state, Some(owner.uid()), Some(owner.gid()))?;
        if name.ends_with('/') {
            fs::create_dir(place)?;
        } else {
            fs::write(place, "")?;
        }
        refused_at(&lab, &site, &[], 7, &[words, name.trim_end_matches('/')])?;
    }
    let metrics = format!("{}\n[metrics]\nlisten = \"192.0.2.1:9760\"\n", route());
    refused(
        &lab,
        &metrics,
        &[],
        7,
        &["[metrics] listen: cannot listen on 192.0.2.1:9760"],
    )?;
    Ok(())
}

fn socket() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&route())?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    lab.gateway
        .ip("link add lan2 type veth peer name lan2-peer")?;
    let numbers = "[routing]\nmark_mask = 0x0000ff00\nrule_priority = 5100\ntable = 6001\n";
    let control = format!(
        "[control]\nsocket = \"{}\"\n[state]\ndirectory = \"state\"\n",
        site.socket().display()
    );
    let other = written(&format!(
        "{}{numbers}{control}",
        route().replace("\"lan\"", "\"lan2\"")
    ))?;
    refused_at(
        &lab,
        &other,
        &[],
        8,
        &["another controller listens on ", "set [control] socket"],
    )?;
    daemon.stop()?;
    Ok(())
}

/// Where there is no nft, and where it says no.
fn without_nft() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&format!("{}masquerade = true\n", route()))?;
    let tools = site.path().join("tools");
    fs::create_dir(&tools)?;
    let with_tools = |command: &str| -> Result<Command> {
        let path = format!("PATH={}", tools.display());
        let mut program = lab.gateway.command("env");
        program.args([path.as_ref(), binary()?.as_os_str(), command.as_ref()]);
        program.arg("--config").arg(site.config());
        Ok(program)
    };
    let missing = &[
        "cannot make the nftables table inet ",
        "install nftables if it is missing, or set masquerade and skip_dnat to false",
        "cannot run nft",
    ];
    says(with_tools("run")?, 7, missing)?;
    let nft = tools.join("nft");
    fs::write(&nft, "#!/bin/sh\necho 'no table for you' >&2\nexit 1\n")?;
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?;
    says(with_tools("run")?, 7, &["nft: no table for you"])?;
    // What cannot be removed is said, and what is left can be removed later.
    Daemon::start(&site, &lab.gateway)?.kill()?;
    says(
        with_tools("unload")?,
        1,
        &["cannot remove the nftables table inet "],
    )?;
    says(site.command(&lab.gateway, &["unload"])?, 0, &[])?;
    let tables = lab.gateway.exec("nft list tables")?;
    ensure!(tables.trim().is_empty(), "{tables}");
    Ok(())
}

fn interfaces() -> Result<()> {
    let lab = Lab::build()?;
    let loopback = route().replace("\"lan\"", "\"lo\"");
    let problem = "[[lan]] lo is no Ethernet, nor a tunnel of IP packets";
    refused(&lab, &loopback, &[], 7, &[problem])?;
    Ok(())
}

fn unload() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&route())?;
    Daemon::start(&site, &lab.gateway)?.kill()?;
    let elsewhere = site.command(&lab.client, &["unload"])?;
    says(
        elsewhere,
        7,
        &[
            "the controller ran in another network namespace",
            "ip netns exec NAME breakout unload",
        ],
    )?;
    fs::remove_file(site.socket())?;
    fs::create_dir(site.socket())?;
    says(
        site.command(&lab.gateway, &["unload"])?,
        1,
        &["cannot remove ", "control.sock"],
    )?;
    fs::remove_dir(site.socket())?;
    says(
        site.command(&lab.gateway, &["unload"])?,
        0,
        &["nothing is installed"],
    )?;
    Ok(())
}

fn pin_directory() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&route())?;
    for (place, words) in [
        (
            "/tmp",
            "BREAKOUT_PINS is /tmp, which is no directory of a BPF file system",
        ),
        ("/nonexistent", "which is no directory of a BPF file system"),
    ] {
        let mut command = site.command(&lab.gateway, &["run"])?;
        command.env("BREAKOUT_PINS", place);
        says(command, 7, &[words])?;
    }
    Ok(())
}

/// A program of an account that is not root's.
fn as_nobody(lab: &Lab, site: &Site, arguments: &[&str]) -> Result<Command> {
    let public = site.path().join("breakout");
    fs::copy(binary()?, &public)?;
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(site.config(), fs::Permissions::from_mode(0o644))?;
    let mut command = lab.gateway.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&public)
        .args(arguments)
        .arg("--config")
        .arg(site.config());
    Ok(command)
}

fn for_root() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&route())?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    says(
        as_nobody(&lab, &site, &["status"])?,
        5,
        &["the control socket ", "is for root only; run this as root"],
    )?;
    daemon.stop()?;
    let capture = site.path().join("a.pcap");
    let capture = capture.to_string_lossy();
    let made = site.output(
        &lab.gateway,
        &["lab", "capture", "--output", &capture, "--packets", "2000"],
    )?;
    ensure!(made.status.success());
    fs::set_permissions(Path::new(&*capture), fs::Permissions::from_mode(0o644))?;
    let words = &["the packets go through the program in this kernel; --pure needs no privileges"];
    says(as_nobody(&lab, &site, &["replay", &capture])?, 5, words)?;
    says(
        as_nobody(&lab, &site, &["replay", "--pure", &capture])?,
        0,
        &[],
    )?;
    says(
        as_nobody(&lab, &site, &["run"])?,
        5,
        &["this needs root, or the capability CAP_"],
    )?;
    Ok(())
}

fn restart_needed() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&route())?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    site.configure(&format!("{}[routing]\ntable = 7001\n", route()))?;
    let words = &[
        "[state], [control], [routing] and [metrics] cannot change in a reload; restart the controller for that",
    ];
    says(site.command(&lab.gateway, &["reload"])?, 3, words)?;
    for (order, words) in [
        (
            &["list", "rollback"][..],
            "there is nothing to accept or to go back to",
        ),
        (
            &["list", "fetch"],
            "it is not fetched. Set [list] source to follow it",
        ),
    ] {
        says(
            site.command(&lab.gateway, order)?,
            4,
            &["the list is used as it is, from", words],
        )?;
    }
    daemon.stop()?;
    Ok(())
}

fn orders() -> Result<()> {
    let office = Office::new("")?;
    let (lab, site) = (&office.lab, &office.site);
    let order = |arguments: &[&str]| site.command(&lab.gateway, arguments);
    office
        .service
        .publish("2026070100", list(&["40.96.0.0/13"]));
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(|daemon| daemon.log().contains("2026070100 is refused"))?;
    for (arguments, words) in [
        (
            &["list", "rollback"][..],
            "there is no earlier ruleset to go back to",
        ),
        (
            &["list", "rollback", "2026070100"],
            "was refused; to use it: breakout list accept 2026070100",
        ),
        (
            &["list", "accept", "China/2026070100"],
            "no instance in [list] has a list China/2026070100",
        ),
    ] {
        says(order(arguments)?, 4, &[words])?;
    }
    daemon.stop()?;
    // A certificate that is missing keeps the list that is there in force, and is said whenever somebody asks.
    fs::rename(site.path().join("ca.pem"), site.path().join("other.pem"))?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    says(
        order(&["list", "fetch"])?,
        3,
        &["the lists are not followed:", "cannot read [list] ca_file"],
    )?;
    daemon.stop()?;
    fs::rename(site.path().join("other.pem"), site.path().join("ca.pem"))?;
    office.service.state().mood = Mood::Status(429, None);
    says(
        order(&["list", "fetch"])?,
        11,
        &["not every list could be fetched and used"],
    )?;
    says(
        order(&["list", "fetch"])?,
        11,
        &["has asked to be left alone until"],
    )?;
    Ok(())
}
