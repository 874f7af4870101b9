//! Part 4: from a parsed list to live, beside an atomic reload of nftables and a refill of the kernel's LPM_TRIE.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result};
use breakout::datapath::Asker;
use breakout::list::{EndpointSet, List};
use breakout::ruleset::Ruleset;
use breakout_tests::netns::{Namespace, run as run_command};
use breakout_tests::programs;
use breakout_tests::rulesets::by_default;
use fastrand::Rng;
use ipnet::IpNet;

use crate::measure::{Spread, interleaved};
use crate::report::{Goal, Report, Row};
use crate::tables::{Size, image, prefixes, ruleset};

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let mut sizes = vec![Size::Real, Size::Random(100), Size::Random(100_000)];
    if !report.quick {
        sizes.push(Size::Random(1_000_000));
    }
    for size in sizes {
        one(report, size)?;
    }
    Ok(())
}

fn one(report: &mut Report, size: Size) -> Result<()> {
    let rng = &mut Rng::with_seed(7);
    let rulesets = [ruleset(size, false, rng)?, ruleset(size, false, rng)?];
    let namespace = Namespace::create(format!("bob{}-nft", std::process::id()))?;
    let small = image(&Ruleset::default())?;
    let mut asker = Asker::load(programs::object(), &image(&rulesets[0])?)?;
    let directory = tempfile::tempdir()?;
    let scripts = [0, 1].map(|number| directory.path().join(format!("{number}.nft")));
    for (ruleset, script) in rulesets.iter().zip(&scripts) {
        std::fs::write(script, nft_script(&prefixes(ruleset, false)))?;
    }
    let prefixes = [0, 1].map(|number| {
        let prefixes = prefixes(&rulesets[number], false).into_iter();
        prefixes.map(|prefix| (prefix, 1)).collect::<Vec<_>>()
    });
    let lists = rulesets.map(to_list);
    let rounds = if size == Size::Random(1_000_000) {
        3
    } else {
        5
    };
    let mut turn = 0;
    let samples = interleaved(rounds, 4, |subject| {
        turn += 1;
        let list = &lists[turn % 2];
        let started = Instant::now();
        match subject {
            0 | 3 => {
                asker.publish(&image(&by_default(list)?)?)?;
            }
            1 => {
                let script = scripts[turn % 2].to_string_lossy().into_owned();
                run_command(namespace.command("nft").args(["-f", &script]))
                    .context("nft reloads")?;
            }
            _ => {
                // A refill that no packet sees half of is one of a trie that is not in use yet.
                let mut fresh = Asker::load(programs::object(), &small)?;
                let started = Instant::now();
                fresh.fill_tries(&prefixes[turn % 2])?;
                return Ok(started.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(started.elapsed().as_secs_f64() * 1e3)
    })?;
    let spreads: [Spread; 3] = [0, 1, 2].map(|subject| samples.spread(subject));
    report.row(Row {
        part: "reload",
        case: size.label(),
        unit: "ms",
        values: ["Breakout", "nftables", "LPM_TRIE"]
            .map(str::to_owned)
            .into_iter()
            .zip(spreads)
            .chain([(
                "A/A".to_owned(),
                samples.combined(|round| (round[3] - round[0]).abs()),
            )])
            .collect(),
    });
    let limit = match size {
        Size::Real => 25.0,
        Size::Random(100_000) => 60.0,
        Size::Random(1_000_000) => 500.0,
        Size::Random(_) => return Ok(()),
    };
    report
        .goal(Goal::at_most(format!("reload, {}", size.label()), spreads[0], limit).in_unit("ms"));
    if size == Size::Random(100_000) {
        report.goal(Goal::at_least(
            "nftables' reload over Breakout's at 100k".to_owned(),
            samples.combined(|round| round[1] / round[0]),
            10.0,
        ));
    }
    Ok(())
}

/// An interval set that takes the place of the one before, in one transaction. Prefixes that lie in others are merged, as
/// nftables wants them.
fn nft_script(prefixes: &[IpNet]) -> String {
    let mut script =
        "table ip bench\ndelete table ip bench\ntable ip bench {\n set local { type ipv4_addr; \
                      flags interval; elements = { "
            .to_owned();
    for prefix in IpNet::aggregate(&prefixes.to_vec()) {
        let _ = writeln!(script, "{prefix},");
    }
    script.push_str("} }\n chain steer { type filter hook prerouting priority mangle; tcp dport { 80, 443 } ip daddr @local meta mark set 0x10000; }\n}\n");
    script
}

/// A list whose sets are those of a ruleset.
fn to_list(ruleset: Ruleset) -> List {
    let sets = ruleset.rules.into_iter().map(|rule| EndpointSet {
        key: rule.key,
        service_area: rule.service_area,
        category: rule.category,
        prefixes: rule.prefixes,
        ports: rule.ports,
        urls: Vec::new(),
        required: true,
        express_route: false,
        withdrawn: None,
    });
    let mut list = breakout::list::embedded(breakout::list::Instance::Worldwide);
    list.sets = sets.collect();
    list
}
