//! The probes of each egress and address family: when which target is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::lookup_host;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::meter::{DEAD_AFTER, Meter, SLOW_DEAD_AFTER};
use super::probe::{Bound, probe};
use super::{Kind, Measure, Target};
use crate::config::HealthConfig;
use crate::list::{Category, List};
use breakout_common::table::Transport;

/// Between the further quick probes that a lost one is followed by, to tell loss from death.
const BURST: Duration = Duration::from_millis(40);
/// Between the tries of a slow target that does not answer.
const RETRY: Duration = Duration::from_millis(700);
/// How often slow targets are tried while no quick one answers.
const UNAIDED: Duration = Duration::from_secs(2);
/// How long an address of a name is used.
const LOOKUP: Duration = Duration::from_secs(600);
/// How soon a name is looked up again that could not be.
const LOOKUP_AGAIN: Duration = Duration::from_secs(30);
/// How long a resolver may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most TCP targets that are taken from the list.
const MOST_DOORS: usize = 3;

/// What is probed by default besides addresses of the list: Teams' transport relays by their common name, and Exchange
/// Online's front doors. Microsoft, "Test Microsoft 365 connectivity" and endpoint set 1.
const NAMES: [(Kind, &str, u16); 2] = [
    (Kind::Stun, "world.tr.teams.microsoft.com", 3478),
    (Kind::Tls, "outlook.office365.com", 443),
];

/// The targets for egresses that name none: well-known names, and those Optimize prefixes that are single hosts.
pub fn default_targets(lists: &[List]) -> Vec<Target> {
    let mut targets: Vec<Target> = (NAMES.iter())
        .map(|(kind, host, port)| Target::new(*kind, *host, *port))
        .collect();
    let sets = lists.iter().flat_map(|list| &list.sets);
    let optimize = sets.filter(|set| set.category == Category::Optimize && set.withdrawn.is_none());
    let mut doors: BTreeMap<bool, BTreeSet<IpAddr>> = BTreeMap::new();
    for set in optimize {
        let has_https = |ports: &crate::list::PortRange| {
            ports.transport == Transport::Tcp && (ports.first..=ports.last).contains(&443)
        };
        if !set.ports.iter().any(has_https) {
            continue;
        }
        // A /31 or /127 of the list stands for two anycast addresses of one front door.
        let hosts = set
            .prefixes
            .iter()
            .filter(|prefix| prefix.max_prefix_len() - prefix.prefix_len() <= 1);
        for prefix in hosts {
            doors
                .entry(matches!(prefix, IpNet::V6(_)))
                .or_default()
                .insert(prefix.addr());
        }
    }
    for addresses in doors.into_values() {
        let addresses = addresses.into_iter().take(MOST_DOORS);
        targets.extend(addresses.map(|address| Target::new(Kind::Tcp, address.to_string(), 443)));
    }
    targets
}

/// What is probed, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// The egress.
    pub egress: String,
    /// The address family.
    pub v6: bool,
    /// The interface that probes are bound to.
    pub interface: String,
    /// The firewall mark that leads to the egress's routing table.
    pub mark: u32,
    /// The targets.
    pub targets: Vec<Target>,
    /// How often.
    pub health: HealthConfig,
}

/// What the probes of a path tell.
#[derive(Clone, Debug)]
pub struct Report {
    /// The egress.
    pub egress: String,
    /// The address family.
    pub v6: bool,
    /// What they tell now.
    pub measure: Measure,
}

/// All probers that run.
pub struct Probers {
    running: Vec<(Path, AbortHandle)>,
    sender: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
}

impl Default for Probers {
    fn default() -> Self {
        let (sender, reports) = mpsc::channel(64);
        Probers {
            running: Vec::new(),
            sender,
            reports,
        }
    }
}

impl Drop for Probers {
    fn drop(&mut self) {
        self.set(Vec::new());
    }
}

