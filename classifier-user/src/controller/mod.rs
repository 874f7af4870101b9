//! The daemon: keeps the data path, the rules and the routes as configured, and answers on the control socket.

mod active_paths;
mod applied;
mod change;
mod clock;
mod delta;
mod egress;
mod failover;
mod faults;
mod follow;
mod install;
mod lans;
mod leaving;
mod lists;
mod looks;
mod mappings;
mod nat;
mod obstacles;
mod offline;
mod orders;
mod passive;
mod pinning;
mod programs;
mod public;
mod reports;
mod sources;
mod state;
mod translation;
mod unload;
mod updates;
mod ways;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior, interval, timeout};

use crate::addresses::{KnownBy, Ledger};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{EventsReport, MetricsServer, NatStatus, ProgramStatus, Request, Server};
use crate::datapath::{DataPath, LanPlan};
use crate::doctor::{Level, examine};
use crate::durable::is_full;
use crate::events::Events;
use crate::exit::{Code, WithCode};
use crate::links::{Changes, Links, Removals};
use crate::list::List;
use crate::ruleset::{Ruleset, Slots};
use crate::timestamp::Timestamp;
use applied::AppliedRulesets;
use failover::Failover;
use install::Unsaved;
use leaving::Leaving;
use looks::Looks;
use nat::NatKeeper;
use obstacles::Obstacles;
use sources::Sources;
use state::{Persistent, StateDirectory};
use translation::Translation;

pub use egress::mark_of;
pub use lists::{
    make_loadable, make_ruleset, name_of, offline_preferences, preference_names, read_lists,
    report, summary,
};
pub use offline::fetch;
pub use state::require_privileges;
pub use unload::unload;

/// Interval at which the kernel's neighbour entries are used, so that they do not grow stale, and everything is looked at
/// even if no change was told of.
const REFRESH: Duration = Duration::from_secs(10);

/// Interval between looks whether something is due.
const CLOCK: Duration = Duration::from_secs(1);

/// Time for which what has failed is left alone.
const RETRY: Duration = Duration::from_secs(30);

/// The longest examination for obstacles, and the part of it that the start waits for.
const EXAMINE: Duration = Duration::from_secs(30);
const EXAMINE_FIRST: Duration = Duration::from_secs(2);

/// Number of descriptors that is enough: each LAN interface takes about thirty.
const DESCRIPTORS: u64 = 65_536;

/// Interval at which the programs' log is read with `--trace`.
const TRACE_INTERVAL: Duration = Duration::from_millis(50);

/// Arguments of `breakout run`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// A list that takes the place of the configured one.
    pub list: Option<PathBuf>,
    /// True if the data path logs each decision.
    pub trace: bool,
    /// True if everything stays installed at the end, for the next controller to take over.
    pub leave: bool,
}

/// A controller with everything installed.
struct Controller {
    options: Options,
    config: Config,
    lists: Vec<List>,
    sources: Sources,
    /// Looks at the lists' source that are being taken.
    looks: Looks,
    applied: AppliedRulesets,
    ruleset: Ruleset,
    /// The time that its grace times were reckoned from.
    as_of: Timestamp,
    /// Its hash, which takes long to compute for a large one.
    ruleset_hash: String,
    slots: Slots,
    generation: u32,
    links: Links,
    /// Subscription to changes of routes and rules.
    changes: Changes,
    lans: Vec<LanPlan>,
    /// The public ports of translated flows, as they were counted last.
    nat_status: Option<NatStatus>,
    /// The egresses, how they stand, and the path table in force.
    failover: Failover,
    translation: Translation,
    nat_keeper: NatKeeper,
    obstacles: Obstacles,
    leaving: Leaving,
    events: Events,
    ledger: Ledger,
    /// The public addresses at the last look.
    seen_addresses: Vec<(String, IpAddr, KnownBy)>,
    /// Last status line for the service manager.
    told: String,
    datapath: DataPath,
    state: StateDirectory,
    persistent: Persistent,
    clock: Clock,
    adopted: bool,
    /// True if the links are to be looked at.
    wants_look: bool,
    unsaved: Option<Unsaved>,
    /// Before then nothing that has failed is tried again.
    retry_at: Option<Instant>,
    trace_readers: JoinSet<()>,
    /// Attachment of the programs at the last look.
    programs: Vec<ProgramStatus>,
    /// Reason why LAN interfaces cannot be attached to, by their names.
    missing_lans: BTreeMap<String, String>,
    without_xdp: lans::WithoutXdp,
    started: Instant,
}

