//! The probes of each egress and address family: when which target is tried.

mod routes;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use routes::ProbeRoutes;
use tokio::net::lookup_host;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use super::budget::{Allowance, Pace, pace};
use super::meter::{DEAD_AFTER, Meter, SLOW_DEAD_AFTER};
use super::peer::Trust;
use super::probe::{Answered, Bound, Failure, probe};
use super::stun::Method;
use super::{Measure, Target};
use crate::config::HealthConfig;
use crate::links::{Links, ProbeWay};

/// Between the further quick probes that a lost one is followed by, to tell loss from death.
const BURST: Duration = Duration::from_millis(40);
/// Quick probes in a row without an answer after which the next hop is asked for its MAC address.
const DOUBT: u32 = 2;
/// Between the tries of a slow target that does not answer.
const RETRY: Duration = Duration::from_millis(300);
/// How often slow targets are tried while no quick one answers.
const UNAIDED: Duration = Duration::from_secs(2);
/// A quick target that has never answered gets one of so many probes while others answer.
const UNPROVEN: u64 = 20;
/// How long an address of a name is used.
const LOOKUP: Duration = Duration::from_secs(600);
/// How soon a name is looked up again that could not be.
const LOOKUP_AGAIN: Duration = Duration::from_secs(30);
/// For how long an answer to a quick probe is heard that was taken for lost: longer than most queues of modems and mobile networks.
const LATE: Duration = Duration::from_secs(5);
/// While a target that does not answer is tried at growing intervals, the longest.
const AGAIN: Duration = Duration::from_secs(300);
/// At most one probe in that time is sent on suspicion where probes have a budget.
const SUSPICION: Duration = Duration::from_secs(5);
/// How soon certificates are read again while somebody else answers: they may have been what was wrong.
const TRUST_AGAIN: Duration = Duration::from_secs(60);
/// How soon a probe is tried again that waits for the certificates.
const SOON: Duration = Duration::from_millis(50);
/// How long a resolver may take.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// The way that probes have routes along, where the mark leads nowhere.
    pub way: Option<ProbeWay>,
    /// The targets.
    pub targets: Vec<Target>,
    /// How often.
    pub health: HealthConfig,
    /// How many bytes of a month they may cost.
    pub budget: Option<u64>,
}

/// What the probes of a path tell.
#[derive(Clone, Debug)]
pub struct Report {
    /// The path.
    pub path: Arc<Path>,
    /// What they tell now.
    pub measure: Measure,
    /// Whether the last answers are missing, so that the next hop may have another MAC address.
    pub is_doubtful: bool,
}

/// All probers that run.
pub struct Probers {
    running: Vec<Running>,
    /// Where they run.
    runtime: Handle,
    /// By which they make their routes.
    links: Option<Links>,
    reports: Arc<Reports>,
}

struct Running {
    path: Arc<Path>,
    task: AbortHandle,
    /// Says that something seems to be wrong there.
    suspicion: Arc<Notify>,
}

impl Drop for Probers {
    fn drop(&mut self) {
        for running in &self.running {
            running.task.abort();
        }
    }
}

impl Probers {
    /// Probers that run on a runtime of their own choice, so that nothing else there can hold them up.
    pub fn new(runtime: Handle) -> Self {
        // Not on their own runtime: the kernel may take long over a route.
        let links = Links::open();
        let links = links.inspect_err(|error| tracing::error!("probes have no routes: {error:#}"));
        Probers {
            running: Vec::new(),
            links: links.ok(),
            runtime,
            reports: Arc::default(),
        }
    }

    /// Probes these paths, and no others. Those that stay the same go on as they are.
    pub fn set(&mut self, paths: Vec<Path>) {
        self.running.retain(|Running { path, task, .. }| {
            let stays = paths.contains(path);
            if !stays {
                task.abort();
                // A path that takes its place removes what it does not need itself.
                let goes_on = paths.iter().any(|other| other.way == path.way);
                if let (false, Some(way), Some(links)) = (goes_on, path.way, &self.links) {
                    let routes = ProbeRoutes::new(links.clone(), way);
                    let _within = self.runtime.enter();
                    routes.retain(&BTreeSet::new());
                }
            }
            stays
        });
        for path in paths {
            if !self.running.iter().any(|running| *running.path == path) {
                let path = Arc::new(path);
                let links = self.links.clone();
                let suspicion = Arc::<Notify>::default();
                let prober = Prober::new(Arc::clone(&path), links, Arc::clone(&self.reports));
                let task = self.runtime.spawn(prober.run(Arc::clone(&suspicion)));
                self.running.push(Running {
                    path,
                    task: task.abort_handle(),
                    suspicion,
                });
            }
        }
    }

