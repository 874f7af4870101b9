//! The verdicts that must hold, from the live program, the pure function and `explain` alike.

use anyhow::{Context, Result, ensure};
use breakout::explain::Query;
use breakout::list::Instance;
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::golden::GOLDEN;
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::testrun::TestBench;
use serde_json::Value;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("golden_verdicts_by_the_program", by_the_program),
    ("golden_verdicts_by_explain", by_explain),
];

/// Feeds a packet for each verdict to the loaded programs.
fn by_the_program() -> Result<()> {
    let mut bench = TestBench::new(Instance::Worldwide)?;
    for (proto, port, destination, set) in GOLDEN {
        let query = Query::new(
            destination.parse()?,
            serde_json::from_value(Value::from(*proto))?,
            *port,
        );
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
