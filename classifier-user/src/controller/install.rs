//! Starting, reloading and stopping: each either succeeds or leaves things as they were.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::time::Instant;

use anyhow::{Result, anyhow};
use tokio::task::JoinSet;

use super::active_paths::{ActivePaths, Exchanged, Intent};
use super::applied::AppliedRulesets;
use super::change::Cause;
use super::egress::{self, EgressState};
use super::failover::{Failover, Watching};
use super::lans::{Lans, WithoutXdp, look_at_lans, refuse_missing};
use super::leaving::Leaving;
use super::looks::Looks;
use super::nat::{NatKeeper, nat_plan};
use super::obstacles::Obstacles;
use super::pinning::{connections, ordinary_pins};
use super::sources::Sources;
use super::state::{StateDirectory, boot_id};
use super::translation::{Translation, translate_afresh};
use super::unload::remove;
use super::ways::EgressVerdict;
use super::{Controller, Options, clock, faults, public};
use crate::config::{self, Config, Routing, XdpAttach};
use crate::datapath::{
    DataPath, Foreign, LanPlan, Plan, Prepared, Side, XdpRefused, has_tcx, object,
};
use crate::events::Events;
use crate::exit::{Code, WithCode, coded};
use crate::health::default_targets;
use crate::links::{Changes, Links, network_namespace};
use crate::ruleset::{Image, Rule, compile};
use crate::timestamp::Timestamp;

/// Reads the configuration, and makes sure that there is a data path to load.
pub(super) fn read(options: &Options) -> Result<Config> {
    let config = config::load(&options.config).code(Code::Config)?;
    object().code(Code::System)?;
    Ok(config)
}

impl Controller {
    /// Installs everything, or takes over what a dead controller left.
    pub(super) async fn start(
        options: Options,
        config: Config,
        mut sources: Sources,
        state: StateDirectory,
        changes: Changes,
    ) -> Result<Self> {
        // From here on what happens to links is noted, also before anything is known of them.
        let watching = Watching::start().code(Code::System)?;
        let applied = AppliedRulesets::open(&config.state.directory).code(Code::System)?;
        let links = Links::open().code(Code::System)?;
        let known = state.load();
        let is_known = known.is_some();
        let mut persistent = known.unwrap_or_default();
        persistent.assign_indices(&config).code(Code::Config)?;
        let indices = &persistent.egresses;
        let Lans { lans, missing, .. } =
            look_at_lans(&links, &config, &[], &WithoutXdp::default(), indices).await?;
        // What runs without a controller is better off with one, whatever state the links are in. Else one that works must be
        // there; what is missing beside it comes later, as PPP and USB do.
        let datapath = DataPath::open(&config.state.directory).code(Code::System)?;
        let adopted = datapath.has_leftovers();
        if !adopted && !lans.iter().any(|lan| !lan.is_egress) {
            refuse_missing(&missing)?;
        }
        if !is_known {
            datapath.reset_counters()?;
        }
        let clock = clock::resume(&mut persistent, &mut sources);
        let egresses = egress::look(&links, &config, &persistent.egresses, &[]).await?;
        if !adopted && egresses.iter().all(|egress| egress.mistake().is_some()) {
            egress::insist(&egresses)?;
        }
        for problem in missing.values() {
            tracing::warn!("nothing is steered there until it is back: {problem}");
        }
        for egress in &egresses {
            if let Some(mistake) = egress.mistake() {
                tracing::warn!("egress {}: {mistake}", egress.name);
            }
        }
        datapath.refuse_foreign(&lans)?;
        if !adopted {
            refuse_foreign_filters(&links, &lans).await?;
        }
        if !adopted && !persistent.installed {
            refuse_foreign_rules(&links, &config).await?;
        }
        let mut slots = persistent.slots();
        let indices = &persistent.preferences;
        let held = sources
            .kept
            .iter()
            .find_map(|kept| kept.state().held.as_ref());
        let as_of = held.map_or_else(Timestamp::now, |held| held.as_of);
        let (mut ruleset, lists) = sources.first_that_loads(&config, indices, &mut slots, as_of)?;
        if !ruleset.rules.iter().any(Rule::is_steered) {
            tracing::warn!("nothing is steered: no usable endpoint set is steered by the policy");
        }
        ruleset.bypass = persistent.bypass.is_some();
        ruleset.own = links.own_addresses().await.code(Code::System)?;
        let image = compile(&ruleset).code(Code::List)?;
        persistent.change_routing(&config.routing);
        persistent.installed = true;
        persistent.namespace = network_namespace()?;
        persistent.boot = boot_id();
        let written = state.save(&persistent);
        let unsaved = written.err().map(|error| Unsaved {
            error: format!("{error:#}"),
            follows: BTreeSet::from([
                "after a crash, what is installed now may have to be removed by hand".to_owned(),
            ]),
        });
        if let Some(problem) = &unsaved {
            tracing::warn!("{problem}");
        }
        let intent = Intent {
            config: config.clone(),
            preferences: persistent.preferences.clone(),
            targets: default_targets(&lists),
        };
        let verdicts: &[EgressVerdict] = if adopted { &persistent.verdicts } else { &[] };
        let pins_beyond_ruleset = adopted && config.pinning.enabled && !ruleset.bypass;
        let failover = Failover::start(watching, |runtime| {
            let mut paths = ActivePaths::new(intent, egresses, datapath.free_epoch(), runtime);
            paths.begin(verdicts, pins_beyond_ruleset);
            paths
        })
        .code(Code::System)?;
        let directory = config.state.directory.clone();
        let generation = persistent.generation;
        let before = ruleset.hash();
        let mut controller = Controller {
            failover,
            changes,
            translation: Translation::default(),
            nat_keeper: NatKeeper::default(),
            obstacles: Obstacles::default(),
            leaving: Leaving::default(),
            events: Events::open(&directory),
            ledger: public::ledger(&directory),
            seen_addresses: Vec::new(),
            told: String::new(),
            options,
            config,
            lists,
            sources,
            applied,
            as_of,
            looks: Looks::default(),
            ruleset_hash: before.clone(),
            ruleset,
            slots,
            generation,
            links,
            lans,
            nat_status: None,
            datapath,
            state,
            persistent,
            clock,
            adopted,
            wants_look: false,
            unsaved,
            retry_at: None,
            trace_readers: JoinSet::new(),
            missing_lans: missing,
            without_xdp: WithoutXdp::default(),
            programs: Vec::new(),
            started: Instant::now(),
        };
        let paths = controller.failover.paths().again();
        match controller.install(image, paths).await {
            Ok(()) => {
                controller.remove_former().await;
                let cause = Cause::operator("start", "the controller was started");
                controller.write_down(&cause, generation, &before);
                Ok(controller)
            }
            // What a dead controller left goes on working; what is only ours goes away.
            Err(error) if adopted => Err(error),
            Err(error) => {
                if let Err(left) = controller.stop().await {
                    tracing::warn!("after the failed start: {left:#}");
                }
                Err(error)
            }
        }
    }