    /// Whether a report is of a path that is probed still, and not of one that has been left since.
    pub fn is_current(&self, report: &Report) -> bool {
        (self.running.iter()).any(|running| running.path == report.path)
    }

    /// Probes an egress and address family soon, because flows there are no longer answered.
    pub fn suspect(&self, egress: &str, v6: bool) {
        let is_meant = |path: &Path| path.egress == egress && path.v6 == v6;
        for running in self
            .running
            .iter()
            .filter(|running| is_meant(&running.path))
        {
            running.suspicion.notify_one();
        }
    }

    /// Where the reports are.
    pub fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.reports)
    }
}

/// The latest report of each prober. A newer one takes the place of one that nobody has read, so none is read late.
#[derive(Default)]
pub struct Reports {
    latest: Mutex<Vec<Report>>,
    arrived: Notify,
}

impl Reports {
    fn put(&self, report: Report) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.retain(|other| other.path != report.path);
        latest.push(report);
        self.arrived.notify_one();
    }

    /// Waits for reports and takes those that are there. May be dropped at any time without losing one.
    pub async fn next(&self) -> Vec<Report> {
        loop {
            let latest = {
                let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *latest)
            };
            if !latest.is_empty() {
                return latest;
            }
            self.arrived.notified().await;
        }
    }
}

/// What a name was found to be: nothing if nobody answered, and no address if there is none of the family.
type Found = Option<Option<SocketAddr>>;

/// What a probe came to.
struct Outcome {
    index: usize,
    /// Whether the target was silent when it was sent.
    was_silent: bool,
    /// Whether it had been taken for lost.
    is_late: bool,
    answer: Result<Answered, Failure>,
}

struct Prober {
    path: Arc<Path>,
    bound: Bound,
    /// Whose certificates are believed; none before they were read.
    trust: Option<Trust>,
    /// When they were read last.
    trust_read: Instant,
    pace: Pace,
    allowance: Option<Allowance>,
    /// When a suspicion was followed last.
    suspected: Option<Instant>,
    routes: Option<ProbeRoutes>,
    meters: Vec<Meter>,
    addresses: Vec<Option<SocketAddr>>,
    next_lookup: Instant,
    last_lookup: Instant,
    /// Whether it is known of each target if it has an address.
    is_looked_up: Vec<bool>,
    /// When each slow target is tried next; none for quick ones.
    next_slow: Vec<Option<Instant>>,
    next_quick: Instant,
    /// What each relay has answered before.
    methods: Vec<Option<Method>>,
    /// How many quick probes were sent.
    sent: u64,
    /// The number of each target's last quick probe; 0 before the first.
    asked: Vec<u64>,
    /// Further quick probes to send at short intervals.
    burst: u32,
    /// Quick probes without an answer since the last one with.
    silence: u32,
    /// Whether a slow target has answered in that silence.
    door_opened: bool,
    /// What the tries come to.
    outcomes: (UnboundedSender<Outcome>, UnboundedReceiver<Outcome>),
    reports: Arc<Reports>,
}

impl Prober {
    fn new(path: Arc<Path>, links: Option<Links>, reports: Arc<Reports>) -> Self {
        let now = Instant::now();
        let meters: Vec<Meter> = path.targets.iter().cloned().map(Meter::new).collect();
        Prober {
            pace: pace(&path.health, &path.targets, path.budget),
            allowance: path.budget.map(|budget| Allowance::new(budget, now)),
            suspected: None,
            trust: None,
            trust_read: now,
            bound: Bound {
                interface: path.interface.clone(),
                mark: path.mark,
                way: path.way,
            },
            routes: path
                .way
                .zip(links)
                .map(|(way, links)| ProbeRoutes::new(links, way)),
            addresses: vec![None; meters.len()],
            next_lookup: now,
            last_lookup: now,
            is_looked_up: vec![false; meters.len()],
            next_slow: meters
                .iter()
                .map(|meter| (!meter.target.kind.is_quick()).then_some(now))
                .collect(),
            next_quick: now,
            methods: vec![None; meters.len()],
            sent: 0,
            asked: vec![0; meters.len()],
            burst: 0,
            silence: 0,
            door_opened: false,
            outcomes: unbounded_channel(),
            meters,
            path,
            reports,
        }
    }

