//! `breakout status`.

use anyhow::Result;

use super::output::{bytes, print_json};
use crate::control::{Client, EgressStatus, Status, WayOut};

pub(super) async fn status(client: &mut Client, json: bool) -> Result<()> {
    let status = client.status().await?;
    if json {
        return print_json(&status);
    }
    print(&status);
    Ok(())
}

fn print(status: &Status) {
    println!(
        "breakout {} (process {}), up {} s{}, configuration {}",
        status.version,
        status.pid,
        status.uptime_seconds,
        if status.adopted {
            ", took over from an earlier controller"
        } else {
            ""
        },
        status.config
    );
    let ruleset = &status.ruleset;
    println!(
        "ruleset   generation {}, {} steered sets with {} IPv4 and {} IPv6 prefixes, table {}, hash {}",
        ruleset.generation,
        ruleset.steered_sets,
        ruleset.steered_v4,
        ruleset.steered_v6,
        bytes(ruleset.table_bytes),
        ruleset.hash.get(..12).unwrap_or(&ruleset.hash),
    );
    println!(
        "list      {} version {} from {}, {} sets, {} problems",
        status.list.instance,
        status.list.version.as_deref().unwrap_or("unknown"),
        status.list.source,
        status.list.sets,
        status.list.problems
    );
    for lan in &status.lan {
        let xdp = lan.xdp.as_ref().map(|mode| format!(", XDP {mode}"));
        println!(
            "lan       {}: TC ingress{}",
            lan.interface,
            xdp.unwrap_or_default()
        );
        if let Some(problem) = &lan.problem {
            println!("          DOWN: {problem}");
        }
    }
    for (name, egress) in &status.egress {
        print_egress(name, egress);
    }
}

fn print_egress(name: &str, egress: &EgressStatus) {
    println!(
        "egress    {name}: {} on {}, mark {}, table {}",
        egress.mode, egress.interface, egress.mark, egress.table
    );
    for (family, way) in [("IPv4", &egress.v4), ("IPv6", &egress.v6)] {
        println!("          {family} {}", way_out(way));
    }
    if let Some(reason) = &egress.by_kernel {
        println!("          {reason}");
    }
    if let Some(problem) = &egress.problem {
        println!("          DOWN: {problem}");
    }
}

fn way_out(way: &WayOut) -> String {
    match (way.up, &way.gateway, &way.mac) {
        (false, _, _) => "no way out; packets take the ordinary path".to_owned(),
        (true, None, _) => "up, point to point".to_owned(),
        (true, Some(gateway), None) => format!("up, via {gateway}"),
        (true, Some(gateway), Some(mac)) => format!("up, via {gateway} at {mac}"),
    }
}
