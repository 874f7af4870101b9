//! Part 3: forwarding in the lab, generator, gateway and sink on one core.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use breakout::datapath::Asker;
use breakout::list::Category;
use breakout::policy::Action;
use breakout::ruleset::Ruleset;
use breakout_common::table::{Answer, Destination, Lookup, Outcome, Transport};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::netns::Namespace;
use breakout_tests::programs;
use breakout_tests::random::address_in;
use fastrand::Rng;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::measure::{Samples, Spread, interleaved};
use crate::peers;
use crate::report::{Goal, Report, Row};
use crate::tables::{Size, destination, image, questions, ruleset};

/// The core that everything runs on.
const CORE: usize = 1;
/// Packets of one sample.
const PACKETS: u32 = 400_000;
/// Destinations in rotation.
const DESTINATIONS: usize = 65_536;

/// A way through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The sink on the gateway's own LAN interface: generator and sink alone.
    Nothing,
    /// XDP that redirects everything.
    Plain,
    Redirect,
    Fib,
    Route,
    Routes,
    Nftables,
    Ipset,
    RouteMasquerade,
    NftablesMasquerade,
    /// Plain forwarding, by the WAN.
    Untouched,
    /// The same with an `ip rule` for each family that nothing matches.
    Rule,
}

impl Way {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Way::Nothing => "generator and sink",
            Way::Plain => "XDP redirect, no lookup",
            Way::Redirect => "Breakout redirect",
            Way::Fib => "XDP bpf_fib_lookup",
            Way::Route => "Breakout route",
            Way::Routes => "kernel routes",
            Way::Nftables => "nftables and ip rule",
            Way::Ipset => "ipset and ip rule",
            Way::RouteMasquerade => "Breakout route, masquerade",
            Way::NftablesMasquerade => "nftables, masquerade",
            Way::Untouched => "without Breakout",
            Way::Rule => "an ip rule alone",
        }
    }

    fn mode(self) -> Option<&'static str> {
        match self {
            Way::Redirect => Some("redirect"),
            Way::Route | Way::RouteMasquerade => Some("route"),
            _ => None,
        }
    }
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    steered(report)?;
    masqueraded(report)?;
    passing(report)?;
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
                    4.5,
                ));
                report.goal(Goal::at_least(
                    "redirect over nftables and ip rule, net of the generator".to_owned(),
                    net(6) / net(2),
                    9.0,
                ));
                report.goal(Goal::at_least(
                    "route mode over nftables and ip rule".to_owned(),
                    samples.combined(|round| round[6] / round[4]).median,
                    1.05,
                ));
                redirect_goal(report, "Worldwide", &samples, 0.97);
            }
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
            1.05,
        ));
        Ok(())
    })
}

/// None of the traffic is steered.
fn passing(report: &mut Report) -> Result<()> {
    let ways = [
        Way::Untouched,
        Way::Route,
        Way::Redirect,
        Way::Rule,
        Way::Untouched,
    ];
    let bench = Bench::new(&ways, Size::Real)?;
    bench.with_paths(|paths| {
        for v6 in [false, true] {
            let samples = measure(report, paths, &bench.passing(v6)?, v6, 64, "not steered")?;
            for (place, mode) in [(1, "route"), (2, "redirect")] {
                report.goal(Goal::at_least(
                    format!(
                        "rate of traffic that is not steered, {} mode over without, {}",
                        mode,
                        family(v6)
                    ),
                    samples.combined(|round| round[0] / round[place]).median,
                    0.97,
                ));
            }
        }
        Ok(())
    })
}