/// Runs a controller until it is told to stop.
///
/// # Errors
///
/// When it cannot start; then nothing is left behind. When it cannot remove something at the end.
pub async fn run(options: Options) -> Result<()> {
    require_privileges().code(Code::Permission)?;
    raise_descriptor_limit();
    let mut stop = Stop::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let changes = Changes::watch().code(Code::System)?;
    let (sender, requests) = mpsc::channel(16);
    let config = install::read(&options)?;
    let state = StateDirectory::lock(&config.state.directory)?;
    let sources = Sources::open(&config, options.list.as_deref())?;
    change::warn_of_problems(&sources.lists());
    let server = match Server::start(&config.control.socket, sender.clone()) {
        Err(error) if error.downcast_ref().is_some_and(is_full) => {
            tracing::error!(
                "{error:#}; no command is answered until there is room and breakout is restarted"
            );
            None
        }
        started => Some(started.code(Code::System)?),
    };
    let metrics = match config.metrics.listen {
        Some(address) => Some(
            MetricsServer::start(address, sender)
                .await
                .code(Code::System)?,
        ),
        None => None,
    };
    let mut controller = Controller::start(options, config, sources, state, changes).await?;
    controller.warn_of_clashes().await;
    if controller.adopted {
        tracing::info!("took over from an earlier controller");
    }
    let lists: Vec<String> = controller.lists.iter().map(List::name).collect();
    tracing::info!(
        "ready: generation {}, {} endpoint sets, list {}",
        controller.generation,
        controller.ruleset.rules.len(),
        lists.join(", "),
    );
    tell(&[NotifyState::Ready]);
    controller.serve(requests, &mut stop, &mut hangup).await;
    tell(&[NotifyState::Stopping]);
    drop((server, metrics));
    if controller.options.leave {
        tracing::info!("stopping: programs, rules and routes stay, and steer on as they do now");
        return Ok(());
    }
    tracing::info!("stopping: removing programs, rules and routes");
    controller.stop().await
}

/// Allows this process as many descriptors as it may allow itself, if it may. Programs by `select` are not run here.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard.min(DESCRIPTORS)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(DESCRIPTORS), hard);
    }
}

/// Tells the service manager, if there is one that wants to know.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}

/// Waits until somebody removes rules of nftables, if that can be seen.
async fn removed(removals: &mut Option<Removals>) {
    if let Some(seen) = removals {
        match seen.wait().await {
            Ok(()) => return,
            Err(error) => tracing::warn!("changes of nftables are seen late: {error}"),
        }
        *removals = None;
    }
    std::future::pending::<()>().await;
}

