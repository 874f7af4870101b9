//! A thousand versions of growing strangeness, published while traffic runs.

use std::fs;

use anyhow::{Context, Result, ensure};
use breakout::list::{Instance, parse};
use breakout_tests::fake_service::Mood;
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::rulesets::by_default;
use fastrand::Rng;
use serde_json::{Value, json};

use crate::follow::Office;
use crate::traffic::{Expected, under_traffic};
use crate::{Test, setting};

pub(crate) const TESTS: &[Test] = &[("a_thousand_versions_of_growing_strangeness", thousand)];

/// Versions, unless BREAKOUT_TEST_SWITCHES says how many.
const VERSIONS: usize = 1000;

/// What is published, and what should become of it.
struct Published {
    body: String,
    mood: Mood,
    is_good: bool,
    /// Which of the changes below it is.
    kind: u32,
}

fn thousand() -> Result<()> {
    let versions = setting("BREAKOUT_TEST_SWITCHES", VERSIONS);
    let seed = Rng::new().u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let office = Office::new("grace = \"0s\"\nmax_removed = \"60 %\"\nkeep = 5\n")?;
    // The first list is smaller than the built-in one, which nobody minds here.
    let first = rows(&mut rng, 30).to_string();
    let is_kept = office.site.path().join("state/lists/Worldwide");
    office.service.publish("2026010100", first.clone());
    let sentinels = [
        ("40.96.0.1", Expected::Internet),
        ("2603:1006::1", Expected::Internet),
        ("42.0.0.1", Expected::Wan),
        ("2a00::1", Expected::Wan),
    ]
    .map(|(address, way)| (Flow::new(Transport::Udp, address, 443), way));
    office.fetch()?;
    office
        .site
        .output(&office.lab.gateway, &["list", "history"])?;
    let (lab, site) = (&office.lab, &office.site);
    let mut applied = 0;
    under_traffic(lab, site, &sentinels, |_| {
        site.json(&lab.gateway, &["list", "accept", "2026010100"])?;
        let mut in_force = first;
        let mut early = 0;
        let versions = u32::try_from(versions)?;
        for number in 1..=versions {
            let published = next(&mut rng, &in_force, number, versions);
            // Ten digits, each later than the one before.
            office.service.publish(
                &format!("{}", 2_026_010_100 + number),
                published.body.clone(),
            );
            office.service.state().endpoints_mood = Some(published.mood.clone());
            let fetched = office.fetch()?;
            let is_applied = fetched["outcome"] == "applied";
            ensure!(
                is_applied == published.is_good,
                "{number}, kind {}: {fetched}",
                published.kind
            );
            if is_applied {
                in_force = published.body;
                applied += 1;
            }
            let status = site.json(&lab.gateway, &["status"])?;
            let expected = parse(in_force.as_bytes(), Instance::Worldwide, "expected")?;
            let expected = by_default(&expected)?.hash();
            ensure!(status["ruleset"]["hash"] == *expected, "{number}: {status}");
            if number == versions.div_ceil(5) {
                early = memory(&status)?;
            } else if number == versions {
                let late = memory(&status)?;
                println!("memory {early} KiB after a fifth, {late} KiB in the end");
                ensure!(
                    late < early + 8192,
                    "the controller grew from {early} to {late} KiB"
                );
            }
        }
        Ok(())
    })?;
    println!("{versions} versions, {applied} applied");
    ensure!(applied > versions / 5 && (applied < versions || versions < 100));
    let files = fs::read_dir(is_kept)?.count();
    ensure!(files < 20, "{files} files are kept");
    Ok(())
}

/// The controller's resident memory in KiB.
fn memory(status: &Value) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{}/status", status["pid"]))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("a process has memory")?.parse()?)
}

/// Rows with the sentinels in Optimize, and other sets.
fn rows(rng: &mut Rng, count: u32) -> Value {
    let mut rows = vec![
        json!({"id": 1, "serviceArea": "Exchange", "ips": ["40.96.0.0/13", "2603:1006::/40"], "tcpPorts": "80,443",
               "udpPorts": "443", "category": "Optimize"}),
    ];
    rows.extend((2..count).map(|id| row(rng, id)));
    rows.into()
}