impl Probers {
    /// Probes these paths, and no others. Those that stay the same go on as they are. Must be called within a tokio runtime.
    pub fn set(&mut self, paths: Vec<Path>) {
        self.running.retain(|(path, task)| {
            let stays = paths.contains(path);
            if !stays {
                task.abort();
            }
            stays
        });
        for path in paths {
            if !self.running.iter().any(|(running, _)| *running == path) {
                let task = tokio::spawn(Prober::new(path.clone(), self.sender.clone()).run());
                self.running.push((path, task.abort_handle()));
            }
        }
    }

    /// Whether a path is probed as it is.
    pub fn is_running(&self, path: &Path) -> bool {
        self.running.iter().any(|(running, _)| running == path)
    }

    /// Whether a path is probed.
    pub fn is_probed(&self, egress: &str, v6: bool) -> bool {
        self.running
            .iter()
            .any(|(path, _)| path.egress == egress && path.v6 == v6)
    }

    /// The next report. May be dropped at any time without losing one.
    pub async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }
}

struct Prober {
    path: Path,
    bound: Bound,
    meters: Vec<Meter>,
    addresses: Vec<Option<SocketAddr>>,
    next_lookup: Instant,
    /// When each slow target is tried next; none for quick ones.
    next_slow: Vec<Option<Instant>>,
    next_quick: Instant,
    /// The quick target whose turn it is.
    turn: usize,
    /// Further quick probes to send at short intervals.
    burst: u32,
    /// Quick probes without an answer since the last one with.
    silence: u32,
    reports: mpsc::Sender<Report>,
}

impl Prober {
    fn new(path: Path, reports: mpsc::Sender<Report>) -> Self {
        let now = Instant::now();
        let meters: Vec<Meter> = path.targets.iter().cloned().map(Meter::new).collect();
        Prober {
            bound: Bound {
                interface: path.interface.clone(),
                mark: path.mark,
            },
            addresses: vec![None; meters.len()],
            next_lookup: now,
            next_slow: meters
                .iter()
                .map(|meter| (!meter.target.kind.is_quick()).then_some(now))
                .collect(),
            next_quick: now,
            turn: 0,
            burst: 0,
            silence: 0,
            meters,
            path,
            reports,
        }
    }

