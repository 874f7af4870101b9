//! `breakout events` and `breakout flows`.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::arguments::ConfigArgument;
use super::connect;
use super::output::{print_json, table};
use crate::control::{Client, EventsQuery, FlowsQuery};
use crate::events::Event;
use crate::timestamp::for_people;

/// Interval between looks for events with `--follow`.
const TURN: Duration = Duration::from_millis(300);
/// Interval between looks for another controller when there is none any more.
const RESTART: Duration = Duration::from_secs(1);

pub(super) async fn events(
    config: &ConfigArgument,
    json: bool,
    follow: bool,
    limit: Option<usize>,
) -> Result<()> {
    let mut client = connect(config).await?;
    let mut report = client.events(EventsQuery { after: 0 }).await?;
    let skipped = report
        .events
        .len()
        .saturating_sub(limit.unwrap_or(usize::MAX));
    let mut last = report.events.last().map_or(0, |event| event.number);
    report.events.drain(..skipped);
    if json && !follow {
        return print_json(&report);
    }
    loop {
        for event in &report.events {
            if json {
                out!("{}", serde_json::to_string(event)?);
            } else {
                print(event);
            }
            last = event.number;
        }
        if !follow {
            return Ok(());
        }
        report = loop {
            sleep(TURN).await;
            match client.events(EventsQuery { after: last }).await {
                Ok(report) => break report,
                Err(error) => {
                    eprintln!("note: {error}; waiting for the next controller");
                    client = next_controller(config).await;
                }
            }
        };
    }
}

/// Events go on behind a restart.
async fn next_controller(config: &ConfigArgument) -> Client {
    loop {
        sleep(RESTART).await;
        if let Ok(client) = connect(config).await {
            return client;
        }
    }
}

fn print(event: &Event) {
    let why = if event.why.is_empty() {
        String::new()
    } else {
        format!(": {}", event.why)
    };
    out!(
        "{}  {:<8} {:<20} {}{why}",
        event.at,
        event.kind,
        event.subject,
        event.what
    );
}

pub(super) async fn flows(client: &mut Client, json: bool, limit: usize) -> Result<()> {
    let report = client.flows(FlowsQuery { limit }).await?;
    if json {
        return print_json(&report);
    }
    if !report.enabled {
        out!("flows are not pinned ([pinning] enabled = false)");
        return Ok(());
    }
    out!(
        "{} flows and the media of {} clients are pinned, of at most {}",
        report.pinned,
        report.clients,
        report.size
    );
    let has_public = report.flows.iter().any(|flow| flow.public.is_some());
    let mut titles = vec![
        "proto",
        "client",
        "destination",
        "way",
        "set",
        "age",
        "idle",
    ];
    if has_public {
        titles.push("public");
    }
    let mut rows = table(&titles, &[5, 6]);
    for flow in &report.flows {
        let mut row = vec![
            flow.proto.clone(),
            flow.source.to_string(),
            flow.destination.to_string(),
            flow.egress
                .clone()
                .unwrap_or_else(|| "(ordinary path)".to_owned()),
            flow.endpoint_set.clone().unwrap_or_else(|| "-".to_owned()),
            for_people(Duration::from_secs(flow.age_seconds.into())),
            for_people(Duration::from_secs(flow.idle_seconds.into())),
        ];
        if has_public {
            let public = flow.public.map(|public| public.to_string());
            row.push(public.unwrap_or_else(|| "-".to_owned()));
        }
        rows.add_row(row);
    }
    out!("{rows}");
    Ok(())
}