fn row(rng: &mut Rng, id: u32) -> Value {
    let prefixes: Vec<String> = (0..rng.u32(1..20))
        .map(|_| format!("20.{}.{}.0/24", rng.u8(..), rng.u8(..)))
        .collect();
    let category = *rng
        .choice(&["Optimize", "Allow", "Default"])
        .unwrap_or(&"Allow");
    json!({"id": id, "serviceArea": "Common", "ips": prefixes, "tcpPorts": "443, 80", "category": category})
}

/// The next version: the one in force with a change, or something that is no list at all.
fn next(rng: &mut Rng, in_force: &str, number: u32, versions: u32) -> Published {
    let mut rows: Vec<Value> = serde_json::from_str(in_force).unwrap_or_default();
    let mut mood = Mood::Well;
    let mut is_good = true;
    let strangest = 5 + number * 16 / versions;
    // Optimize sets only come, so that none of the changes is a loss that nobody would believe.
    let is_victim = |row: &&usize| {
        rows[**row]["ips"].is_array()
            && rows[**row]["id"] != 1
            && rows[**row]["category"] != "Optimize"
    };
    let places: Vec<usize> = (0..rows.len()).collect();
    let victims: Vec<usize> = places.iter().filter(is_victim).copied().collect();
    // There are always so many left that losing all is too much.
    let last = match victims.len() {
        0..10 => 0,
        _ => *rng.choice(&victims).unwrap_or(&0),
    };
    let kind = rng.u32(0..strangest.max(6));
    let steered = places.iter().find(|row| rows[**row]["id"] == 1);
    let steered = *steered.unwrap_or(&0);
    match kind {
        // What happens every month.
        0 => rows.push(row(rng, 1000 + number)),
        1 if last > 0 => rows[last]["ips"] = row(rng, 0)["ips"].clone(),
        2 if last > 0 => drop(rows.remove(last)),
        3 if last > 0 => rows[last]["category"] = "Allow".into(),
        4 if last > 0 => rows[last]["tcpPorts"] = "1000-2000, 25".into(),
        // What has happened.
        5 => {
            rows.push(
                json!({"id": 9000 + number, "urls": ["*.example.com"], "serviceArea": "MEM"}),
            );
        }
        6 if last > 0 => rows[last]["ips"] = Value::Null,
        7 => rows[steered]["notes"] = json!({"a": {"b": [1, 2.5, null]}}),
        8 if last > 0 => rows[last]["category"] = "Someday".into(),
        9 => rows.reverse(),
        // What the arms above could not do.
        1..=9 => {}
        // What must not be believed.
        10 => (mood, is_good) = (Mood::LogIn, false),
        11 => (mood, is_good) = (Mood::Truncated, false),
        12 => (mood, is_good) = (Mood::Resets, false),
        13 => (mood, is_good) = (Mood::Status(503, None), false),
        14 => (rows, is_good) = (Vec::new(), false),
        15 => (rows[steered]["ips"], is_good) = (json!(["0.0.0.0/0"]), false),
        16 => (rows[steered]["ips"], is_good) = (json!(["192.168.0.0/16"]), false),
        17 => (rows[steered]["ips"], is_good) = (json!(["40.96.0.1/8", "here"]), false),
        18 => (rows[steered]["tcpPorts"], is_good) = (json!("http"), false),
        19 => {
            let mut twice = rows[0].clone();
            twice["ips"] = json!(["40.104.0.0/15"]);
            rows.push(twice);
            is_good = false;
        }
        _ => {
            // Ports that category Optimize has never had.
            rows[steered]["tcpPorts"] = "1-65535".into();
            is_good = false;
        }
    }
    Published {
        body: Value::from(rows).to_string(),
        mood,
        is_good,
        kind,
    }
}
