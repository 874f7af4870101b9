//! Part 3: forwarding in the lab, generator, gateway and sink on one core.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, bail};
use breakout_common::table::Destination;

use crate::measure::{Samples, Spread, interleaved};
use crate::report::{Goal, Report, Row};
use crate::tables::Size;
use crate::ways::{Bench, DESTINATIONS, Path, Way, pin};

/// Packets of one sample: to each destination one, in some hundredths of a second, in which a shared machine keeps its speed.
/// As many before it are not timed, so that the caches are filled with what the path itself needs.
const PACKETS: u32 = DESTINATIONS;
/// Samples taken in the time of one.
const SLICES: usize = 5;
/// Source ports that make a million flows.
const MILLION: u32 = 16;

/// All of the traffic is steered, by the real list.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let ways = [
        Way::Nothing,
        Way::Plain,
        Way::Redirect,
        Way::Fib,
        Way::Route,
        Way::Routes,
        Way::Nftables,
        Way::Ipset,
        Way::RedirectTc,
    ];
    let bench = Bench::new(&ways, Size::Real)?;
    bench.with_paths(|paths| {
        for (v6, bytes) in [(false, 64), (true, 64), (false, 1500), (true, 1500)] {
            let samples = measure(report, paths, &bench.steered(v6), v6, bytes, "steered")?;
            if bytes == 64 && !v6 {
                let net = |way: usize| {
                    samples.combined(|round| (round[way] - round[0]) / (round[2] - round[0]))
                };
                report.goal(Goal::at_least(
                    "redirect over kernel routes, net of the generator".to_owned(),
                    net(5),
                    6.0,
                ));
                report.goal(Goal::at_least(
                    "redirect over nftables and ip rule, net of the generator".to_owned(),
                    net(6),
                    13.0,
                ));
                report.goal(Goal::at_least(
                    "redirect over XDP bpf_fib_lookup".to_owned(),
                    samples.combined(|round| round[3] / round[2]),
                    1.3,
                ));
                report.goal(Goal::at_least(
                    "route mode over nftables and ip rule".to_owned(),
                    samples.combined(|round| round[6] / round[4]),
                    1.8,
                ));
                report.goal(Goal::at_least(
                    "redirect by TC over kernel routes".to_owned(),
                    samples.combined(|round| round[5] / round[8]),
                    1.3,
                ));
            }
        }
        Ok(())
    })
}

/// Measures the cost of flows, by how many there are: as many as are remembered by default, and as many as can be.
pub(crate) fn flows(report: &mut Report) -> Result<()> {
    let ways = [
        Way::Nothing,
        Way::RedirectUnpinned,
        Way::Redirect,
        Way::Plain,
        // It reads from as much memory as the flows of a table of the default size take.
        Way::OneLine,
    ];
    let bench = Bench::new(&ways, Size::Real)?;
    let all = bench.steered(false);
    bench.with_paths(|paths| {
        for (count, cost, rate) in [
            (1, 8.0, None),
            (1_000, 8.0, Some(0.82)),
            (all.len(), 12.0, Some(0.80)),
        ] {
            let flows = all[..count].iter().copied().cycle();
            let flows: Vec<Destination> = flows.take(all.len()).collect();
            of_flows(report, paths, &flows, count, cost, rate)?;
        }
        Ok(())
    })?;
    let bench = Bench::with_ports(&ways[..4], Size::Real, MILLION)?;
    let all = bench.steered(false);
    let count = all.len() * usize::try_from(MILLION)?;
    bench.with_paths(|paths| of_flows(report, paths, &all, count, 40.0, Some(0.70)))
}

