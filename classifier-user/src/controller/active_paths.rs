//! The paths in force: the path table with everything that it is computed from. The fail-over thread and the controller share
//! it, and nobody else writes the table.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use breakout_common::path::PathTable;
use tokio::runtime::Handle;

use super::egress::EgressState;
use super::ways::{Changed, EgressVerdict, Health, Knowledge, changes_ways};
use crate::addresses::{KnownBy, is_public};
use crate::config::Config;
use crate::datapath::{PathMaps, Paths};
use crate::health::{Report, Reports, Target};
use crate::links::Fact;

/// Facts that are remembered while the controller looks at the egresses.
const REMEMBERED: usize = 1024;
/// The time for which the answer of a STUN server counts.
const FRESH: Duration = Duration::from_secs(600);

/// Preferences to choose from, and the limits that apply.
#[derive(Clone)]
pub(super) struct Intent {
    pub(super) config: Config,
    /// The index of each preference, by its text.
    pub(super) preferences: BTreeMap<String, u8>,
    /// Targets that are probed where the configuration names none.
    pub(super) targets: Vec<Target>,
}

/// The paths in force, and what is known of the egresses.
pub(super) struct ActivePaths {
    intent: Intent,
    egresses: Vec<EgressState>,
    /// The addresses that STUN servers see egresses at, by name and whether it is IPv6.
    public: BTreeMap<(String, bool), (IpAddr, Instant)>,
    pub(super) health: Health,
    published: Paths,
    /// The epoch of the table, which none before it had: what pins remember must mean the same for ever.
    epoch: u32,
    /// Maps in which the table is published, once there is an installation.
    maps: Option<PathMaps>,
    /// The latest facts, and how many there were before them.
    facts: VecDeque<Fact>,
    forgotten: u64,
    news: News,
    /// Reason why the table could not be published last.
    problem: Option<String>,
}

/// Work that the fail-over thread leaves to the controller.
#[derive(Default)]
pub(super) struct News {
    /// Egresses whose state has changed.
    pub(super) changes: Vec<Changed>,
    /// The table before the choices changed.
    pub(super) before: Option<PathTable>,
    /// True if links, neighbours or addresses have changed.
    pub(super) look: bool,
}

impl ActivePaths {
    /// Nothing is known yet, and nothing published.
    /// `epoch` is one of which nothing is remembered.
    pub(super) fn new(
        intent: Intent,
        egresses: Vec<EgressState>,
        epoch: u32,
        runtime: Handle,
    ) -> Self {
        ActivePaths {
            intent,
            egresses,
            public: BTreeMap::new(),
            health: Health::new(runtime),
            published: Paths::default(),
            epoch,
            maps: None,
            facts: VecDeque::new(),
            forgotten: 0,
            news: News::default(),
            problem: None,
        }
    }

    /// Goes on from the verdicts of an earlier controller, if there are any.
    pub(super) fn begin(&mut self, verdicts: &[EgressVerdict], pins_beyond_ruleset: bool) {
        self.health.resume(verdicts);
        self.set_probes();
        let Intent {
            config,
            preferences,
            ..
        } = &self.intent;
        self.health.look(config, &self.egresses);
        self.published = self.health.paths(config, &self.egresses, preferences);
        self.published.table.epoch = self.epoch;
        self.published.table.pins_beyond_ruleset = u32::from(pins_beyond_ruleset);
    }

    /// The same paths for another installation.
    pub(super) fn again(&self) -> Exchanged {
        Exchanged {
            intent: self.intent.clone(),
            egresses: self.egresses.clone(),
            published: self.published.clone(),
            maps: None,
            since: self.fact_number(),
            knowledge: None,
        }
    }

    pub(super) fn egresses(&self) -> &[EgressState] {
        &self.egresses
    }

    pub(super) fn published(&self) -> &Paths {
        &self.published
    }

    pub(super) fn reports(&self) -> std::sync::Arc<Reports> {
        self.health.probers.reports()
    }

    /// The number of the next fact, for [`set_egresses`](Self::set_egresses).
    pub(super) fn fact_number(&self) -> u64 {
        self.forgotten + self.facts.len() as u64
    }