    /// Removes what was installed with other routing numbers. What cannot be removed now is tried again at the next start, and by
    /// `breakout unload`.
    async fn remove_former(&mut self) {
        for former in self.persistent.former_routing.clone() {
            match self.remove_of(&former).await {
                Ok(()) => self
                    .persistent
                    .former_routing
                    .retain(|other| *other != former),
                Err(error) => tracing::warn!(
                    "rules and routes of former [routing] numbers (table {}) are left: {error:#}",
                    former.table
                ),
            }
        }
        self.save("former rules may be looked for again");
    }

    async fn remove_of(&mut self, former: &Routing) -> Result<()> {
        if self.persistent.nat && former.table != self.config.routing.table {
            nat_plan(former, Vec::new()).remove().await?;
        }
        self.links
            .apply_routing(&egress::empty_routing(former))
            .await?;
        let plan = egress::routing(&self.config, &self.egresses());
        self.links.apply_routing(&plan).await
    }

    /// The egresses as they were looked at last.
    pub(super) fn egresses(&self) -> Vec<EgressState> {
        self.failover.paths().egresses().to_vec()
    }

    /// Installs programs for the LAN interfaces, which lead to these paths; their maps are made here.
    ///
    /// An interface that refuses XDP is left to TC.
    pub(super) async fn install(&mut self, mut image: Image, mut paths: Exchanged) -> Result<()> {
        // What is on the ordinary path before anything is steered stays there. After another version, whose pins are not
        // used, that can be told only where steered connections have an address of their own.
        let mut egresses = paths.egresses.iter();
        let can_tell =
            !self.datapath.has_leftovers() || egresses.all(|egress| egress.config.is_masqueraded());
        let wants_pins = self.config.pinning.enabled && !self.datapath.has_pins() && can_tell;
        loop {
            let again = paths.anew();
            let tried = self.try_to_install(&mut image, paths, wants_pins).await;
            let Err(error) = tried else {
                return Ok(());
            };
            let Some(refused) = error.downcast_ref::<XdpRefused>() else {
                return Err(coded(error, Code::System));
            };
            self.do_without_xdp(refused).await?;
            paths = again;
        }
    }