/// Larger rulesets.
fn sizes(report: &mut Report) -> Result<()> {
    for (count, limit) in [(10_000, 0.95), (1_000_000, 0.88)] {
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

/// Labs side by side, one for each way, so that they can be measured in turn.
pub(crate) struct Bench {
    labs: Vec<(Way, Lab, Site)>,
    pub(crate) ruleset: Ruleset,
}

impl Bench {
    pub(crate) fn new(ways: &[Way], size: Size) -> Result<Self> {
        let ruleset = ruleset(size, false, &mut Rng::with_seed(5))?;
        let labs = ways.iter().map(|way| {
            let lab = Lab::build()?;
            peers::prepare(&lab)?;
            let mut config = CONFIG.replace("MODE", way.mode().unwrap_or("route"));
            if size != Size::Real {
                config = config.replace("[list]", "[list]\nfile = \"list.json\"");
            }
            let site = Site::new(&config)?;
            if way.mode().is_some() && size != Size::Real {
                fs::write(site.path().join("list.json"), to_json(&ruleset).to_string())?;
            }
            Ok((*way, lab, site))
        });
        Ok(Bench {
            labs: labs.collect::<Result<_>>()?,
            ruleset,
        })
    }

    /// Sets all ways up and calls a function with them.
    pub(crate) fn with_paths<T>(
        &self,
        function: impl FnOnce(&mut [Path<'_>]) -> Result<T>,
    ) -> Result<T> {
        let optimize: Vec<IpNet> = self
            .ruleset
            .rules
            .iter()
            .filter(|rule| rule.category == Category::Optimize)
            .flat_map(|rule| rule.prefixes.clone())
            .collect();
        let mut paths = Vec::with_capacity(self.labs.len());
        for (way, lab, site) in &self.labs {
            let path = Path::new(*way, lab, site, &optimize);
            paths.push(path.with_context(|| format!("setting up: {}", way.label()))?);
        }
        function(&mut paths)
    }

    /// Destinations that are steered.
    pub(crate) fn steered(&self, v6: bool) -> Vec<Destination> {
        let rng = &mut Rng::with_seed(6);
        let table = image(&self.ruleset).expect("it has been compiled before");
        let steering = self
            .ruleset
            .rules
            .iter()
            .filter(|rule| rule.action != Action::Pass);
        let prefixes: Vec<IpNet> = steering
            .flat_map(|rule| rule.prefixes.clone())
            .filter(|prefix| matches!(prefix, IpNet::V6(_)) == v6)
            .collect();
        let key = Transport::Udp.key(443);
        let is_steered = |destination: &Destination| {
            matches!(
                table.words().lookup(*destination, key),
                Some(Answer::Match(Outcome {
                    egress: Some(_),
                    ..
                }))
            )
        };
        std::iter::repeat_with(|| {
            let prefix = prefixes[rng.usize(..prefixes.len())];
            destination(address_in(rng, &prefix))
        })
        .filter(is_steered)
        .take(DESTINATIONS)
        .collect()
    }

    /// Destinations that no prefix covers.
    fn passing(&self, v6: bool) -> Result<Vec<Destination>> {
        let table = image(&self.ruleset)?;
        let questions = questions(&self.ruleset, &table, v6, 0, &mut Rng::with_seed(6));
        Ok(questions
            .iter()
            .map(|question| question.destination)
            .collect())
    }
}

/// A way that is set up, with its own generator and sinks.
pub(crate) struct Path<'a> {
    way: Way,
    pub(crate) lab: &'a Lab,
    pub(crate) site: &'a Site,
    asker: Asker,
    client: u32,
    _daemon: Option<Daemon<'a>>,
}

impl<'a> Path<'a> {
    fn new(way: Way, lab: &'a Lab, site: &'a Site, optimize: &[IpNet]) -> Result<Self> {
        let gateway = &lab.gateway;
        let traffic = [
            &b"traffic!"[..],
            &mac(gateway, "lan")?,
            &mac(&lab.client, "eth0")?,
            &mac(&lab.internet, "eth0")?,
            &mac(gateway, "inet")?,
            &index(gateway, "inet")?.to_ne_bytes(),
        ]
        .concat();
        let empty = image(&Ruleset::default())?;
        let mut asker = Asker::load_for_traffic(programs::object(), &empty, &traffic)?;
        for far_end in [&lab.internet, &lab.wan] {
            within(far_end, || asker.attach("sink", "eth0"))?;
        }
        let mut daemon = None;
        match way {
            Way::Nothing => within(gateway, || asker.attach("sink", "lan"))?,
            Way::Plain => within(gateway, || asker.attach("forward_plain", "lan"))?,
            Way::Fib => {
                peers::routes(gateway, optimize)?;
                within(gateway, || asker.attach("forward_fib", "lan"))?;
            }
            Way::Routes => peers::routes(gateway, optimize)?,
            Way::Nftables => peers::nftables(gateway, optimize)?,
            Way::Ipset => peers::ipset(gateway, optimize)?,
            Way::NftablesMasquerade => {
                peers::nftables(gateway, optimize)?;
                peers::masquerade(gateway)?;
            }
            Way::Redirect | Way::Route | Way::RouteMasquerade => {
                if way == Way::RouteMasquerade {
                    peers::masquerade(gateway)?;
                }
                let mut started = Daemon::start(site, gateway)?;
                if way == Way::Redirect {
                    started.wait_until(|_| site.next_hops_known(gateway))?;
                }
                daemon = Some(started);
            }
            Way::Untouched => {}
            Way::Rule => peers::marked_way(gateway)?,
        }
        Ok(Path {
            way,
            lab,
            site,
            asker,
            client: index(&lab.client, "eth0")?,
            _daemon: daemon,
        })
    }

    /// Sets what the packets are sent to.
    pub(crate) fn set(&mut self, destinations: &[Destination]) -> Result<()> {
        self.asker.set_destinations(destinations)
    }

    /// Sends packets and sees that all of them arrive. Returns the nanoseconds that each took.
    pub(crate) fn send(&mut self, v6: bool, bytes: usize, packets: u32) -> Result<f64> {
        // On the wire there are 4 more: 60 bytes are the shortest frame.
        let length = if bytes == 64 { 60 } else { bytes + 14 };
        let length = if v6 { length.max(62) } else { length };
        let mut frame = vec![0; length];
        frame[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        let before = self.asker.sunk()?;
        let (asker, client) = (&mut self.asker, self.client);
        let each = within(&self.lab.client, || asker.generate(&frame, client, packets))?;
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let arrived = self.asker.sunk()? - before;
            if arrived == u64::from(packets) {
                return Ok(each.as_secs_f64() * 1e9);
            }
            ensure!(
                Instant::now() < deadline,
                "{}: {arrived} of {packets} packets arrived",
                self.way.label()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
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

/// Calls a function on a thread in a namespace, on the core that everything runs on.
pub(crate) fn within<T: Send>(
    namespace: &Namespace,
    function: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let path = format!("/run/netns/{}", namespace.name());
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            pin(CORE)?;
            function()
        });
        thread
            .join()
            .unwrap_or_else(|_| bail!("a thread of the benchmark panicked"))
    })
}

/// Keeps this thread, and what it starts, on a core.
fn pin(core: usize) -> Result<()> {
    let mut cores = nix::sched::CpuSet::new();
    cores.set(core)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores)
        .with_context(|| format!("the benchmarks need core {core}"))
}

fn link(namespace: &Namespace, interface: &str) -> Result<Value> {
    let links: Value = serde_json::from_str(&namespace.ip(&format!("-j link show {interface}"))?)?;
    Ok(links[0].clone())
}

/// An interface's index.
fn index(namespace: &Namespace, interface: &str) -> Result<u32> {
    let index = link(namespace, interface)?["ifindex"]
        .as_u64()
        .context("no index")?;
    Ok(u32::try_from(index)?)
}

/// An interface's MAC address.
pub(crate) fn mac(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let link = link(namespace, interface)?;
    let text = link["address"].as_str().context("no address")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("no MAC address")
}

/// A random ruleset as the web service would send it.
pub(crate) fn to_json(ruleset: &Ruleset) -> Value {
    let sets = ruleset.rules.iter().map(|rule| {
        json!({
            "id": rule.key.id,
            "serviceArea": rule.service_area,
            "category": rule.category.to_string(),
            "ips": rule.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tcpPorts": "443",
            "udpPorts": "443",
        })
    });
    sets.collect()
}
