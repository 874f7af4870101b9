//! Part 1: one lookup, beside the kernel's LPM_TRIE in the same program.

use anyhow::{Result, ensure};
use breakout::datapath::Asker;
use breakout_common::question::{QUESTIONS, Question};
use breakout_common::table::Destination;
use breakout_tests::programs;
use fastrand::Rng;

use crate::measure::{Spread, interleaved};
use crate::report::{Goal, Report, Row};
use crate::tables::{Size, image, prefixes, questions, ruleset};

/// Questions in one run of a program.
const PER_RUN: u32 = 8;
/// Runs in one sample: each question four times.
const RUNS: u32 = 4 * 65_536 / PER_RUN;
/// The programs: none is also measured a second time, as the noise floor.
const PROGRAMS: [&str; 4] = ["none", "table", "lpm", "none"];
/// Destinations of the hot set.
const HOT: usize = 64;

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let sizes: &[usize] = if report.quick {
        &[100, 10_000, 1_000_000]
    } else {
        &[100, 10_000, 100_000, 1_000_000]
    };
    let mut all = vec![Size::Real];
    all.extend(sizes.iter().map(|count| Size::Random(*count)));
    for v6 in [false, true] {
        for size in &all {
            one(report, *size, v6)?;
        }
    }
    Ok(())
}

fn one(report: &mut Report, size: Size, v6: bool) -> Result<()> {
    let rng = &mut Rng::with_seed(42);
    let ruleset = ruleset(size, v6, rng)?;
    let image = image(&ruleset)?;
    let mut asker = Asker::load(programs::object(), &image)?;
    let tries: Vec<_> = prefixes(&ruleset, v6).into_iter().map(|p| (p, 1)).collect();
    asker.fill_tries(&tries)?;
    let mut net = Vec::new();
    for percent in [0, 50, 100] {
        let asked = questions(&ruleset, &image, v6, percent, rng);
        check(&mut asker, &image, &asked)?;
        asker.set_destinations(&destinations(&asked))?;
        net.push(measure(
            report,
            &mut asker,
            size,
            v6,
            &format!("{percent} % hits"),
        )?);
    }
    let hot = questions(&ruleset, &image, v6, 50, rng);
    asker.set_destinations(&destinations(&hot[..HOT]))?;
    measure(report, &mut asker, size, v6, "64 destinations")?;
    goals(report, size, v6, net[1]);
    Ok(())
}

fn destinations(questions: &[Question]) -> Vec<Destination> {
    questions
        .iter()
        .map(|question| question.destination)
        .collect()
}

/// The kernel's answers are those of the pure function, before anything is timed.
fn check(asker: &mut Asker, image: &breakout::ruleset::Image, asked: &[Question]) -> Result<()> {
    use breakout_common::classify::by_preference;
    use breakout_common::table::Lookup;
    let answers = asker.ask(asked)?;
    for (question, answer) in asked.iter().zip(answers) {
        let expected = by_preference(image.words().lookup_word(
            question.destination,
            question.key,
            || None,
        ));
        ensure!(
            answer == expected.to_word(),
            "{question:x?}: {answer:x}, not {expected:?}"
        );
    }
    ensure!(asked.len() == QUESTIONS);
    Ok(())
}

/// Nanoseconds of the table and of the trie, net of the loop around them, and the one over the other.
fn measure(
    report: &mut Report,
    asker: &mut Asker,
    size: Size,
    v6: bool,
    traffic: &str,
) -> Result<[Spread; 3]> {
    let family = if v6 { "v6" } else { "v4" };
    let programs = PROGRAMS.map(|program| format!("lookup_{program}_{family}"));
    // The first call loads the program and warms the caches.
    for program in &programs {
        asker.time(program, RUNS)?;
    }
    let samples = interleaved(report.rounds(), PROGRAMS.len(), |subject| {
        let per_run = asker.time(&programs[subject], RUNS)?;
        Ok(per_run.as_secs_f64() * 1e9 / f64::from(PER_RUN))
    })?;
    let net = [1, 2].map(|subject| samples.combined(|round| round[subject] - round[0]));
    let noise = samples.combined(|round| (round[3] - round[0]).abs());
    let family = if v6 { "IPv6" } else { "IPv4" };
    report.row(Row {
        part: "lookup",
        case: format!("{family}, {}, {traffic}", size.label()),
        unit: "ns net",
        values: vec![
            ("Breakout".to_owned(), net[0]),
            ("LPM_TRIE".to_owned(), net[1]),
            ("A/A".to_owned(), noise),
        ],
    });
    let over = samples.combined(|round| (round[1] - round[0]) / (round[2] - round[0]));
    Ok([net[0], net[1], over])
}

fn goals(report: &mut Report, size: Size, v6: bool, net: [Spread; 3]) {
    let family = if v6 { "IPv6" } else { "IPv4" };
    let ratio = match (size, v6) {
        (Size::Random(100), false) => 0.20,
        (Size::Random(10_000), false) => 0.12,
        (Size::Random(1_000_000), false) => 0.05,
        (Size::Random(100), true) => 0.30,
        (Size::Random(10_000), true) => 0.45,
        (Size::Random(1_000_000), true) => 0.14,
        (Size::Real, _) => {
            report.goal(
                Goal::at_most(
                    format!("{family} lookup with the Worldwide list"),
                    net[0],
                    if v6 { 15.0 } else { 10.0 },
                )
                .in_unit("ns"),
            );
            return;
        }
        _ => return,
    };
    report.goal(Goal::at_most(
        format!("{family} lookup over LPM_TRIE's, {} prefixes", size.label()),
        net[2],
        ratio,
    ));
}
