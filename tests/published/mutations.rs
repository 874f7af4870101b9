//! Damaged and hostile lists, made from genuine ones at random: the judge refuses every one of them.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use breakout::config::ListConfig;
use breakout::list::{Category, Instance, Judge, List, parse};
use fastrand::Rng;
use serde_json::{Value, json};

/// How often each kind is tried on each list.
const TRIES: usize = 3;

/// Makes a bad list of a good one; nothing where the list has none of what is to be damaged.
type Mutation = fn(&mut Vec<Value>, &mut Rng) -> Option<()>;

const MUTATIONS: &[(&str, Mutation)] = &[
    ("foreign IPv4 prefix", |rows, rng| {
        let prefix = foreign_v4(rng);
        add(rows, rng, &prefix)
    }),
    ("foreign IPv6 prefix", |rows, rng| {
        let prefix = format!(
            "2a{:02x}:{:x}::/{}",
            rng.u8(4..0x60),
            rng.u16(1..) & 0xfff0,
            rng.u8(28..=64)
        );
        add(
            rows,
            rng,
            &prefix.parse::<ipnet::Ipv6Net>().ok()?.trunc().to_string(),
        )
    }),
    ("all of IPv4 in /10s", |rows, rng| {
        let all: Vec<String> = (0..1024)
            .map(|n: u32| format!("{}/10", Ipv4Addr::from(n << 22)))
            .collect();
        all.iter().try_for_each(|prefix| add(rows, rng, prefix))
    }),
    ("two halves of a default route", |rows, rng| {
        add(rows, rng, "0.0.0.0/1")?;
        add(rows, rng, "128.0.0.0/1")
    }),
    ("special prefix", |rows, rng| {
        let special = [
            "10.1.0.0/16",
            "192.88.99.0/24",
            "2001::/32",
            "2002::/28",
            "224.0.0.0/10",
            "fe80::/64",
            "169.254.0.0/16",
        ];
        let prefix = special[rng.usize(..special.len())];
        add(rows, rng, prefix)
    }),
    ("address bits behind the length", |rows, rng| {
        add(rows, rng, "52.112.0.1/14")
    }),
    ("every set in Optimize", |rows, _| {
        let others = rows
            .iter()
            .filter(|row| has_addresses(row) && !is_optimize(row))
            .count();
        rows.iter_mut()
            .for_each(|row| row["category"] = json!("Optimize"));
        (others > 2).then_some(())
    }),
    ("ports widened", |rows, rng| {
        let key = ["tcpPorts", "udpPorts"][rng.usize(..2)];
        one(rows, rng)?[key] = json!("1-65535");
        Some(())
    }),
    ("ports moved", |rows, rng| {
        let row = one(rows, rng)?;
        row["udpPorts"] = json!("");
        row["tcpPorts"] = json!(rng.u16(1..80).to_string());
        Some(())
    }),
    ("media gone", |rows, _| {
        let before = rows.len();
        rows.retain(|row| !is_media(row));
        (rows.len() < before).then_some(())
    }),
    ("media without ports", |rows, _| {
        let media = rows.iter_mut().find(|row| is_media(row))?;
        media["udpPorts"] = json!("");
        media["tcpPorts"] = json!("");
        Some(())
    }),
    ("media by HTTPS", |rows, _| {
        let media = rows.iter_mut().find(|row| is_media(row))?;
        media["udpPorts"] = json!("");
        media["tcpPorts"] = json!("443");
        Some(())
    }),
    ("media at one address", |rows, _| {
        let media = rows.iter_mut().find(|row| is_media(row))?;
        media["ips"] = json!(["52.112.0.7/32"]);
        Some(())
    }),
    ("no HTTPS", |rows, _| {
        for row in rows
            .iter_mut()
            .filter(|row| is_optimize(row) && !is_media(row))
        {
            row["tcpPorts"] = json!("80");
            row["udpPorts"] = json!("");
        }
        Some(())
    }),
    ("Optimize gone", |rows, _| {
        rows.retain(|row| !is_optimize(row));
        Some(())
    }),
    ("Optimize in another category", |rows, rng| {
        let name = ["Allow", "Optimise", ""][rng.usize(..3)];
        for row in rows.iter_mut().filter(|row| is_optimize(row)) {
            row["category"] = json!(name);
        }
        Some(())
    }),
    ("IPv6 dropped", |rows, _| {
        let mut dropped = 0;
        for row in rows.iter_mut().filter(|row| is_optimize(row)) {
            let ips = row["ips"].as_array_mut()?;
            let before = ips.len();
            ips.retain(|ip| !ip.as_str().unwrap_or_default().contains(':'));
            dropped += before - ips.len();
        }
        (dropped > 0).then_some(())
    }),
    ("one id with two contents", |rows, rng| {
        let mut twin = one(rows, rng)?.clone();
        twin["ips"] = json!(["52.112.0.0/16"]);
        rows.push(twin);
        Some(())
    }),
    ("a steered row that is damaged", |rows, rng| {
        one(rows, rng)?["required"] = json!([1]);
        Some(())
    }),
    ("thousands of rows of nothing", |rows, _| {
        rows.extend((0..2000).map(|_| Value::Null));
        Some(())
    }),
];

