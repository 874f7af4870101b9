//! Ways through a gateway, each set up in a lab of its own, with a generator and sinks.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout::datapath::Asker;
use breakout::ruleset::{Image, Ruleset};
use breakout_common::table::{Answer, Destination, Lookup, Outcome, Transport};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab, config_with_list};
use breakout_tests::netns::Namespace;
use breakout_tests::programs;
use breakout_tests::rulesets::address_in;
use fastrand::Rng;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::peers;
use crate::tables::{Size, image, questions, ruleset};

/// The core that everything runs on.
const CORE: usize = 1;
/// Destinations in rotation.
pub(crate) const DESTINATIONS: u32 = 65_536;

/// A way through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The sink on the gateway's own LAN interface: generator and sink alone.
    Nothing,
    /// XDP that redirects everything.
    Plain,
    /// The same with one cache line read for each flow.
    OneLine,
    Redirect,
    /// The same without pins.
    RedirectUnpinned,
    /// Redirect by TC, because the egress has a queue of the operator's.
    RedirectTc,
    Fib,
    Route,
    Routes,
    Nftables,
    Ipset,
    /// Redirect with translation by the programs.
    RedirectMasquerade,
    RouteMasquerade,
    NftablesMasquerade,
    /// Plain forwarding, by the WAN.
    Untouched,
    /// The same behind an XDP program that does nothing.
    PassXdp,
    /// The same behind an XDP and a TC program that do nothing.
    PassBoth,
    /// The same with an `ip rule` for each family that nothing matches.
    Rule,
}

impl Way {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Way::Nothing => "generator and sink",
            Way::Plain => "XDP redirect, no lookup",
            Way::OneLine => "XDP redirect, one line read",
            Way::Redirect => "Breakout redirect",
            Way::RedirectUnpinned => "redirect, unpinned",
            Way::RedirectTc => "redirect by TC, queued",
            Way::Fib => "XDP bpf_fib_lookup",
            Way::Route => "Breakout route",
            Way::Routes => "kernel routes",
            Way::Nftables => "nftables and ip rule",
            Way::Ipset => "ipset and ip rule",
            Way::RedirectMasquerade => "redirect, masquerade",
            Way::RouteMasquerade => "Breakout route, masquerade",
            Way::NftablesMasquerade => "nftables, masquerade",
            Way::Untouched => "without Breakout",
            Way::PassXdp => "an XDP program alone",
            Way::PassBoth => "XDP and TC programs alone",
            Way::Rule => "an ip rule alone",
        }
    }

    fn mode(self) -> Option<&'static str> {
        match self {
            Way::Redirect | Way::RedirectUnpinned | Way::RedirectTc | Way::RedirectMasquerade => {
                Some("redirect")
            }
            Way::Route | Way::RouteMasquerade => Some("route"),
            _ => None,
        }
    }

    fn is_unpinned(self) -> bool {
        self == Way::RedirectUnpinned
    }
}

/// Labs side by side, one for each way, so that they can be measured in turn.
pub(crate) struct Bench {
    labs: Vec<(Way, Lab, Site)>,
    /// Source ports of the traffic.
    ports: u32,
    ruleset: Ruleset,
    table: Image,
    /// All prefixes that are steered.
    steered: Vec<IpNet>,
}

impl Bench {
    pub(crate) fn new(ways: &[Way], size: Size) -> Result<Self> {
        Self::with_ports(ways, size, 1)
    }

    /// The same with traffic from so many source ports, a power of two, to each destination.
    pub(crate) fn with_ports(ways: &[Way], size: Size, ports: u32) -> Result<Self> {
        let ruleset = ruleset(size, false, &mut Rng::with_seed(5))?;
        let labs = ways.iter().map(|way| {
            let lab = Lab::build()?;
            peers::prepare(&lab)?;
            let mode = way.mode().unwrap_or("route");
            let mut config = match size {
                Size::Real => CONFIG.replace("MODE", mode),
                Size::Random(_) => config_with_list(mode),
            };
            if way == &Way::RedirectMasquerade {
                config = config.replace("probes", "masquerade = true\nprobes");
            }
            if way.is_unpinned() {
                config += "\n[pinning]\nenabled = false\n";
            } else if ports > 1 {
                config += "\n[pinning]\nsize = 1048576\n";
            }
            let site = Site::new(&config)?;
            if way.mode().is_some() && size != Size::Real {
                fs::write(site.path().join("list.json"), to_json(&ruleset).to_string())?;
            }
            Ok((*way, lab, site))
        });
        let labs = labs.collect::<Result<_>>()?;
        let steering = ruleset.rules.iter();
        let steering = steering.filter(|rule| rule.is_steered());
        Ok(Bench {
            labs,
            ports,
            table: image(&ruleset)?,
            steered: steering.flat_map(|rule| rule.prefixes.clone()).collect(),
            ruleset,
        })
    }

