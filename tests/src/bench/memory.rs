//! Part 5: memory in the kernel, by the change of what is free, since maps do not tell all of theirs.

use std::fs;

use anyhow::{Context, Result, bail};
use breakout::datapath::Asker;
use breakout::ruleset::Ruleset;
use breakout_tests::programs;
use fastrand::Rng;

use crate::measure::Spread;
use crate::report::{Goal, Report, Row};
use crate::tables::{Size, image, prefixes, ruleset};

pub(crate) fn run(report: &mut Report) -> Result<()> {
    for (size, v6) in [
        (Size::Real, false),
        (Size::Random(100_000), false),
        (Size::Random(1_000_000), false),
        (Size::Random(100_000), true),
        (Size::Random(250_000), true),
    ] {
        one(report, size, v6)?;
    }
    Ok(())
}

fn one(report: &mut Report, size: Size, v6: bool) -> Result<()> {
    let rng = &mut Rng::with_seed(11);
    let ruleset = ruleset(size, v6, rng)?;
    let image = image(&ruleset)?;
    let prefixes: Vec<_> = prefixes(&ruleset, v6).into_iter().map(|p| (p, 1)).collect();
    let empty = crate::tables::image(&Ruleset::default())?;
    let rounds = if report.quick { 3 } else { 5 };
    // Many at once, so that what else happens in the machine weighs little.
    let copies = u32::try_from((128 << 20) / (image.words().len() * 4))?;
    let (mut table, mut trie, mut noise) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let asker = Asker::load(programs::object(), &empty)?;
        let before = free()?;
        noise.push((free()? - before).abs() / f64::from(copies));
        let tables: Result<Vec<_>> = (0..copies).map(|_| asker.table_like(&image)).collect();
        let tables = tables?;
        table.push((before - free()?) / f64::from(copies));
        drop(tables);
    }
    // Those before are kept: what is freed late would be taken for less.
    let mut kept = Vec::new();
    for _ in 0..rounds {
        let mut asker = Asker::load(programs::object(), &empty)?;
        let before = free()?;
        asker.fill_tries(&prefixes)?;
        trie.push(before - free()?);
        kept.push(asker);
    }
    let family = if v6 { "IPv6" } else { "IPv4" };
    let table = Spread::of(table);
    report.row(Row {
        part: "memory",
        case: format!("{family}, {}", size.label()),
        unit: "KiB",
        values: vec![
            ("Breakout".to_owned(), table),
            ("LPM_TRIE".to_owned(), Spread::of(trie)),
            ("A/A".to_owned(), Spread::of(noise)),
        ],
    });
    match (size, v6) {
        (Size::Real, _) => report.goal(
            Goal::at_most("memory of the Worldwide list".to_owned(), table, 1024.0).in_unit("KiB"),
        ),
        (Size::Random(1_000_000), false) => report.goal(
            Goal::at_most(
                "memory of a million IPv4 prefixes".to_owned(),
                table,
                8192.0,
            )
            .in_unit("KiB"),
        ),
        (Size::Random(count @ 250_000), true) => report.goal(
            Goal::at_most(
                "memory of an IPv6 prefix of 250k".to_owned(),
                (table.median * 1024.0 / f64::from(u32::try_from(count)?)).into(),
                20.0,
            )
            .in_unit("bytes"),
        ),
        _ => {}
    }
    Ok(())
}

/// KiB of memory that are free, once the kernel has freed what it was about to free.
fn free() -> Result<f64> {
    let mut last = read()?;
    let mut calm = 0;
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = read()?;
        calm = if (now - last).abs() < CALM {
            calm + 1
        } else {
            0
        };
        if calm == 6 {
            return Ok(now);
        }
        last = now;
    }
    bail!("the memory that is free does not come to rest; other programs are at work")
}

/// KiB by which free memory may change in a twentieth of a second while it is at rest.
const CALM: f64 = 128.0;

/// What /proc/meminfo calls free, and the pages that each processor keeps at hand beside that, which can be gigabytes.
fn read() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let free = number.context("/proc/meminfo has no MemFree")?;
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let counts = zones
        .lines()
        .filter_map(|line| line.trim().strip_prefix("count:"));
    let pages: f64 = counts
        .filter_map(|count| count.trim().parse::<f64>().ok())
        .sum();
    Ok(free + pages * 4.0)
}