/// SIGTERM or SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        Ok(Stop {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Controller {
    async fn serve(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        stop: &mut Stop,
        hangup: &mut Signal,
    ) {
        let watched = sd_notify::watchdog_enabled().is_some();
        // Without it the regular looks find what is missing.
        let mut removals = Removals::watch(&self.nat(&[]).table)
            .inspect_err(|error| tracing::debug!("{error:#}"))
            .ok();
        let mut refresh = interval(REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut clock = interval(CLOCK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_look = time::Instant::now();
        loop {
            tokio::select! {
                () = stop.wait() => return,
                _ = hangup.recv() => {
                    match self.reload().await {
                        Ok(done) => tracing::info!("reloaded: generation {}", done.to_generation),
                        Err(error) => tracing::error!("not reloaded, nothing has changed: {error:#}"),
                    }
                }
                () = self.failover.woken() => {
                    self.after_failover();
                    self.look_at_translation();
                }
                () = self.changes.wait(), if !self.wants_look => self.wants_look = true,
                () = time::sleep_until(next_look), if self.wants_look => {
                    self.changes.gather().await;
                    self.wants_look = false;
                    let started = time::Instant::now();
                    self.follow().await;
                    // A large routing table that changes all the time takes a part of the time only.
                    next_look = time::Instant::now() + started.elapsed() * 4;
                }
                () = removed(&mut removals) => self.keep_nat(),
                kept = self.nat_keeper.kept() => self.kept_nat(kept),
                found = self.obstacles.found() => self.found_obstacles(found),
                done = self.translation.done() => self.looked_at_translation(done),
                _ = refresh.tick() => {
                    egress::refresh_neighbours(&self.links, &self.egresses(), false).await;
                    self.follow().await;
                    self.keep_nat();
                    self.look_at_programs().await;
                    self.tidy_pins().await;
                    self.tidy_mappings();
                }
                _ = clock.tick() => {
                    self.on_time().await;
                    if watched && self.failover.is_alive() {
                        tell(&[NotifyState::Watchdog]);
                    }
                }
                Some(done) = self.looks.next(), if !self.looks.is_idle() => self.looked(done).await,
                Some(request) = requests.recv() => self.answer(request).await,
            }
        }
    }

    /// Logs what stands in the way; what takes long to find, later.
    async fn warn_of_clashes(&self) {
        let (config, ruleset) = (self.config.clone(), self.ruleset.clone());
        let examined = tokio::spawn(async move {
            let examined = timeout(EXAMINE, examine(&config, &ruleset)).await;
            match examined.unwrap_or_else(|_| Ok(Vec::new())) {
                Ok(findings) => {
                    for finding in findings
                        .iter()
                        .filter(|finding| finding.level > Level::Note)
                    {
                        tracing::warn!("{finding}");
                    }
                }
                Err(error) => tracing::warn!("cannot look for what stands in the way: {error:#}"),
            }
        });
        let _ = timeout(EXAMINE_FIRST, examined).await;
    }

    async fn answer(&mut self, request: Request) {
        self.follow_clock();
        // A client that has gone away meanwhile wants no answer.
        match request {
            Request::Status(reply) => drop(reply.send(Ok(self.status()))),
            Request::Stats(reply) => drop(reply.send(self.stats())),
            Request::List(reply) => {
                let indices = &self.persistent.preferences;
                drop(reply.send(Ok(report(indices, &self.lists, &self.ruleset))));
            }
            Request::Events(query, reply) => {
                let events = self.events.after(query.after);
                drop(reply.send(Ok(EventsReport { events })));
            }
            Request::Flows(query, reply) => drop(reply.send(self.flows(query.limit))),
            Request::Metrics(reply) => drop(reply.send(self.snapshot())),
            Request::ForgetFlows(order, reply) => {
                drop(reply.send(self.forget_flows(order.client)));
            }
            Request::Explain(query, reply) => drop(reply.send(self.explain(query))),
            Request::Reload(reply) if !reply.is_closed() => {
                let outcome = self.reload().await;
                drop(reply.send(self.noted(outcome)));
            }
            Request::Plan(reply) => drop(reply.send(self.plan())),
            Request::Apply(reply) if !reply.is_closed() => {
                let outcome = self.apply().await;
                drop(reply.send(self.noted(outcome)));
            }
            Request::Bypass(order, reply) if !reply.is_closed() => {
                let outcome = self.bypass(order).await;
                drop(reply.send(self.noted(outcome)));
            }
            Request::Fetch(reply) => self.look_now(reply),
            Request::ChangeList(order, reply) if !reply.is_closed() => {
                let outcome = self.change_list(order).await;
                drop(reply.send(self.noted(outcome)));
            }
            // Who gave the order has gone, and was told that it was not carried out.
            Request::Reload(_)
            | Request::Apply(_)
            | Request::Bypass(..)
            | Request::ChangeList(..) => {}
        }
    }

    /// Does what its time has come for. What fails is tried again some time later.
    async fn on_time(&mut self) {
        self.follow_clock();
        if self
            .retry_at
            .is_none_or(|retry_at| retry_at <= Instant::now())
        {
            self.retry_at = None;
            if let Err(error) = self.end_bypass().await {
                tracing::error!("steering is not switched on again: {error:#}");
                self.retry_later();
            }
            if let Err(error) = self.end_graces().await {
                tracing::error!("withdrawn endpoints are kept up: {error:#}");
                self.retry_later();
            }
            self.save_again();
            for kept in &mut self.sources.kept {
                // It has been said that it cannot be written.
                let _ = kept.save_again(&self.sources.disk);
            }
        }
        self.look_if_due();
        // What does not answer may come back; what was bad may have been good for long enough.
        egress::refresh_neighbours(&self.links, &self.egresses(), true).await;
        self.look_at_translation();
        self.look_at_leaving();
        self.look_for_obstacles();
        self.note_addresses();
        self.tell_status();
    }

    /// Leaves what has failed alone for some time.
    fn retry_later(&mut self) {
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// Forwards what the programs log to our own log.
    fn start_trace(&mut self) -> Result<()> {
        // The programs before are gone, and their logs with them.
        self.trace_readers = JoinSet::new();
        if !self.options.trace {
            return Ok(());
        }
        for mut logger in self.datapath.trace_logs()? {
            self.trace_readers.spawn(async move {
                let mut tick = interval(TRACE_INTERVAL);
                loop {
                    tick.tick().await;
                    logger.flush();
                }
            });
        }
        Ok(())
    }
}
