//! `breakout events` and `breakout flows`.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::output::{print_json, table};
use crate::control::{Client, EventsQuery, FlowsQuery};
use crate::events::Event;
use crate::timestamp::for_people;

/// How often it is looked for events with `--follow`.
const TURN: Duration = Duration::from_millis(300);

pub(super) async fn events(
    client: &mut Client,
    json: bool,
    follow: bool,
    limit: Option<usize>,
) -> Result<()> {
    let mut report = client.events(EventsQuery { after: 0 }).await?;
    let skipped = report
        .events
        .len()
        .saturating_sub(limit.unwrap_or(usize::MAX));
    report.events.drain(..skipped);
    if json && !follow {
        return print_json(&report);
    }
    let mut last = 0;
    loop {
        for event in &report.events {
            if json {
                println!("{}", serde_json::to_string(event)?);
            } else {
                print(event);
            }
            last = event.number;
        }
        if !follow {
            return Ok(());
        }
        sleep(TURN).await;
        report = client.events(EventsQuery { after: last }).await?;
    }
}

fn print(event: &Event) {
    let why = if event.why.is_empty() {
        String::new()
    } else {
        format!(": {}", event.why)
    };
    println!(
        "{}  {:<8} {:<20} {}{why}",
        event.at, event.kind, event.subject, event.what
    );
}

pub(super) async fn flows(client: &mut Client, json: bool, limit: usize) -> Result<()> {
    let report = client.flows(FlowsQuery { limit }).await?;
    if json {
        return print_json(&report);
    }
    if !report.enabled {
        println!("flows are not pinned ([pinning] enabled = false)");
        return Ok(());
    }
    println!(
        "{} flows are pinned, of at most {}",
        report.pinned, report.size
    );
    let mut rows = table(
        &[
            "proto",
            "client",
            "destination",
            "way",
            "set",
            "age",
            "idle",
        ],
        &[5, 6],
    );
    for flow in &report.flows {
        rows.add_row([
            flow.proto.clone(),
            flow.source.to_string(),
            flow.destination.to_string(),
            flow.egress
                .clone()
                .unwrap_or_else(|| "(ordinary path)".to_owned()),
            flow.endpoint_set.clone().unwrap_or_else(|| "-".to_owned()),
            for_people(Duration::from_secs(flow.age_seconds.into())),
            for_people(Duration::from_secs(flow.idle_seconds.into())),
        ]);
    }
    println!("{rows}");
    Ok(())
}
