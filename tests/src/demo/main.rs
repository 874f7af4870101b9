//! `cargo xtask demo`: real traffic through the real daemon, seen at its other end.

mod flows;
mod table;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::Flow;
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::{requirements, seen};
use clap::Parser;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use flows::{DemoFlow, WAYS};

/// Sends real traffic to Microsoft 365 addresses through Breakout, in network namespaces.
#[derive(Parser)]
struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Leave the lab up, with the controller running, and say how to enter it.
    #[arg(long)]
    keep: bool,
}

/// What was seen of one flow in one mode.
#[derive(Serialize)]
struct Observation {
    name: &'static str,
    #[serde(flatten)]
    flow: DemoFlow,
    mode: &'static str,
    expected: &'static str,
    /// Who answered, or what went wrong.
    came_out: String,
    /// Packets that arrived at the local internet link's other end, and at the WAN's.
    internet_packets: u64,
    wan_packets: u64,
    /// Packets that Breakout counted as steered and as passed.
    steered_packets: u64,
    passed_packets: u64,
    ok: bool,
}

/// Whether somebody wants the demo to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has SIGINT and SIGTERM noted instead of ending the process, so that the lab is taken down.
fn note_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt)) = (
                signal(SignalKind::terminate()),
                signal(SignalKind::interrupt()),
            ) else {
                return;
            };
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match demo(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<bool> {
    if let Some(missing) = requirements::missing() {
        bail!("cannot run: {missing}");
    }
    note_signals()?;
    let started = Instant::now();
    let flows = flows::all();
    let wanted: Vec<Flow> = flows.iter().map(|flow| flow.flow.clone()).collect();
    let mut lab = Lab::build().context("cannot build the lab")?;
    let mut site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let mut observations = Vec::new();
    {
        let _servers = lab.serve(&wanted)?;
        for mode in ["route", "redirect"] {
            site.configure(&CONFIG.replace("MODE", mode))?;
            let mut daemon = Daemon::start(&site, &lab.gateway)?;
            if mode == "redirect" {
                daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
            }
            for flow in &flows {
                if INTERRUPTED.load(Ordering::Relaxed) {
                    bail!("interrupted; the lab is taken down");
                }
                observations.push(observe(&lab, &site, mode, flow)?);
            }
            daemon.stop()?;
        }
    }
    let right = observations.iter().all(|observation| observation.ok);
    if arguments.json {
        let report = serde_json::json!({ "ok": right, "flows": observations });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        table::print(&observations, started.elapsed());
    }
    if arguments.keep {
        site.configure(&CONFIG.replace("MODE", "route"))?;
        let pid = Daemon::start(&site, &lab.gateway)?.leave();
        table::print_how_to_enter(&lab, &site, pid)?;
        lab.keep();
        site.keep();
    }
    Ok(right)
}

fn observe(lab: &Lab, site: &Site, mode: &'static str, flow: &DemoFlow) -> Result<Observation> {
    let one = std::slice::from_ref(&flow.flow);
    seen::watch(&lab.wan, one)?;
    seen::watch(&lab.internet, one)?;
    let before = counted(site, lab)?;
    let came_out = match flow.flow.talk(&lab.client) {
        Ok(identity) => identity,
        Err(error) => format!("{error:#}"),
    };
    let after = settled(site, lab, flow)?;
    let key = seen::key(&flow.flow);
    let arrived = |counts: HashMap<String, u64>| counts.get(&key).copied().unwrap_or(0);
    let internet_packets = arrived(seen::packets(&lab.internet)?);
    let wan_packets = arrived(seen::packets(&lab.wan)?);
    let steered_packets = after.0 - before.0;
    let passed_packets = after.1 - before.1;
    let expected = WAYS[usize::from(flow.steered)];
    let counts_agree = if flow.steered {
        steered_packets == internet_packets && wan_packets == 0
    } else {
        passed_packets == wan_packets && internet_packets == 0 && steered_packets == 0
    };
    Ok(Observation {
        name: flow.name,
        flow: flow.clone(),
        mode,
        expected,
        ok: came_out == expected && counts_agree,
        came_out,
        internet_packets,
        wan_packets,
        steered_packets,
        passed_packets,
    })
}

/// Packets that Breakout has counted: steered, and passed for a reason that TCP and UDP to unicast addresses can have.
/// Neighbour discovery and the like have other reasons.
fn counted(site: &Site, lab: &Lab) -> Result<(u64, u64)> {
    let stats = site.json(&lab.gateway, &["stats"])?;
    let mut sums = (0, 0);
    for reason in stats["reasons"].as_array().into_iter().flatten() {
        let packets = reason["packets"].as_u64().unwrap_or(0);
        match (reason["verdict"].as_str(), reason["reason"].as_str()) {
            (Some("steer"), _) => sums.0 += packets,
            (_, Some("no_prefix" | "no_port" | "policy")) => sums.1 += packets,
            _ => {}
        }
    }
    Ok(sums)
}

/// The counters once the connection's last packets have come through.
fn settled(site: &Site, lab: &Lab, flow: &DemoFlow) -> Result<(u64, u64)> {
    let end = if flow.steered {
        &lab.internet
    } else {
        &lab.wan
    };
    let mut last = (counted(site, lab)?, seen::packets(end)?);
    loop {
        std::thread::sleep(std::time::Duration::from_millis(30));
        let now = (counted(site, lab)?, seen::packets(end)?);
        if now == last {
            return Ok(now.0);
        }
        last = now;
    }
}