    /// Sets all ways up and calls a function with them.
    pub(crate) fn with_paths<T>(
        &self,
        function: impl FnOnce(&mut [Path<'_>]) -> Result<T>,
    ) -> Result<T> {
        let mut paths = Vec::with_capacity(self.labs.len());
        for (way, lab, site) in &self.labs {
            let path = Path::new(*way, lab, site, self);
            paths.push(path.with_context(|| format!("setting up: {}", way.label()))?);
        }
        function(&mut paths)
    }

    /// Destinations that are steered.
    pub(crate) fn steered(&self, v6: bool) -> Vec<Destination> {
        let rng = &mut Rng::with_seed(6);
        let of_family = self.steered.iter();
        let of_family = of_family.filter(|prefix| matches!(prefix, IpNet::V6(_)) == v6);
        let prefixes: Vec<&IpNet> = of_family.collect();
        let key = Transport::Udp.key(443);
        let is_steered = |destination: &Destination| {
            matches!(
                self.table.words().lookup(*destination, key, || None),
                Some(Answer::Match(Outcome {
                    preference: Some(_),
                    ..
                }))
            )
        };
        std::iter::repeat_with(|| {
            let prefix = prefixes[rng.usize(..prefixes.len())];
            Destination::from(address_in(rng, prefix))
        })
        .filter(is_steered)
        .take(DESTINATIONS as usize)
        .collect()
    }

    /// Destinations that no prefix covers.
    pub(crate) fn passing(&self, v6: bool) -> Vec<Destination> {
        let rng = &mut Rng::with_seed(6);
        let questions = questions(&self.ruleset, &self.table, v6, 0, rng).into_iter();
        questions.map(|question| question.destination).collect()
    }
}

/// A way that is set up, with its own generator and sinks.
pub(crate) struct Path<'a> {
    pub(crate) way: Way,
    pub(crate) lab: &'a Lab,
    pub(crate) site: &'a Site,
    asker: Asker,
    client: u32,
    /// Flows that the traffic makes before it comes round.
    pub(crate) flows: u32,
    _daemon: Option<Daemon<'a>>,
}

impl<'a> Path<'a> {
    fn new(way: Way, lab: &'a Lab, site: &'a Site, bench: &Bench) -> Result<Self> {
        let (gateway, optimize) = (&lab.gateway, &bench.steered);
        let traffic = [
            &b"traffic!"[..],
            &gateway.mac("lan")?,
            &lab.client.mac("eth0")?,
            &lab.internet.mac("eth0")?,
            &gateway.mac("inet")?,
            &gateway.index("inet")?.to_ne_bytes(),
            &(bench.ports - 1).to_ne_bytes(),
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
            Way::OneLine => within(gateway, || asker.attach("forward_one_line", "lan"))?,
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
            Way::Redirect
            | Way::RedirectUnpinned
            | Way::RedirectTc
            | Way::RedirectMasquerade
            | Way::Route
            | Way::RouteMasquerade => {
                if way == Way::RouteMasquerade {
                    peers::masquerade(gateway)?;
                }
                if way == Way::RedirectTc {
                    gateway.exec("tc qdisc replace dev inet root pfifo limit 10000")?;
                }
                let mut started = Daemon::start(site, gateway)?;
                if way.mode() == Some("redirect") {
                    started.wait_until(|_| site.next_hops_known(gateway))?;
                }
                daemon = Some(started);
            }
            Way::Untouched => {}
            Way::PassXdp => within(gateway, || asker.attach("pass_all", "lan"))?,
            Way::PassBoth => within(gateway, || {
                asker.attach("pass_all", "lan")?;
                asker.attach_tc("pass_all_tc", "lan")
            })?,
            Way::Rule => peers::marked_way(gateway)?,
        }
        Ok(Path {
            way,
            lab,
            site,
            asker,
            flows: bench.ports * DESTINATIONS,
            client: lab.client.index("eth0")?,
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
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Calls a function on a thread in a namespace, on the core that everything runs on.
fn within<T: Send>(
    namespace: &Namespace,
    function: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    namespace.enter(|| {
        pin(CORE)?;
        function()
    })
}

/// Keeps this thread, and what it starts, on a core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut cores = nix::sched::CpuSet::new();
    cores.set(core)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores)
        .with_context(|| format!("the benchmarks need core {core}"))
}

/// A random ruleset as the web service would send it.
fn to_json(ruleset: &Ruleset) -> Value {
    let sets = ruleset.rules.iter().map(|rule| {
        json!({
            "id": rule.key.id(),
            "serviceArea": rule.service_area,
            "category": rule.category.to_string(),
            "ips": rule.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tcpPorts": "443",
            "udpPorts": "443",
        })
    });
    sets.collect()
}