fn of_flows(
    report: &mut Report,
    paths: &mut [Path<'_>],
    destinations: &[Destination],
    count: usize,
    cost: f64,
    rate: Option<f64>,
) -> Result<()> {
    for path in &mut *paths {
        path.set(destinations)?;
        // The first packet of a flow is not what is measured.
        path.send(false, 64, u32::try_from(count)?)?;
    }
    let traffic = format!("steered, {count} flows");
    let samples = measure(report, paths, destinations, false, 64, &traffic)?;
    report.goal(
        Goal::at_most(
            format!("redirect, {count} flows, pinned less unpinned"),
            samples.combined(|round| round[2] - round[1]),
            cost,
        )
        .in_unit("ns"),
    );
    if let Some(rate) = rate {
        report.goal(Goal::at_least(
            format!("redirect over XDP redirect without a lookup, {count} flows"),
            samples.combined(|round| round[3] / round[2]),
            rate,
        ));
    }
    Ok(())
}

/// All of the traffic is masqueraded.
pub(crate) fn masqueraded(report: &mut Report) -> Result<()> {
    let ways = [
        Way::RouteMasquerade,
        Way::NftablesMasquerade,
        Way::RedirectMasquerade,
    ];
    let bench = Bench::new(&ways, Size::Real)?;
    bench.with_paths(|paths| {
        let traffic = format!("masqueraded, {DESTINATIONS} flows");
        let samples = measure(report, paths, &bench.steered(false), false, 64, &traffic)?;
        report.goal(Goal::at_least(
            format!("redirect over nftables and ip rule, {traffic}"),
            samples.combined(|round| round[1] / round[2]),
            6.0,
        ));
        report.goal(Goal::at_least(
            format!("route mode over nftables and ip rule, {traffic}"),
            samples.combined(|round| round[1] / round[0]),
            1.4,
        ));
        Ok(())
    })?;
    for ports in [1, MILLION] {
        let ways = [Way::Redirect, Way::RedirectMasquerade];
        let bench = Bench::with_ports(&ways, Size::Real, ports)?;
        let traffic = format!("masqueraded, {} flows", DESTINATIONS * ports);
        bench.with_paths(|paths| {
            let samples = measure(report, paths, &bench.steered(false), false, 64, &traffic)?;
            report.goal(Goal::at_least(
                format!("redirect over redirect without, {traffic}"),
                samples.combined(|round| round[0] / round[1]),
                0.93,
            ));
            Ok(())
        })?;
    }
    Ok(())
}

/// None of the traffic is steered.
pub(crate) fn passing(report: &mut Report) -> Result<()> {
    let ways = [
        Way::Untouched,
        Way::Route,
        Way::Redirect,
        Way::Rule,
        Way::PassXdp,
        Way::PassBoth,
        Way::Untouched,
    ];
    let bench = Bench::new(&ways, Size::Real)?;
    bench.with_paths(|paths| {
        for v6 in [false, true] {
            let samples = measure(report, paths, &bench.passing(v6), v6, 64, "not steered")?;
            report.row(Row {
                part: "passing",
                case: format!("{}, 64 bytes", family(v6)),
                unit: "of the rate without Breakout",
                values: by_way(paths, &samples, |round, subject| round[0] / round[subject]),
            });
            let of_route = if v6 { 0.92 } else { 0.97 };
            for (place, mode, limit) in [(1, "route", of_route), (2, "redirect", 0.97)] {
                report.goal(Goal::at_least(
                    format!(
                        "rate of traffic that is not steered, {} mode over without, {}",
                        mode,
                        family(v6)
                    ),
                    samples.combined(|round| round[0] / round[place]),
                    limit,
                ));
            }
        }
        Ok(())
    })
}

/// Larger rulesets.
pub(crate) fn sizes(report: &mut Report) -> Result<()> {
    for (count, limit) in [(10_000, 0.78), (1_000_000, 0.65)] {
        let size = Size::Random(count);
        let bench = Bench::new(&[Way::Nothing, Way::Plain, Way::Redirect], size)?;
        bench.with_paths(|paths| {
            let traffic = format!("steered, {} prefixes", size.label());
            let samples = measure(report, paths, &bench.steered(false), false, 64, &traffic)?;
            redirect_goal(report, &size.label(), &samples, limit);
            Ok(())
        })?;
    }
    Ok(())
}

/// On a thread of its own, since that is kept on one core.
pub(crate) fn under_reloads(report: &mut Report) -> Result<()> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| around_a_reload(report));
        thread
            .join()
            .unwrap_or_else(|_| bail!("a thread of the benchmark panicked"))
    })
}

