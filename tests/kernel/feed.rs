//! What is fetched: by many at once, from a source that changes, again and again; and what is not applied.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::fake_service::Mood;
use serde_json::{Value, json};

use crate::Test;
use crate::follow::{Office, list};
use crate::orders::{LENIENT, begin, order, refuse};

pub(crate) const TESTS: &[Test] = &[
    ("many_who_fetch_at_once_ask_once", many_fetch),
    (
        "a_list_that_cannot_be_loaded_is_not_applied_offline",
        offline,
    ),
    ("two_refusals_that_agree_are_a_louder_alert", two_refusals),
    ("a_rollback_goes_back_after_a_flap", flap),
    ("a_reload_ends_a_fetch_from_the_former_source", abandoned),
];

fn many_fetch() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    begin(&office)?;
    let before = office.service.requests("/version/");
    let children: Vec<_> = (0..100)
        .map(|_| {
            let mut command: Command = office
                .site
                .command(&office.lab.gateway, &["list", "fetch"])?;
            Ok(command.stdout(Stdio::null()).spawn()?)
        })
        .collect::<Result<_>>()?;
    for mut child in children {
        ensure!(child.wait()?.success());
    }
    // Those who come while it is asked share the answer; starting a hundred processes takes longer than that.
    let asked = office.service.requests("/version/") - before;
    println!("100 fetches have asked {asked} times");
    ensure!(asked < 60, "{asked}");
    daemon.stop()?;
    Ok(())
}

fn offline() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let sets: Vec<Value> = (1..=4200)
        .map(|id: u32| {
            json!({"id": 10_000 + id, "serviceArea": "Skype", "ips": [format!("52.{}.{}.0/24", 112 + id / 250, id % 250)],
                   "tcpPorts": "443", "category": "Optimize", "required": true})
        })
        .collect();
    office
        .service
        .publish("2026070100", Value::from(sets).to_string());
    let fetched = office.fetch()?;
    ensure!(fetched["outcome"] == "refused", "{fetched}");
    let why = fetched["why"].as_str().unwrap_or_default();
    ensure!(why.contains("it cannot be loaded"), "{why}");
    // So a controller starts, with what was there before.
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    ensure!(office.version()? != "2026070100");
    daemon.stop()?;
    // What is refused is not kept for ever.
    for number in 0..30 {
        refuse(&office, &format!("20260801{number:02}"))?;
    }
    let kept = office
        .site
        .json(&office.lab.gateway, &["list", "history"])?;
    ensure!(
        kept.as_array().is_some_and(|kept| kept.len() <= 21),
        "{kept}"
    );
    Ok(())
}

fn two_refusals() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    begin(&office)?;
    let alerts = || -> Result<String> {
        Ok(office.site.json(&office.lab.gateway, &["status"])?["alerts"].to_string())
    };
    refuse(&office, "2026080100")?;
    ensure!(!alerts()?.contains("IN A ROW"), "{}", alerts()?);
    refuse(&office, "2026090100")?;
    let text = alerts()?;
    ensure!(text.contains("TWO LISTS IN A ROW WERE REFUSED"), "{text}");
    ensure!(
        text.contains("breakout list accept Worldwide/2026090100"),
        "{text}"
    );
    // One that no longer stands out beside the list in force is judged again, and applied.
    order(&office, &["list", "accept", "Worldwide/2026090100"])?;
    ensure!(office.version()? == "2026090100");
    // An older one is accepted for good, not until the next look.
    order(&office, &["list", "accept", "2026080100"])?;
    office.fetch()?;
    ensure!(office.version()? == "2026080100");
    order(&office, &["list", "release"])?;
    ensure!(office.version()? == "2026090100");
    daemon.stop()?;
    Ok(())
}

/// A mirror that publishes an older list for a moment.
fn flap() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    begin(&office)?;
    let newer = list(&["52.112.0.0/14"]);
    for (version, body) in [
        ("2026080100", newer.clone()),
        ("2026070100", list(&["40.96.0.0/15"])),
        ("2026080100", newer),
    ] {
        office.service.publish(version, body);
        office.fetch()?;
    }
    ensure!(office.version()? == "2026080100");
    order(&office, &["list", "rollback"])?;
    ensure!(office.version()? == "2026070100");
    daemon.stop()?;
    Ok(())
}

fn abandoned() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    begin(&office)?;
    office.service.state().mood = Mood::Hangs;
    let before = office.service.requests("/version/");
    let mut fetch = office
        .site
        .command(&office.lab.gateway, &["list", "fetch"])?;
    let fetch = fetch.stderr(Stdio::piped()).spawn()?;
    let asked = Instant::now();
    while office.service.requests("/version/") == before {
        ensure!(
            asked.elapsed() < Duration::from_secs(10),
            "the service is not asked"
        );
        thread::sleep(Duration::from_millis(10));
    }
    let text = fs::read_to_string(office.site.config())?;
    fs::write(
        office.site.config(),
        text.replace("[list]\n", "[list]\ninterval = \"50m\"\n"),
    )?;
    order(&office, &["reload"])?;
    let output = fetch.wait_with_output()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && message.contains("[list] has changed"),
        "{message}"
    );
    ensure!(office.version()? == "2026070100");
    daemon.stop()?;
    Ok(())
}