    async fn run(mut self, suspicion: Arc<Notify>) {
        let mut tries: JoinSet<()> = JoinSet::new();
        let mut lookups = JoinSet::new();
        let mut reading = JoinSet::new();
        self.read_trust(&mut reading);
        loop {
            let now = Instant::now();
            while tries.try_join_next().is_some() {}
            if self.next_lookup <= now {
                self.look_up(&mut lookups);
                if lookups.is_empty() {
                    self.retain_routes();
                }
            }
            if self.next_quick <= now {
                self.quick(&mut tries);
            }
            for index in 0..self.meters.len() {
                if self.next_slow[index].is_some_and(|next| next <= now) {
                    let is_early =
                        self.trust.is_none() && self.meters[index].target.is_verifiable();
                    if is_early {
                        self.next_slow[index] = Some(now + SOON);
                        continue;
                    }
                    self.next_slow[index] = Some(now + jittered(self.slow_interval(index)));
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
                () = sleep_until(next.unwrap_or(now + LOOKUP)) => continue,
                Some(Ok((index, found))) = lookups.join_next(), if !lookups.is_empty() => {
                    self.looked_up(index, found);
                    // While there are others to come, nobody knows yet that there is nothing to ask.
                    if !lookups.is_empty() {
                        continue;
                    }
                    self.retain_routes();
                }
                Some(outcome) = self.outcomes.1.recv() => {
                    let is_foreign = matches!(outcome.answer, Err(Failure::Foreign(_)));
                    self.note(outcome);
                    if is_foreign && self.trust_read.elapsed() > TRUST_AGAIN && reading.is_empty() {
                        self.read_trust(&mut reading);
                    }
                }
                Some(read) = reading.join_next(), if !reading.is_empty() => {
                    self.trust = read.ok().flatten().or(self.trust.take());
                    continue;
                }
                () = suspicion.notified() => {
                    self.suspect();
                    continue;
                }
            }
            let known = self.known();
            let is_doubtful = self.silence >= DOUBT
                || (!known.is_empty() && known.iter().all(|meter| meter.misses > 0));
            self.reports.put(Report {
                path: Arc::clone(&self.path),
                measure: Measure::of(&known, self.silence, self.door_opened),
                is_doubtful,
            });
        }
    }

    /// The meters of targets that have an address of the family, or may have one that is yet to be shown as theirs.
    fn known(&self) -> Vec<Meter> {
        let targets = self.meters.iter().enumerate();
        targets
            .filter(|(index, meter)| {
                let is_awaited = !self.is_looked_up[*index] && meter.target.is_verifiable();
                self.addresses[*index].is_some() || is_awaited
            })
            .map(|(_, meter)| meter.clone())
            .collect()
    }

    /// Reads the certificates beside the runtime, which fail-over shares. Those that are built in take the place of what cannot be read.
    fn read_trust(&mut self, reading: &mut JoinSet<Option<Trust>>) {
        self.trust_read = Instant::now();
        let file = self.path.health.ca_file.clone();
        let has_trust = self.trust.is_some();
        reading.spawn(async move {
            let read = spawn_blocking(move || Trust::read(file.as_deref()));
            let read = match timeout(PATIENCE, read).await {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(anyhow!("certificates cannot be read within {PATIENCE:?}")),
            };
            match read {
                Ok(trust) => Some(trust),
                Err(error) => {
                    tracing::error!("probes verify certificates by fewer authorities: {error:#}");
                    let built_in = || Trust::built_in().ok();
                    (!has_trust).then(built_in).flatten()
                }
            }
        });
    }

    /// Looks the names up again, beside the probes: a resolver may take long.
    fn look_up(&mut self, lookups: &mut JoinSet<(usize, Found)>) {
        self.last_lookup = Instant::now();
        self.next_lookup = self.last_lookup + LOOKUP;
        let v6 = self.path.v6;
        for (index, meter) in self.meters.iter().enumerate() {
            let (host, port) = (meter.target.host.clone(), meter.target.port);
            if let Some(address) = meter.target.address() {
                self.addresses[index] =
                    (address.is_ipv6() == v6).then(|| SocketAddr::new(address, port));
                self.is_looked_up[index] = true;
                continue;
            }
            lookups.spawn(async move {
                let found = timeout(PATIENCE, lookup_host((host.as_str(), port))).await;
                let found = found.ok().and_then(Result::ok);
                let of_family = |address: &SocketAddr| address.is_ipv6() == v6;
                (index, found.map(|mut all| all.find(of_family)))
            });
        }
    }

    /// Removes routes to what is no longer probed.
    fn retain_routes(&self) {
        if let Some(routes) = &self.routes {
            let wanted = self.addresses.iter().flatten();
            routes.retain(&wanted.map(SocketAddr::ip).collect());
        }
    }

    /// Takes a looked up address. A name that cannot be looked up now keeps the one it had.
    fn looked_up(&mut self, index: usize, found: Found) {
        self.is_looked_up[index] = true;
        match found {
            Some(Some(address)) => {
                let before = self.addresses[index].replace(address);
                if before != Some(address) && self.next_slow[index].is_some() {
                    self.next_slow[index] = Some(Instant::now());
                }
            }
            Some(None) => {}
            None => self.next_lookup = self.next_lookup.min(Instant::now() + LOOKUP_AGAIN),
        }
    }

    /// Sends the next quick probe, to the targets in turn.
    fn quick(&mut self, tries: &mut JoinSet<()>) {
        let interval = if self.burst > 0 && self.may_hurry() {
            BURST
        } else {
            jittered(self.pace.quick)
        };
        self.burst = self.burst.saturating_sub(1);
        self.next_quick = Instant::now() + interval;
        match self.next_target() {
            Some(index) => {
                self.sent += 1;
                self.asked[index] = self.sent;
                self.start(index, tries);
            }
            None => self.next_quick = Instant::now() + UNAIDED,
        }
    }

    /// The quick target that was asked longest ago. Those that have never answered are rarely asked where others have.
    fn next_target(&self) -> Option<usize> {
        let quick = (0..self.meters.len()).filter(|index| {
            self.meters[*index].target.kind.is_quick() && self.addresses[*index].is_some()
        });
        let is_due = |index: &usize| {
            let last = self.asked[*index];
            self.meters[*index].is_proven || last == 0 || self.sent - last >= UNPROVEN
        };
        quick.min_by_key(|index| (!is_due(index), self.asked[*index]))
    }

    fn start(&mut self, index: usize, tries: &mut JoinSet<()>) {
        let (Some(address), Some(trust)) = (self.addresses[index], self.trust.clone()) else {
            return;
        };
        if let Some(allowance) = &mut self.allowance {
            allowance.spend(self.meters[index].target.kind, Instant::now());
        }
        let (target, patience) = (
            self.meters[index].target.clone(),
            self.meters[index].timeout(),
        );
        let (bound, method) = (self.bound.clone(), self.methods[index]);
        let was_silent = self.meters[index].is_silent();
        let routes = self.routes.clone();
        let outcomes = self.outcomes.0.clone();
        let late = if target.kind.is_quick() {
            LATE.saturating_sub(patience)
        } else {
            Duration::ZERO
        };
        tries.spawn(async move {
            let tell = |answer, is_late| {
                // Who does not listen any more has left the path.
                let _ = outcomes.send(Outcome {
                    index,
                    was_silent,
                    is_late,
                    answer,
                });
            };
            let led = match &routes {
                Some(routes) => routes.lead(address.ip()).await,
                None => Ok(()),
            };
            if let Err(error) = led {
                return tell(Err(Failure::Silence(format!("{error:#}"))), false);
            }
            let attempt = probe(&target, address, method, &bound, &trust, patience);
            tokio::pin!(attempt);
            match timeout(patience, &mut attempt).await {
                Ok(answer) => tell(answer, false),
                Err(_) => {
                    let why = format!("no answer within {} ms", patience.as_millis());
                    tell(Err(Failure::Silence(why)), false);
                    if let Ok(Ok(answered)) = timeout(late, attempt).await {
                        tell(Ok(answered), true);
                    }
                }
            }
        });
    }

    fn note(&mut self, outcome: Outcome) {
        let Outcome {
            index,
            was_silent,
            is_late,
            answer,
        } = outcome;
        let is_answered = answer.is_ok();
        let is_foreign = matches!(answer, Err(Failure::Foreign(_)));
        if let (false, Some(routes), Some(address)) =
            (is_answered, &self.routes, self.addresses[index])
        {
            routes.lead_again(address.ip());
        }
        // It was sent while nothing came back, which is known; a later one has been answered by now.
        if !is_answered && was_silent && !self.meters[index].is_silent() {
            return;
        }
        let is_quick = self.meters[index].target.kind.is_quick();
        if is_answered && self.was_dead(is_quick) {
            self.meters.iter_mut().for_each(Meter::forgive);
            // They are well again too, as far as they were not.
            self.ask_doors(|meter| meter.is_proven && meter.misses > 0);
        }
        if let Ok(Answered {
            method: Some(method),
            ..
        }) = &answer
        {
            self.methods[index] = Some(*method);
        }
        match answer {
            Ok(answered) if is_late => self.meters[index].note_late(answered.took),
            answer => self.meters[index].note(answer.map(|answered| answered.took)),
        }
        if self.meters[index].is_silent() {
            // Another relay may have the name, or the address, by now.
            self.methods[index] = None;
        }
        let is_lost = self.meters[index].misses == SLOW_DEAD_AFTER && !is_quick;
        if is_foreign || is_lost {
            // The name may have another address by now, or had one of whoever answers.
            let soon = (self.last_lookup + LOOKUP_AGAIN).max(Instant::now());
            self.next_lookup = self.next_lookup.min(soon);
        }
        let meter = &self.meters[index];
        if is_quick {
            if is_answered {
                // Behind a late answer the next miss is no alarm: a full queue would have one after each probe.
                self.silence = if is_late { self.silence.min(1) } else { 0 };
                self.burst = 0;
            } else if meter.is_proven {
                self.silence = self.silence.saturating_add(1);
                self.hear_silence();
            }
        } else if is_answered {
            self.door_opened = true;
        } else if meter.misses < SLOW_DEAD_AFTER && self.may_hurry() {
            self.next_slow[index] = Some(Instant::now() + jittered(RETRY));
        } else if self.pace.is_held {
            self.next_slow[index] = Some(Instant::now() + jittered(self.slow_interval(index)));
        }
    }

    /// Tells whether a probe may be sent that is not planned.
    fn may_hurry(&self) -> bool {
        self.allowance.as_ref().is_none_or(Allowance::has_more)
    }

    /// Probes some of the slow targets now.
    fn ask_doors(&mut self, which: impl Fn(&Meter) -> bool) {
        let now = Instant::now();
        for (next, meter) in self.next_slow.iter_mut().zip(&self.meters) {
            *next = next.map(|next| if which(meter) { now } else { next });
        }
    }

    /// Whether nothing of the kind that tells of the link has answered lately: the quick targets, or the others where none of
    /// those has ever answered.
    fn was_dead(&self, is_quick: bool) -> bool {
        let proven = || self.meters.iter().filter(|meter| meter.is_proven);
        if proven().any(|meter| meter.target.kind.is_quick()) {
            return is_quick && self.silence >= DEAD_AFTER;
        }
        proven().all(Meter::is_silent)
    }

    /// A quick probe was not answered. Is it the link, or only who was asked?
    fn hear_silence(&mut self) {
        let now = Instant::now();
        if self.silence == 1 {
            self.burst = DEAD_AFTER;
            self.next_quick = now;
            self.door_opened = false;
            if self.may_hurry() {
                self.ask_doors(|meter| meter.is_proven);
            }
        } else if self.silence == DEAD_AFTER {
            // The name may have another address by now.
            self.next_lookup = now;
        }
    }

    /// Probes at once where the next probe would be long in coming: a quick target, or the others where none of those answers.
    fn suspect(&mut self) {
        let now = Instant::now();
        let is_early = (self.suspected).is_some_and(|before| now - before < SUSPICION);
        if !self.pace.is_held || is_early || !self.may_hurry() {
            return;
        }
        self.suspected = Some(now);
        let mut proven = self.meters.iter().filter(|meter| meter.is_proven);
        if proven.any(|meter| meter.target.kind.is_quick()) {
            self.next_quick = now;
        } else {
            self.ask_doors(|meter| meter.is_proven);
        }
    }

    fn slow_interval(&self, index: usize) -> Duration {
        if self.pace.is_held {
            let misses = self.meters[index].misses;
            let Some(doublings) = misses.checked_sub(SLOW_DEAD_AFTER) else {
                return self.pace.slow;
            };
            // At growing intervals until it answers again.
            let again = UNAIDED * 2u32.pow(doublings.min(8));
            return again.min(AGAIN).min(self.pace.slow);
        }
        let is_helped = |meter: &Meter| meter.target.kind.is_quick() && meter.is_proven;
        if self.silence < DEAD_AFTER && self.meters.iter().any(is_helped) {
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
mod tests;