    async fn run(mut self) {
        let mut tries: JoinSet<(usize, Result<Duration, String>)> = JoinSet::new();
        let mut lookups = JoinSet::new();
        loop {
            let now = Instant::now();
            if self.next_lookup <= now {
                self.look_up(&mut lookups);
            }
            if self.next_quick <= now {
                self.quick(&mut tries);
            }
            for index in 0..self.meters.len() {
                if self.next_slow[index].is_some_and(|next| next <= now) {
                    self.next_slow[index] = Some(now + jittered(self.slow_interval()));
                    self.start(index, &mut tries);
                }
            }
            let next = self
                .next_slow
                .iter()
                .copied()
                .flatten()
                .chain([self.next_quick, self.next_lookup])
                .min();
            tokio::select! {
                () = sleep_until(next.unwrap_or(now + LOOKUP)) => {}
                Some(Ok((index, found))) = lookups.join_next(), if !lookups.is_empty() => {
                    self.looked_up(index, found);
                }
                Some(Ok((index, outcome))) = tries.join_next(), if !tries.is_empty() => {
                    self.note(index, outcome);
                    let report = Report {
                        egress: self.path.egress.clone(),
                        v6: self.path.v6,
                        measure: Measure::of(&self.known(), self.silence),
                    };
                    if self.reports.send(report).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// The meters of targets that have an address of the family.
    fn known(&self) -> Vec<Meter> {
        let meters = self.meters.iter().zip(&self.addresses);
        meters
            .filter(|(_, address)| address.is_some())
            .map(|(meter, _)| meter.clone())
            .collect()
    }

    /// Looks the names up again, beside the probes: a resolver may take long.
    fn look_up(&mut self, lookups: &mut JoinSet<(usize, Option<SocketAddr>)>) {
        self.next_lookup = Instant::now() + LOOKUP;
        let v6 = self.path.v6;
        for (index, meter) in self.meters.iter().enumerate() {
            let (host, port) = (meter.target.host.clone(), meter.target.port);
            if let Some(address) = meter.target.address() {
                self.addresses[index] =
                    (address.is_ipv6() == v6).then(|| SocketAddr::new(address, port));
                continue;
            }
            lookups.spawn(async move {
                let found = timeout(PATIENCE, lookup_host((host.as_str(), port))).await;
                let found = found.ok().and_then(Result::ok);
                let of_family = |address: &SocketAddr| address.is_ipv6() == v6;
                (
                    index,
                    found.and_then(|mut addresses| addresses.find(of_family)),
                )
            });
        }
    }

    /// Takes a looked up address. A name that cannot be looked up now keeps the one it had.
    fn looked_up(&mut self, index: usize, found: Option<SocketAddr>) {
        match found {
            Some(address) => self.addresses[index] = Some(address),
            None => self.next_lookup = self.next_lookup.min(Instant::now() + LOOKUP_AGAIN),
        }
    }

    /// Sends the next quick probe, to the targets in turn. Those that have never answered are left out where others have.
    fn quick(&mut self, tries: &mut JoinSet<(usize, Result<Duration, String>)>) {
        let interval = if self.burst > 0 {
            BURST
        } else {
            jittered(self.path.health.interval.0)
        };
        self.burst = self.burst.saturating_sub(1);
        self.next_quick = Instant::now() + interval;
        let is_quick = |index: &usize| {
            self.meters[*index].target.kind.is_quick() && self.addresses[*index].is_some()
        };
        let all: Vec<usize> = (0..self.meters.len()).filter(is_quick).collect();
        let proven: Vec<usize> = all
            .iter()
            .copied()
            .filter(|index| self.meters[*index].is_proven)
            .collect();
        let candidates = if proven.is_empty() || self.turn.is_multiple_of(20) {
            all
        } else {
            proven
        };
        if candidates.is_empty() {
            self.next_quick = Instant::now() + UNAIDED;
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        self.start(candidates[self.turn % candidates.len()], tries);
    }

    fn start(&self, index: usize, tries: &mut JoinSet<(usize, Result<Duration, String>)>) {
        let Some(address) = self.addresses[index] else {
            return;
        };
        let (target, patience) = (
            self.meters[index].target.clone(),
            self.meters[index].timeout(),
        );
        let bound = self.bound.clone();
        tries.spawn(async move { (index, probe(&target, address, &bound, patience).await) });
    }

    fn note(&mut self, index: usize, outcome: Result<Duration, String>) {
        let is_answered = outcome.is_ok();
        self.meters[index].note(outcome);
        let meter = &self.meters[index];
        if meter.target.kind.is_quick() {
            if is_answered {
                (self.silence, self.burst) = (0, 0);
            } else if meter.is_proven {
                self.silence = self.silence.saturating_add(1);
                if self.silence == 1 {
                    self.burst = DEAD_AFTER;
                    self.next_quick = Instant::now();
                }
            }
        } else if !is_answered && meter.misses < SLOW_DEAD_AFTER {
            self.next_slow[index] = Some(Instant::now() + jittered(RETRY));
        }
    }

    fn slow_interval(&self) -> Duration {
        let is_helped = |meter: &Meter| meter.target.kind.is_quick() && meter.is_proven;
        if self.meters.iter().any(is_helped) {
            self.path.health.slow_interval.0
        } else {
            self.path.health.slow_interval.0.min(UNAIDED)
        }
    }
}

/// The interval, up to a tenth shorter or longer, so that many gateways do not probe in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(fastrand::f64().mul_add(0.2, 0.9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{Instance, embedded};

    #[test]
    fn default_targets_are_of_the_list() {
        let targets = default_targets(&[embedded(Instance::Worldwide)]);
        let texts: Vec<String> = targets.iter().map(Target::to_string).collect();
        assert!(
            texts.contains(&"tcp:13.107.6.152:443".to_owned()),
            "{texts:?}"
        );
        assert!(texts.contains(&"tls:outlook.office365.com:443".to_owned()));
        let count = |v6: bool| {
            targets
                .iter()
                .filter(|target| target.address().is_some_and(|a| a.is_ipv6() == v6))
                .count()
        };
        assert!(
            (1..=MOST_DOORS).contains(&count(false)) && (1..=MOST_DOORS).contains(&count(true))
        );
    }
}