    /// Takes in what the kernel tells. Returns whether it concerns any interface of ours.
    pub(super) fn take_in(&mut self, fact: Fact) -> bool {
        let is_ours = match &fact {
            Fact::Lost | Fact::Address => return true,
            Fact::Link { name, .. } => self.is_ours(name),
            Fact::Neighbour { .. } => false,
        };
        let mut changes = false;
        for egress in &mut self.egresses {
            changes |= egress.take_in(&fact);
        }
        // What changes nothing now may do so against an older look that is still being taken.
        if is_ours || changes {
            if self.facts.len() == REMEMBERED {
                self.facts.pop_front();
                self.forgotten += 1;
            }
            self.facts.push_back(fact);
        }
        is_ours || changes
    }

    fn is_ours(&self, interface: &str) -> bool {
        let config = &self.intent.config;
        config.lan.iter().any(|lan| lan.interface == interface)
            || config
                .egress
                .values()
                .any(|egress| egress.interface == interface)
    }

    /// Takes in what probes tell.
    pub(super) fn note(&mut self, report: Report) {
        let key = (report.path.egress.clone(), report.path.v6);
        match report
            .public
            .filter(|_| self.health.probers.is_current(&report))
        {
            Some(seen) => self.public.insert(key, seen),
            None => self.public.remove(&key),
        };
        self.health.note(report, &self.egresses);
    }

    /// Returns the public addresses that egresses have: as STUN servers see them, or those that interfaces have.
    pub(super) fn public_addresses(&self) -> Vec<(String, IpAddr, KnownBy)> {
        let mut found = Vec::new();
        for egress in &self.egresses {
            for v6 in [false, true] {
                let seen = self.public.get(&(egress.name.clone(), v6));
                let seen = seen.filter(|(_, at)| at.elapsed() < FRESH);
                let own = egress.own_addresses(v6).find(|address| is_public(*address));
                let address = seen.map(|(address, _)| (*address, KnownBy::Stun));
                let address = address.or(own.map(|address| (address, KnownBy::Interface)));
                found.extend(address.map(|(address, by)| (egress.name.clone(), address, by)));
            }
        }
        found
    }

    /// Has the controller look at the links.
    pub(super) fn want_look(&mut self) {
        self.news.look = true;
    }

    /// Takes in how the egresses are, looked at since the fact with this number; later facts hold against it.
    pub(super) fn set_egresses(&mut self, egresses: Vec<EgressState>, since: u64) {
        self.egresses = self.brought_up_to_date(egresses, since);
        self.set_probes();
    }

