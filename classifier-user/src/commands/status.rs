//! `breakout status`.

use std::time::Duration;

use anyhow::{Result, anyhow};

use super::output::{bytes, print_json};
use crate::control::{Client, EgressStatus, FollowStatus, Status, WayOut};
use crate::exit::{Code, coded};
use crate::timestamp::for_people;

pub(super) async fn status(client: &mut Client, json: bool, check: bool) -> Result<()> {
    let status = client.status().await?;
    if json {
        print_json(&status)?;
    } else {
        print(&status);
    }
    match status.alerts.as_slice() {
        [first, ..] if check => Err(coded(anyhow!("{first}"), Code::Attention)),
        _ => Ok(()),
    }
}

fn print(status: &Status) {
    for alert in &status.alerts {
        println!("!! {alert}");
    }
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
    for list in &status.lists {
        println!(
            "list      {} version {} from {}, {} sets, {} problems",
            list.instance,
            list.version.as_deref().unwrap_or("unknown"),
            list.source,
            list.sets,
            list.problems
        );
        if list.pending + list.withdrawn > 0 {
            println!(
                "          {} additions pending, {} parts withdrawn and in their grace time",
                list.pending, list.withdrawn
            );
        }
        let follow = status.follow.iter();
        follow
            .filter(|follow| follow.instance == list.instance)
            .for_each(print_follow);
    }
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

fn print_follow(follow: &FollowStatus) {
    let age = follow
        .age_seconds
        .map(|age| for_people(Duration::from_secs(age)));
    println!(
        "          known to be the newest {}, next look {}",
        match (follow.last_success, age) {
            (Some(_), Some(age)) => format!("{age} ago"),
            _ => "never".to_owned(),
        },
        follow
            .next
            .map_or("now".to_owned(), |next| format!("at {next}")),
    );
    if let Some(error) = &follow.last_error {
        println!("          failed {} times: {error}", follow.failures);
    }
    if let Some(waiting) = &follow.waiting {
        println!("          {waiting} waits; see: breakout plan");
    }
    for damaged in &follow.damaged {
        println!("          not used: {damaged}");
    }
}

fn print_egress(name: &str, egress: &EgressStatus) {
    println!(
        "egress    {name}: {} on {}{}, mark {}, table {}",
        egress.mode,
        egress.interface,
        if egress.masquerade {
            ", masquerade"
        } else {
            ""
        },
        egress.mark,
        egress.table
    );
    for (family, way) in [("IPv4", &egress.v4), ("IPv6", &egress.v6)] {
        print_way(family, way);
    }
    if let Some(reason) = &egress.by_kernel {
        println!("          {reason}");
    }
}

fn print_way(family: &str, way: &WayOut) {
    let next_hop = match (&way.gateway, &way.mac) {
        (None, _) => String::new(),
        (Some(gateway), None) => format!(", via {gateway}"),
        (Some(gateway), Some(mac)) => format!(", via {gateway} at {mac}"),
    };
    let Some(standing) = &way.standing else {
        println!("          {family} not looked at yet{next_hop}");
        return;
    };
    println!(
        "          {family} {} since {}, score {}{next_hop}",
        standing.state.name(),
        standing.since,
        standing.score
    );
    if let Some(measure) = &standing.measure {
        let latency = measure
            .latency_ms
            .map(|time| format!(", latency {time:.0} ms"));
        println!(
            "               loss {:.1} %{}",
            measure.loss * 100.0,
            latency.unwrap_or_default()
        );
        for target in measure.targets.iter().filter(|target| !target.answers) {
            let why = target.last_error.as_deref().unwrap_or("not tried yet");
            println!("               {} does not answer: {why}", target.target);
        }
    }
    if let Some(why) = &standing.why {
        println!("               {why}");
    }
}
