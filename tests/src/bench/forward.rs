//! Part 3: forwarding in the lab, generator, gateway and sink on one core.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, bail};
use breakout_common::table::Destination;

use crate::measure::{Samples, Spread, interleaved};
use crate::report::{Goal, Report, Row};
use crate::tables::Size;
use crate::ways::{Bench, Path, Way, pin};

/// Packets of one sample.
const PACKETS: u32 = 400_000;

pub(crate) fn run(report: &mut Report) -> Result<()> {
    steered(report)?;
    pinned(report)?;
    masqueraded(report)?;
    sizes(report)?;
    // On a thread of its own, since that is kept on one core.
    thread::scope(|scope| {
        let thread = scope.spawn(|| around_a_reload(report));
        thread
            .join()
            .unwrap_or_else(|_| bail!("a thread of the benchmark panicked"))
    })
}

/// All of the traffic is steered, by the real list.
fn steered(report: &mut Report) -> Result<()> {
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
                let net = |way: usize| samples.combined(|round| round[way] - round[0]).median;
                report.goal(Goal::at_least(
                    "redirect over kernel routes, net of the generator".to_owned(),
                    net(5) / net(2),
                    6.0,
                ));
                report.goal(Goal::at_least(
                    "redirect over nftables and ip rule, net of the generator".to_owned(),
                    net(6) / net(2),
                    13.0,
                ));
                report.goal(Goal::at_least(
                    "redirect over XDP bpf_fib_lookup".to_owned(),
                    samples.combined(|round| round[3] / round[2]).median,
                    1.3,
                ));
                report.goal(Goal::at_least(
                    "route mode over nftables and ip rule".to_owned(),
                    samples.combined(|round| round[6] / round[4]).median,
                    1.8,
                ));
                report.goal(Goal::at_least(
                    "redirect by TC over kernel routes".to_owned(),
                    samples.combined(|round| round[5] / round[8]).median,
                    1.3,
                ));
                redirect_goal(report, "Worldwide", &samples, 0.80);
            }
        }
        Ok(())
    })
}

/// What pins cost, by how many flows there are: up to as many as are remembered.
fn pinned(report: &mut Report) -> Result<()> {
    let ways = [
        Way::Nothing,
        Way::RedirectUnpinned,
        Way::Redirect,
        Way::RouteUnpinned,
        Way::Route,
    ];
    let bench = Bench::new(&ways, Size::Real)?;
    let all = bench.steered(false);
    bench.with_paths(|paths| {
        for (count, limit) in [(1, 8.0), (1_000, 8.0), (all.len(), 12.0)] {
            let flows = all[..count].iter().copied().cycle();
            let flows: Vec<Destination> = flows.take(all.len()).collect();
            let traffic = format!("steered, {count} flows");
            let samples = measure(report, paths, &flows, false, 64, &traffic)?;
            report.goal(Goal::at_most(
                format!("redirect, {count} flows, pinned over unpinned, ns"),
                samples.combined(|round| round[2] - round[1]).median,
                limit,
            ));
        }
        Ok(())
    })
}

fn masqueraded(report: &mut Report) -> Result<()> {
    let ways = [Way::Nothing, Way::RouteMasquerade, Way::NftablesMasquerade];
    let bench = Bench::new(&ways, Size::Real)?;
    bench.with_paths(|paths| {
        let samples = measure(
            report,
            paths,
            &bench.steered(false),
            false,
            64,
            "steered, masquerade",
        )?;
        report.goal(Goal::at_least(
            "route mode over nftables and ip rule, with masquerade".to_owned(),
            samples.combined(|round| round[2] / round[1]).median,
            1.4,
        ));
        Ok(())
    })
}

/// None of the traffic is steered.
pub(crate) fn passing(report: &mut Report) -> Result<()> {
    let ways = [
        Way::Untouched,
        Way::Route,
        Way::Redirect,
        Way::Rule,
        Way::PassXdp,
        Way::Untouched,
    ];
    let bench = Bench::new(&ways, Size::Real)?;
    bench.with_paths(|paths| {
        for v6 in [false, true] {
            let samples = measure(report, paths, &bench.passing(v6), v6, 64, "not steered")?;
            let of_route = if v6 { 0.92 } else { 0.97 };
            for (place, mode, limit) in [(1, "route", of_route), (2, "redirect", 0.97)] {
                report.goal(Goal::at_least(
                    format!(
                        "rate of traffic that is not steered, {} mode over without, {}",
                        mode,
                        family(v6)
                    ),
                    samples.combined(|round| round[0] / round[place]).median,
                    limit,
                ));
            }
        }
        Ok(())
    })
}

/// Larger rulesets.
fn sizes(report: &mut Report) -> Result<()> {
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
        let (calm, reloading) = (Spread::of(calm), Spread::of(reloading));
        report.goal(Goal::at_most(
            "worst tenth of a second under reloads of 100k prefixes, below the median without, %"
                .to_owned(),
            (1.0 - reloading.low / calm.median) * 100.0,
            5.0,
        ));
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
        samples.combined(|round| round[1] / round[2]).median,
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
        path.send(v6, bytes, PACKETS / 4)?;
    }
    let samples = interleaved(report.rounds(), paths.len(), |subject| {
        paths[subject].send(v6, bytes, PACKETS)
    })?;
    let values = paths.iter().enumerate().map(|(subject, path)| {
        let rate = samples.combined(|round| 1e3 / round[subject]);
        (path.way.label().to_owned(), rate)
    });
    report.row(Row {
        part: "forward",
        case: format!("{traffic}, {}, {bytes} bytes", family(v6)),
        unit: "Mpps",
        values: values.collect(),
    });
    Ok(samples)
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}
