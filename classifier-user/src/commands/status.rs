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
        out!("!! {alert}");
    }
    out!(
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
    out!(
        "ruleset   generation {}, {} steered sets with {} IPv4 and {} IPv6 prefixes, table {}, hash {}",
        ruleset.generation,
        ruleset.steered_sets,
        ruleset.steered_v4,
        ruleset.steered_v6,
        bytes(ruleset.table_bytes),
        ruleset.hash.get(..12).unwrap_or(&ruleset.hash),
    );
    for list in &status.lists {
        out!(
            "list      {} version {} from {}, {} sets, {} problems",
            list.instance,
            list.version.as_deref().unwrap_or("unknown"),
            list.source,
            list.sets,
            list.problems
        );
        if list.pending + list.withdrawn > 0 {
            out!(
                "          {} additions pending, {} parts withdrawn and in their grace time",
                list.pending,
                list.withdrawn
            );
        }
        let follow = status.follow.iter();
        follow
            .filter(|follow| follow.instance == list.instance)
            .for_each(print_follow);
    }
    for lan in &status.lan {
        let xdp = lan.xdp.as_ref().map(|mode| format!(", XDP {mode}"));
        out!(
            "lan       {}: TC ingress{}",
            lan.interface,
            xdp.unwrap_or_default()
        );
        if let Some(why) = &lan.why_no_xdp {
            out!("          no XDP: {why}");
        }
        if let Some(problem) = &lan.problem {
            out!("          DOWN: {problem}");
        }
    }
    for (name, egress) in &status.egress {
        print_egress(name, egress);
    }
    let reasons = status.reasons.iter();
    let reasons: Vec<String> = reasons
        .map(|reason| format!("{} {}", reason.reason, reason.count.packets))
        .collect();
    if !reasons.is_empty() {
        out!("packets   {}", reasons.join(", "));
    }
}

fn print_follow(follow: &FollowStatus) {
    let age = follow
        .age_seconds
        .map(|age| for_people(Duration::from_secs(age)));
    out!(
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
        out!("          failed {} times: {error}", follow.failures);
    }
    if let Some(waiting) = &follow.waiting {
        out!("          {waiting} waits; see: breakout plan");
    }
    for damaged in &follow.damaged {
        out!("          not used: {damaged}");
    }
}

fn print_egress(name: &str, egress: &EgressStatus) {
    let routed = match (&egress.mark, egress.table) {
        (Some(mark), Some(table)) => format!(", mark {mark}, table {table}"),
        _ => String::new(),
    };
    out!(
        "egress    {name}: {} on {}{}{routed}",
        egress.mode,
        egress.interface,
        match (egress.masquerade, egress.public_address) {
            (true, Some(address)) => format!(", masquerade as {address}"),
            (true, None) => ", masquerade".to_owned(),
            (false, _) => String::new(),
        },
    );
    for (family, way) in [("IPv4", &egress.v4), ("IPv6", &egress.v6)] {
        print_way(family, way);
    }
    match (&egress.hook, &egress.why_tc) {
        (Some(hook), Some(why)) => out!("          forwarded in {hook}: {why}"),
        (Some(hook), None) => out!("          forwarded in {hook}"),
        (None, _) => {}
    }
}

fn print_way(family: &str, way: &WayOut) {
    let next_hop = match (&way.gateway, &way.mac) {
        (None, _) => String::new(),
        (Some(gateway), None) => format!(", via {gateway}"),
        (Some(gateway), Some(mac)) => format!(", via {gateway} at {mac}"),
    };
    let Some(standing) = &way.standing else {
        out!("          {family} not there{next_hop}");
        return;
    };
    out!(
        "          {family} {} since {}, score {}{next_hop}",
        standing.state.name(),
        standing.since,
        standing.score
    );
    if let Some(measure) = &standing.measure {
        let latency = measure
            .latency_ms
            .map(|time| format!(", latency {time:.0} ms"));
        out!(
            "               loss {:.1} %{}",
            measure.loss * 100.0,
            latency.unwrap_or_default()
        );
        for target in measure.targets.iter().filter(|target| !target.answers) {
            let why = target.last_error.as_deref().unwrap_or("not tried yet");
            out!("               {} does not answer: {why}", target.target);
        }
    }
    if let Some(why) = &standing.why {
        out!("               {why}");
    }
}