/// The worst tenth of a second while whole tables are switched under traffic.
fn around_a_reload(report: &mut Report) -> Result<()> {
    /// About a tenth of a second.
    const TENTH: u32 = 300_000;
    const TENTHS: usize = 20;
    // The controller and what asks it are on another core than the traffic, as this thread is.
    pin(0)?;
    let bench = Bench::new(&[Way::Redirect], Size::Random(100_000))?;
    bench.with_paths(|paths| {
        let path = &mut paths[0];
        path.set(&bench.steered(false))?;
        path.send(false, 64, TENTH)?;
        let (gateway, site) = (&path.lab.gateway, path.site);
        let stop = AtomicBool::new(false);
        let rates = |path: &mut Path<'_>| -> Result<Vec<f64>> {
            let rates = (0..TENTHS).map(|_| Ok(1e3 / path.send(false, 64, TENTH)?));
            rates.collect()
        };
        let calm = rates(path)?;
        let (reloading, reloads) = thread::scope(|scope| {
            let reloader = scope.spawn(|| -> Result<u32> {
                let mut reloads = 0;
                while !stop.load(Ordering::Relaxed) {
                    site.json(gateway, &["reload"])?;
                    reloads += 1;
                }
                Ok(reloads)
            });
            let reloading = rates(path);
            stop.store(true, Ordering::Relaxed);
            let reloads = reloader
                .join()
                .unwrap_or_else(|_| bail!("the reloads panicked"));
            Ok::<_, anyhow::Error>((reloading?, reloads?))
        })?;
        let worst = reloading.iter().copied().fold(f64::INFINITY, f64::min);
        let (calm, reloading) = (Spread::of(calm), Spread::of(reloading));
        report.goal(
            Goal::at_most(
                "worst tenth of a second under reloads of 100k prefixes, below the median without"
                    .to_owned(),
                ((1.0 - worst / calm.median) * 100.0).into(),
                5.0,
            )
            .in_unit("%"),
        );
        report.row(Row {
            part: "reload under traffic",
            case: format!("100k prefixes, {reloads} reloads in {TENTHS} tenths of a second"),
            unit: "Mpps",
            values: vec![
                ("without".to_owned(), calm),
                ("while reloading".to_owned(), reloading),
            ],
        });
        Ok(())
    })
}

/// Subjects 1 and 2 are the redirect without and with a lookup.
fn redirect_goal(report: &mut Report, size: &str, samples: &Samples, limit: f64) {
    report.goal(Goal::at_least(
        format!("redirect with lookup over without, {size}"),
        samples.combined(|round| round[1] / round[2]),
        limit,
    ));
}

/// Measures all paths, in nanoseconds a packet, and notes their rates.
fn measure(
    report: &mut Report,
    paths: &mut [Path<'_>],
    destinations: &[Destination],
    v6: bool,
    bytes: usize,
    traffic: &str,
) -> Result<Samples> {
    for path in &mut *paths {
        path.set(destinations)?;
        path.send(v6, bytes, 2 * PACKETS)?;
    }
    let rounds = report.rounds() * SLICES;
    let samples = interleaved(rounds, paths.len(), |subject| {
        let path = &mut paths[subject];
        path.send(v6, bytes, path.flows)?;
        path.send(v6, bytes, PACKETS)
    })?;
    report.row(Row {
        part: "forward",
        case: format!("{traffic}, {}, {bytes} bytes", family(v6)),
        unit: "Mpps",
        values: by_way(paths, &samples, |round, subject| 1e3 / round[subject]),
    });
    Ok(samples)
}

/// Makes a figure of each round's samples for each path, by its label.
fn by_way(
    paths: &[Path<'_>],
    samples: &Samples,
    figure: impl Fn(&[f64], usize) -> f64,
) -> Vec<(String, Spread)> {
    let figures = paths.iter().enumerate().map(|(subject, path)| {
        let spread = samples.combined(|round| figure(round, subject));
        (path.way.label().to_owned(), spread)
    });
    figures.collect()
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}