    /// Plans without XDP for an interface that has refused it.
    async fn do_without_xdp(&mut self, refused: &XdpRefused) -> Result<()> {
        let XdpRefused { interface, why } = refused;
        let is_egress = |lan: &LanPlan| lan.is_egress && lan.name == *interface;
        let (instead, what) = if self.lans.iter().any(|lan| is_egress(lan) && lan.translates) {
            ("TC takes the replies that come in there", "left to TC")
        } else if self.lans.iter().any(is_egress) {
            (
                "the kernel forwards the replies that come in there",
                "left to the kernel",
            )
        } else {
            ("TC does all of the work there", "left to TC")
        };
        tracing::warn!("{why}: {instead}. Once that is mended, run `breakout reload`");
        self.events.note("program", interface, what, why);
        if let Some(found) = self.links.interface(interface).await? {
            self.without_xdp.note(&found, why);
        }
        // An egress has XDP for replies alone, and where they are translated TC does that.
        self.lans.retain(|lan| !is_egress(lan) || lan.translates);
        let lans = self.lans.iter_mut();
        for lan in lans.filter(|lan| lan.name == *interface) {
            // A card may take redirected frames only with a program of its own.
            (lan.xdp, lan.takes_replies) = (None, false);
        }
        Ok(())
    }

    /// Rules and routes come first, so that no packet is marked before its mark leads anywhere, and go last.
    async fn try_to_install(
        &mut self,
        image: &mut Image,
        paths: Exchanged,
        wants_pins: bool,
    ) -> Result<()> {
        let mut routing = egress::routing(&self.config, &paths.egresses);
        routing.keeps_others = true;
        faults::step("set rules and routes").code(Code::System)?;
        self.links
            .apply_routing(&routing)
            .await
            .code(Code::System)?;
        faults::step("set address translation").code(Code::System)?;
        self.apply_nat(&paths.egresses).await.code(Code::System)?;
        for lan in self
            .lans
            .iter()
            .filter(|lan| lan.xdp == Some(XdpAttach::Generic))
        {
            tracing::warn!(
                "{}: XDP runs in GENERIC mode, because xdp = \"generic\" is set: every packet costs more than \
                 in mode = \"route\". Use it for tests only",
                lan.name
            );
        }
        let generation = self.generation.wrapping_add(1);
        image.set_generation(generation);
        // Noted before, so that nothing is forgotten should this process end in the middle.
        let lans = self.lans.iter().map(|lan| lan.name.clone());
        let lans: BTreeSet<String> = lans.collect();
        self.persistent.lans.extend(lans.iter().cloned());
        self.save("after a crash, what is installed now may have to be removed by hand");
        let config = &self.config;
        let epoch = paths.published.table.epoch;
        let words = image.words();
        let pinned = || match wants_pins {
            true => ordinary_pins(config, &paths.egresses, epoch, &HashSet::new(), None, words),
            false => Vec::new(),
        };
        let plan = Plan {
            lans: &self.lans,
            image,
            paths: &paths.published,
            pins: pins(&self.config),
            mappings: mappings(&self.config),
            pinned: &pinned,
            trace: self.options.trace,
        };
        faults::step("load programs").code(Code::System)?;
        let (prepared, maps) = self.datapath.prepare(&plan).code(Code::System)?;
        self.attach(prepared, paths.with_maps(maps))?;
        self.persistent.lans = lans;
        self.commit(generation);
        routing.keeps_others = false;
        if let Err(error) = self.links.apply_routing(&routing).await {
            // The regular look puts it right.
            tracing::warn!("former rules and routes are left: {error:#}");
        }
        // The new programs are in force, with a log or without.
        if let Err(error) = self.start_trace() {
            tracing::warn!("decisions are not logged: {error:#}");
        }
        egress::refresh_neighbours(&self.links, &self.egresses(), false).await;
        Ok(())
    }