const VERSIONS: [&str; 4] = ["9999999999", "2018000000", "0000000000", "20260399xx"];

pub(crate) fn refused(lists: &[(Instance, Option<String>, Vec<u8>)]) -> Result<()> {
    let judge = Judge::new(&ListConfig::default(), Vec::new());
    let seed = 20_260_331;
    let mut rng = Rng::with_seed(seed);
    println!("mutations of {} lists, seed {seed}:", lists.len());
    let mut missed = Vec::new();
    for (kind, mutation) in MUTATIONS {
        let (mut tried, mut refused) = (0, 0);
        for (instance, version, text) in lists {
            let before = parsed(text, *instance, version.as_deref())?;
            // The first lists had no category Optimize, and a gateway that has one of them cannot judge by it.
            if before.prefix_counts(&Category::Optimize) == (0, 0) {
                continue;
            }
            for _ in 0..TRIES {
                let mut rows: Vec<Value> = serde_json::from_slice(text)?;
                if mutation(&mut rows, &mut rng).is_none() {
                    continue;
                }
                tried += 1;
                let bytes = serde_json::to_vec(&rows)?;
                // What is no list at all is refused as such.
                match parsed(&bytes, *instance, version.as_deref()) {
                    Ok(list) if judge.judge(&before, &list).is_passed() => {
                        missed.push(format!("{kind}: {}", before.name()));
                    }
                    _ => refused += 1,
                }
            }
        }
        println!("{kind:34} {refused:4} of {tried:4} refused");
        ensure!(tried > 0, "{kind} was not tried");
    }
    for version in VERSIONS {
        for (instance, known, text) in lists {
            let before = parsed(
                text,
                *instance,
                Some(known.as_deref().unwrap_or("2018063000")),
            )?;
            let list = parsed(text, *instance, Some(version))?;
            if judge.judge(&before, &list).is_passed() {
                missed.push(format!("version {version}: {}", before.name()));
            }
        }
    }
    ensure!(missed.is_empty(), "{} passed: {missed:#?}", missed.len());
    Ok(())
}

fn parsed(text: &[u8], instance: Instance, version: Option<&str>) -> Result<List> {
    let mut list = parse(text, instance, "mutated")?;
    list.version = version.map(str::to_owned);
    Ok(list)
}

/// A prefix of networks that Microsoft has nothing in.
fn foreign_v4(rng: &mut Rng) -> String {
    const FOREIGN: [u8; 16] = [
        1, 2, 5, 8, 9, 12, 17, 31, 37, 45, 80, 99, 145, 185, 200, 217,
    ];
    let first = FOREIGN[rng.usize(..FOREIGN.len())];
    let address = u32::from(first) << 24 | rng.u32(..1 << 24);
    let prefix = ipnet::Ipv4Net::new_assert(address.into(), rng.u8(10..=32));
    prefix.trunc().to_string()
}

fn is_optimize(row: &Value) -> bool {
    row["category"] == "Optimize" && has_addresses(row)
}

fn has_addresses(row: &Value) -> bool {
    row["ips"].as_array().is_some_and(|ips| !ips.is_empty())
}

fn is_media(row: &Value) -> bool {
    let ports = row["udpPorts"].as_str().unwrap_or_default();
    is_optimize(row)
        && ports.contains("3478")
        && row["tcpPorts"].as_str().unwrap_or_default().is_empty()
}

/// A set of category Optimize.
fn one<'a>(rows: &'a mut [Value], rng: &mut Rng) -> Option<&'a mut Value> {
    let places: Vec<usize> = (0..rows.len())
        .filter(|place| is_optimize(&rows[*place]))
        .collect();
    let place = *places.get(rng.usize(..places.len().max(1)))?;
    rows.get_mut(place)
}

fn add(rows: &mut [Value], rng: &mut Rng, prefix: &str) -> Option<()> {
    one(rows, rng)?["ips"].as_array_mut()?.push(json!(prefix));
    Some(())
}
