//! The verdicts that must hold, from the live program, the pure function and `explain` alike.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use breakout::explain::Query;
use breakout::list::Instance;
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::testrun::TestBench;
use serde_json::Value;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("golden_verdicts_by_the_program", by_the_program),
    ("golden_verdicts_by_explain", by_explain),
    (
        "golden_verdicts_by_the_published_list",
        by_the_published_list,
    ),
];

/// Protocol, port, destination, endpoint set that is steered.
const GOLDEN: &[(&str, u16, &str, Option<u32>)] = &[
    ("tcp", 443, "52.98.1.1", Some(1)),
    ("tcp", 993, "52.98.1.1", None),
    ("udp", 443, "52.98.1.1", Some(1)),
    ("udp", 3478, "52.113.0.1", Some(11)),
    ("tcp", 443, "52.113.0.1", None),
    ("tcp", 443, "52.100.0.1", None),
    ("udp", 3482, "52.113.0.1", None),
    ("udp", 3478, "13.107.64.1", None),
    ("tcp", 443, "20.190.128.1", None),
    ("udp", 3479, "2603:1063:3ff:ffff::1", Some(11)),
    ("udp", 3479, "2603:1063:400::1", None),
];

/// Feeds a packet for each verdict to the loaded programs.
fn by_the_program() -> Result<()> {
    let mut bench = TestBench::new(Instance::Worldwide)?;
    for (proto, port, destination, set) in GOLDEN {
        let query = Query {
            destination: destination.parse()?,
            proto: serde_json::from_value(Value::from(*proto))?,
            port: *port,
        };
        for program in ["tc", "xdp"] {
            let outcome = bench.run(program, &query)?;
            ensure!(
                outcome.set.filter(|_| outcome.steered) == *set && outcome.steered == set.is_some(),
                "{program}: {proto} {port} {destination}: {outcome:?}, not {set:?}"
            );
        }
    }
    Ok(())
}

fn by_explain() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    for (proto, port, destination, set) in GOLDEN {
        let port = port.to_string();
        let question = ["explain", destination, "--proto", proto, "--port", &port];
        let answer = site.json(&lab.gateway, &question)?;
        ensure!(answer["source"] == "live", "{answer}");
        check(&answer, *set).with_context(|| format!("{question:?}"))?;
    }
    daemon.stop()?;
    Ok(())
}

/// The list as Microsoft sent it in November 2025, where the test finds it.
fn by_the_published_list() -> Result<()> {
    let list =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/endpoints/worldwide.2025-11.json");
    if !list.is_file() {
        println!("skipped: the published list is not at {}", list.display());
        return Ok(());
    }
    let lab = Lab::build()?;
    let site = Site::new(CONFIG)?;
    let list = list.to_string_lossy().into_owned();
    for (proto, port, destination, set) in GOLDEN {
        let port = port.to_string();
        let question = [
            "explain",
            destination,
            "--proto",
            proto,
            "--port",
            &port,
            "--list",
            &list,
        ];
        // The site's configuration does not parse: with --list none is needed, so none is given.
        let output = lab
            .gateway
            .command(&breakout_tests::daemon::binary()?.to_string_lossy())
            .args(question)
            .arg("--json")
            .output()?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(answer["source"] == "offline", "{answer}");
        check(&answer, *set).with_context(|| format!("{question:?}"))?;
    }
    drop(site);
    Ok(())
}

fn check(answer: &Value, steered_set: Option<u32>) -> Result<()> {
    match steered_set {
        Some(id) => {
            ensure!(answer["verdict"] == "steer", "{answer}");
            ensure!(answer["egress"] == "local", "{answer}");
            ensure!(answer["endpoint_set"]["id"] == id, "{answer}");
            ensure!(
                answer["endpoint_set"]["instance"] == "Worldwide",
                "{answer}"
            );
            ensure!(answer["endpoint_set"]["category"] == "Optimize", "{answer}");
            ensure!(answer["prefix"].is_string(), "{answer}");
        }
        None => {
            ensure!(answer["verdict"] == "pass", "{answer}");
            ensure!(answer["egress"].is_null(), "{answer}");
        }
    }
    Ok(())
}