    /// Lets an installation take over. From here on fail-over writes its path table; if it cannot be attached, again that of
    /// the one before.
    fn attach(&mut self, prepared: Prepared, paths: Exchanged) -> Result<()> {
        let (before, published) = self.failover.paths().exchange(paths);
        let attached = match published {
            Ok(()) => {
                if let Err(error) = faults::step("attach programs") {
                    self.datapath.discard(prepared);
                    Err(error)
                } else {
                    let clsact = &mut self.persistent.clsact;
                    let (lans, former) = (&self.lans, &self.persistent.lans);
                    let attached = self.datapath.attach(prepared, lans, former, clsact);
                    clsact.dedup();
                    attached
                }
            }
            Err(error) => {
                self.datapath.discard(prepared);
                Err(error)
            }
        };
        if attached.is_err()
            && let (_, Err(error)) = self.failover.paths().exchange(before)
        {
            tracing::error!("cannot go back to the path table before: {error:#}");
        }
        attached
    }

    /// Writes the state down. The data path does not depend on that, so a full disk is no reason to fail; what it means is said.
    pub(super) fn save(&mut self, otherwise: &str) {
        let written =
            faults::step("write the state").and_then(|()| self.state.save(&self.persistent));
        let Err(error) = written else {
            self.unsaved = None;
            return;
        };
        let before = self.unsaved.take();
        let mut follows = before
            .as_ref()
            .map_or_else(BTreeSet::new, |before| before.follows.clone());
        follows.insert(otherwise.to_owned());
        let problem = Unsaved {
            error: format!("{error:#}"),
            follows,
        };
        if before.as_ref() != Some(&problem) {
            tracing::warn!("{problem}");
        }
        self.unsaved = Some(problem);
    }

    /// Writes the state again if it could not be written before.
    pub(super) fn save_again(&mut self) {
        if self.unsaved.is_some() && self.state.save(&self.persistent).is_ok() {
            tracing::info!("the state is written down again");
            self.unsaved = None;
        }
    }

    /// Notes what is in force now. The data path is right already, so a full disk is no reason to fail.
    pub(super) fn commit(&mut self, generation: u32) {
        self.generation = generation;
        self.persistent.generation = generation;
        self.persistent.set_slots(&self.slots);
        self.save("after a restart the generation may repeat");
    }

    /// Removes everything: first the programs, so that no packet has a mark whose rule is gone.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.nat_keeper.stop().await;
        let moving = connections(self.steered_connections());
        // Its probes make routes.
        drop(self.failover);
        let removed = remove(
            self.datapath,
            &self.links,
            &self.config,
            &self.state,
            self.persistent,
        );
        let outcome = removed.await;
        translate_afresh(&moving);
        outcome
    }
}

/// Reason why the state is not written down, and all that follows from that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsaved {
    error: String,
    follows: BTreeSet<String>,
}

impl fmt::Display for Unsaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        self.follows
            .iter()
            .try_for_each(|follows| write!(f, "; {follows}"))
    }
}

/// For how many flows there are mappings at least; none if no egress translates.
pub(super) fn mappings(config: &Config) -> Option<u32> {
    config.translates().then_some(config.pinning.size)
}

/// Returns how many flows are pinned, if they are.
pub(super) fn pins(config: &Config) -> Option<u32> {
    config.pinning.enabled.then_some(config.pinning.size)
}

/// Fails if another controller's TC filter is on one of the interfaces, on kernels that have no TCX.
async fn refuse_foreign_filters(links: &Links, lans: &[LanPlan]) -> Result<()> {
    for lan in lans {
        if !has_tcx()
            && links
                .has_filter(lan.index, false, Side::Ingress.filter_priority())
                .await?
        {
            let interface = lan.name.clone();
            return Err(Foreign { interface }).code(Code::Busy);
        }
    }
    Ok(())
}

/// Fails if there are rules with our protocol number and tables, which this controller has not made.
async fn refuse_foreign_rules(links: &Links, config: &Config) -> Result<()> {
    if !links
        .has_own_rules(&egress::empty_routing(&config.routing))
        .await?
    {
        return Ok(());
    }
    let routing = &config.routing;
    Err(anyhow!(
        "another Breakout controller in this network namespace has rules for the tables from {} on (see: ip rule \
         show). Stop it; or, if it has died, run `breakout unload --config FILE` with its configuration; or give \
         this one its own [routing] table, rule_priority and mark_mask",
        routing.table
    ))
    .code(Code::Busy)
}
