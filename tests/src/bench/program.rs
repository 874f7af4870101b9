//! Part 2: whole programs on one packet, over and over, and what they are made of.

use anyhow::Result;
use breakout::datapath::Asker;
use breakout::explain::{Proto, Query, frame};
use breakout::list::Instance;
use breakout::ruleset::Ruleset;
use breakout_tests::emulate::{PACKETS, executed};
use breakout_tests::programs;
use breakout_tests::testrun::TestBench;

use crate::measure::{Spread, interleaved};
use crate::report::{Goal, Report, Row};
use crate::tables::image;

/// Runs in one sample.
const RUNS: u32 = 1_000_000;
/// Flows that can be pinned: the default.
const PINS: u32 = 65_536;

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let mut bench = TestBench::new(Instance::Worldwide)?;
    let mut pinned = TestBench::pinned(Instance::Worldwide, PINS)?;
    let mut asker = Asker::load(programs::object(), &image(&Ruleset::default())?)?;
    for (what, destination, port) in [
        ("IPv4, not steered", "9.9.9.9", 443),
        ("IPv4, steered", "52.98.0.1", 443),
        ("IPv6, not steered", "2001:db8::1", 443),
        ("IPv6, steered", "2603:1006::1", 443),
    ] {
        let packet = frame(Query::new(destination.parse()?, Proto::Tcp, port));
        let samples = interleaved(report.rounds(), 5, |subject| {
            let each = match subject {
                0 | 4 => asker.time_xdp("pass_all", &packet, RUNS)?,
                1 => asker.time_xdp("parse_only", &packet, RUNS)?,
                2 => bench.time("xdp", &packet, RUNS)?,
                _ => pinned.time("xdp", &packet, RUNS)?,
            };
            Ok(each.as_secs_f64() * 1e9)
        })?;
        report.row(Row {
            part: "program",
            case: what.to_owned(),
            unit: "ns a run",
            values: vec![
                ("XDP pass".to_owned(), samples.spread(0)),
                ("header walk".to_owned(), samples.spread(1)),
                ("Breakout, unpinned".to_owned(), samples.spread(2)),
                ("Breakout".to_owned(), samples.spread(3)),
                (
                    "A/A".to_owned(),
                    samples.combined(|round| (round[4] - round[0]).abs()),
                ),
            ],
        });
        if what.ends_with(", steered") {
            report.goal(
                Goal::at_most(
                    format!("{what}, pinned less unpinned"),
                    samples.combined(|round| round[3] - round[2]),
                    8.0,
                )
                .in_unit("ns"),
            );
        }
    }
    let exact = |value: u32| Spread::of(vec![f64::from(value)]);
    for packet in &PACKETS {
        let count =
            |program| -> Result<Spread> { Ok(exact(u32::try_from(executed(program, packet)?)?)) };
        let values = vec![
            ("XDP, redirect mode".to_owned(), count("breakout_xdp")?),
            ("TC, route mode".to_owned(), count("breakout_tc")?),
        ];
        report.row(Row {
            part: "executed",
            case: packet.what.to_owned(),
            unit: "eBPF instructions",
            values,
        });
    }
    for size in bench.sizes()? {
        report.row(Row {
            part: "size",
            case: size.program,
            unit: "as loaded",
            values: vec![
                ("verified instructions".to_owned(), exact(size.verified)),
                ("translated, bytes".to_owned(), exact(size.translated_bytes)),
                ("machine code, bytes".to_owned(), exact(size.jited_bytes)),
            ],
        });
    }
    Ok(())
}
