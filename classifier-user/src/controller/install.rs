//! Starting, reloading and stopping: each either succeeds or leaves things as they were.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use anyhow::{Result, anyhow};
use tokio::task::JoinSet;

use super::applied::AppliedRulesets;
use super::change::Cause;
use super::egress;
use super::lans::{Lans, look_at_lans, refuse_missing};
use super::nat::nat_plan;
use super::pinning::{connections, ordinary_pins, translate_afresh};
use super::sources::Sources;
use super::state::{Persistent, StateDirectory, boot_id};
use super::unload::remove;
use super::ways::Health;
use super::{Controller, Options, make_ruleset};
use crate::config::{self, Config, Routing, XdpAttach};
use crate::datapath::{DataPath, FILTER_PRIORITY, Foreign, LanPlan, Plan, has_tcx, object};
use crate::events::Events;
use crate::exit::{Code, WithCode};
use crate::links::{Links, network_namespace};
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
        sources: Sources,
        state: StateDirectory,
    ) -> Result<Self> {
        let lists = sources.lists();
        let applied = AppliedRulesets::open(&config.state.directory).code(Code::System)?;
        let links = Links::open().code(Code::System)?;
        let Lans { lans, missing } = look_at_lans(&links, &config).await?;
        // What runs without a controller is better off with one, whatever state the links are in. Else one that works must be
        // there; what is missing beside it comes later, as PPP and USB do.
        let datapath = DataPath::open(&config.state.directory).code(Code::System)?;
        let adopted = datapath.has_leftovers();
        if !adopted && !lans.iter().any(|lan| !lan.is_egress) {
            refuse_missing(&missing)?;
        }
        let mut persistent = match state.load() {
            Some(persistent) => persistent,
            None => {
                datapath.reset_counters()?;
                Persistent::default()
            }
        };
        persistent.assign_indices(&config).code(Code::Config)?;
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
        let mut ruleset = make_ruleset(&config, &lists, indices, &mut slots, as_of)?;
        if !ruleset.rules.iter().any(Rule::is_steered) {
            tracing::warn!("nothing is steered: no usable endpoint set is steered by the policy");
        }
        ruleset.bypass = persistent.bypass.is_some();
        ruleset.own = links.own_addresses().await.code(Code::System)?;
        let image = compile(&ruleset).code(Code::List)?;
        let former = persistent.routing.replace(config.routing.clone());
        persistent.installed = true;
        persistent.namespace = network_namespace()?;
        persistent.boot = boot_id();
        state.save(&persistent)?;
        let mut health = Health::default();
        if adopted {
            health.resume(&persistent.verdicts);
        }
        health.set_probes(&config, &egresses, &lists);
        health.look(&config, &egresses);
        let mut published = health.paths(&config, &egresses, &persistent.preferences);
        // What an earlier controller wrote into pins shall not look like ours.
        published.table.epoch = fastrand::u32(..);
        published.table.pins_beyond_ruleset = u32::from(adopted && !ruleset.bypass);
        let events = config.state.directory.clone();
        let generation = persistent.generation;
        let before = ruleset.hash();
        let mut controller = Controller {
            published,
            health,
            events: Events::open(&events),
            told: String::new(),
            options,
            config,
            lists,
            sources,
            applied,
            as_of,
            looks: JoinSet::new(),
            ruleset_hash: before.clone(),
            ruleset,
            slots,
            generation,
            links,
            lans,
            egresses,
            datapath,
            state,
            persistent,
            adopted,
            retry_at: None,
            trace_readers: JoinSet::new(),
            missing_lans: missing,
            programs: Vec::new(),
            started: Instant::now(),
        };
        match controller.install(image).await {
            Ok(()) => {
                if let Some(former) = former.filter(|former| *former != controller.config.routing)
                    && let Err(error) = controller.remove_former(&former).await
                {
                    tracing::warn!("former rules are left: {error:#}");
                }
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

    /// Removes what was installed with other routing numbers.
    async fn remove_former(&mut self, former: &Routing) -> Result<()> {
        if self.persistent.nat && former.table != self.config.routing.table {
            nat_plan(former, Vec::new()).remove().await?;
        }
        self.links
            .apply_routing(&egress::empty_routing(former))
            .await?;
        let plan = egress::routing(&self.config, &self.egresses);
        self.links.apply_routing(&plan).await
    }

    /// Installs rules and routes first, so that no packet is marked before its mark leads anywhere.
    pub(super) async fn install(&mut self, mut image: Image) -> Result<()> {
        let plan = egress::routing(&self.config, &self.egresses);
        self.links.apply_routing(&plan).await.code(Code::System)?;
        egress::note_refused(&mut self.egresses, &[]);
        self.apply_nat().await.code(Code::System)?;
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
        // What is on the ordinary path before anything is steered stays there. After another version, whose pins are not
        // used, that can be told only where steered connections have an address of their own.
        let can_tell = !self.datapath.has_leftovers()
            || self.egresses.iter().all(|egress| egress.config.masquerade);
        let wants_pins = self.config.pinning.enabled && !self.datapath.has_pins() && can_tell;
        let (config, egresses) = (&self.config, &self.egresses);
        let epoch = self.published.table.epoch;
        let words = image.words();
        let pinned = || match wants_pins {
            true => ordinary_pins(config, egresses, epoch, &HashSet::new(), None, words),
            false => Vec::new(),
        };
        // Noted before, so that nothing is forgotten should this process end in the middle.
        let lans = self.lans.iter().map(|lan| lan.name.clone());
        let lans: BTreeSet<String> = lans.collect();
        self.persistent.lans.extend(lans.iter().cloned());
        self.state.save(&self.persistent)?;
        let plan = Plan {
            lans: &self.lans,
            former: &self.persistent.lans,
            image: &image,
            paths: &self.published,
            pins: pins(&self.config),
            pinned: &pinned,
            trace: self.options.trace,
        };
        let installed = self.datapath.install(&plan, &mut self.persistent.clsact);
        self.persistent.clsact.dedup();
        installed.code(Code::System)?;
        self.persistent.lans = lans;
        self.commit(generation);
        // The new programs are in force, with a log or without.
        if let Err(error) = self.start_trace() {
            tracing::warn!("decisions are not logged: {error:#}");
        }
        egress::refresh_neighbours(&self.links, &self.egresses, false).await;
        Ok(())
    }

    /// Notes what is in force now. The data path is right already, so a full disk is no reason to fail.
    pub(super) fn commit(&mut self, generation: u32) {
        self.generation = generation;
        self.persistent.generation = generation;
        self.persistent.set_slots(&self.slots);
        if let Err(error) = self.state.save(&self.persistent) {
            tracing::warn!("{error:#}; after a restart the generation may repeat");
        }
    }

    /// Removes everything: first the programs, so that no packet has a mark whose rule is gone.
    pub(super) async fn stop(self) -> Result<()> {
        let moving = connections(self.steered_connections());
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

/// How many flows are pinned, if they are.
pub(super) fn pins(config: &Config) -> Option<u32> {
    config.pinning.enabled.then_some(config.pinning.size)
}

/// Fails if another controller's TC filter is on one of the interfaces, on kernels that have no TCX.
async fn refuse_foreign_filters(links: &Links, lans: &[LanPlan]) -> Result<()> {
    for lan in lans {
        if !has_tcx() && links.has_ingress_filter(lan.index, FILTER_PRIORITY).await? {
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