    /// Egresses with what has happened since the fact with this number.
    fn brought_up_to_date(&self, mut egresses: Vec<EgressState>, since: u64) -> Vec<EgressState> {
        let late = usize::try_from(since.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        for fact in self.facts.iter().skip(late) {
            for egress in &mut egresses {
                egress.take_in(fact);
            }
        }
        egresses
    }

    /// Probes what is configured by the links that there are.
    fn set_probes(&mut self) {
        let Intent {
            config, targets, ..
        } = &self.intent;
        self.health.set_probes(config, &self.egresses, targets);
    }

    /// Goes by another configuration of the same egresses, and probes these targets where it names none.
    pub(super) fn set_config(&mut self, config: Config, targets: Vec<Target>) {
        (self.intent.config, self.intent.targets) = (config, targets);
        self.set_probes();
    }

    /// Evaluates the egresses by what is known of them, and publishes what follows from that.
    pub(super) fn settle(&mut self) {
        let view = self.maps.as_ref().and_then(|maps| maps.view.as_ref());
        self.health.observe(&self.egresses, view);
        let changes = self.health.look(&self.intent.config, &self.egresses);
        self.news.changes.extend(changes);
        match self.publish(false) {
            Ok(()) => self.problem = None,
            Err(error) => {
                let problem = format!("{error:#}");
                if self.problem.as_ref() != Some(&problem) {
                    tracing::error!(
                        "cannot update the path table, keeping the previous one: {problem}"
                    );
                }
                self.problem = Some(problem);
            }
        }
    }

    /// Brings the path table up to date, in a new epoch if its choices change or `is_new`.
    fn publish(&mut self, is_new: bool) -> Result<()> {
        let Intent {
            config,
            preferences,
            ..
        } = &self.intent;
        let mut paths = self.health.paths(config, &self.egresses, preferences);
        let before = self.published.table;
        let is_change = changes_ways(&before, &paths.table);
        paths.table.epoch = if is_new || is_change {
            self.next_epoch()
        } else {
            before.epoch
        };
        paths.table.pins_beyond_ruleset = before.pins_beyond_ruleset;
        self.store(paths)?;
        if is_change {
            self.news.before.get_or_insert(before);
        }
        Ok(())
    }

    fn next_epoch(&mut self) -> u32 {
        self.epoch = self.epoch.wrapping_add(1);
        self.epoch
    }

    /// Publishes a path table, unless it is the one in force.
    fn store(&mut self, paths: Paths) -> Result<()> {
        if paths != self.published {
            if let Some(maps) = &mut self.maps {
                maps.publish(&paths)?;
            }
            self.published = paths;
        }
        Ok(())
    }

    /// Publishes a table for a ruleset that follows, in a new epoch: what it prefers, and whether there may be pinned flows that
    /// it does not steer.
    pub(super) fn prefer(
        &mut self,
        preferences: &BTreeMap<String, u8>,
        pins_beyond_ruleset: bool,
    ) -> Result<()> {
        let Intent { config, .. } = &self.intent;
        let mut paths = self.health.paths(config, &self.egresses, preferences);
        paths.table.epoch = self.next_epoch();
        paths.table.pins_beyond_ruleset = u32::from(pins_beyond_ruleset);
        self.store(paths)?;
        self.intent.preferences.clone_from(preferences);
        Ok(())
    }

    /// Publishes that no pinned flow is left that the ruleset does not steer.
    pub(super) fn end_pins_beyond_ruleset(&mut self) -> Result<()> {
        let mut paths = self.published.clone();
        paths.table.pins_beyond_ruleset = 0;
        self.store(paths)
    }

    /// The table for another intent, before it is in force.
    pub(super) fn staged(
        &self,
        intent: &Intent,
        egresses: &[EgressState],
        pins_beyond_ruleset: bool,
    ) -> Paths {
        let Intent {
            config,
            preferences,
            ..
        } = intent;
        let mut paths = self.health.paths(config, egresses, preferences);
        paths.table.epoch = self.epoch;
        paths.table.pins_beyond_ruleset = u32::from(pins_beyond_ruleset);
        paths
    }

    /// Goes over to another intent, or back to the one before, with the maps of the installation that carries it out. Returns
    /// what was there, and whether its table could be published.
    pub(super) fn exchange(&mut self, next: Exchanged) -> (Exchanged, Result<()>) {
        let before = Exchanged {
            since: self.fact_number(),
            knowledge: Some(self.health.knowledge()),
            intent: std::mem::replace(&mut self.intent, next.intent),
            egresses: std::mem::take(&mut self.egresses),
            published: std::mem::replace(&mut self.published, next.published),
            maps: std::mem::replace(&mut self.maps, next.maps),
        };
        if let Some(knowledge) = next.knowledge {
            self.health.know(knowledge);
        }
        self.health.unwatch();
        // What has happened since it was staged.
        self.set_egresses(next.egresses, next.since);
        let changes = self.health.look(&self.intent.config, &self.egresses);
        self.news.changes.extend(changes);
        let published = self.publish(true);
        (before, published)
    }

    /// Returns whether there is something for the controller to do.
    pub(super) fn has_news(&self) -> bool {
        !self.news.changes.is_empty() || self.news.before.is_some() || self.news.look
    }

    /// Takes what there is to do.
    pub(super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }
}

/// State that changes with an installation.
pub(super) struct Exchanged {
    pub(super) intent: Intent,
    pub(super) egresses: Vec<EgressState>,
    pub(super) published: Paths,
    pub(super) maps: Option<PathMaps>,
    /// The number of the first fact that the egresses do not know of.
    pub(super) since: u64,
    /// Health of the egresses before, if that is to be restored.
    pub(super) knowledge: Option<Knowledge>,
}

impl Exchanged {
    /// The same for another try, before there are maps.
    pub(super) fn anew(&self) -> Self {
        Exchanged {
            intent: self.intent.clone(),
            egresses: self.egresses.clone(),
            published: self.published.clone(),
            maps: None,
            since: self.since,
            knowledge: None,
        }
    }

    pub(super) fn with_maps(self, maps: PathMaps) -> Self {
        Exchanged {
            maps: Some(maps),
            ..self
        }
    }
}
