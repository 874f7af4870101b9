//! Following what changes around the controller: egresses, the gateway's own addresses, and LAN interfaces.

use anyhow::Result;

use super::lans::{Lans, look_at_lans};
use super::pinning::translate_afresh;
use super::ways::{Changed, changes_ways};
use super::{Controller, egress};
use crate::datapath::Paths;
use crate::health::State;
use crate::ruleset::{Ruleset, compile};

impl Controller {
    /// Looks at the egresses again and follows what has changed. Failures are logged; the next look tries again.
    pub(super) async fn follow(&mut self) {
        if let Err(error) = self.try_follow().await {
            tracing::warn!("cannot follow a change of the network: {error:#}");
        }
    }

    async fn try_follow(&mut self) -> Result<()> {
        let (links, config) = (&self.links, &self.config);
        let indices = &self.persistent.egresses;
        self.egresses = egress::look(links, config, indices, &self.egresses).await?;
        self.health
            .set_probes(&self.config, &self.egresses, &self.lists);
        let changes = self.health.look(&self.config, &self.egresses);
        // Packets are no longer sent a way that is gone before its route goes; a new way gets its route before any packet.
        let is_down = |change: &Changed| change.standing.state == State::Down;
        let ways = match changes.iter().any(is_down) {
            true => self.publish_ways(),
            false => Ok(()),
        };
        self.tell_of(changes);
        let plan = egress::routing(&self.config, &self.egresses);
        let mut refused = Vec::new();
        let routing = self.links.apply_possible(&plan, &mut refused).await;
        if egress::note_refused(&mut self.egresses, &refused) {
            let changes = self.health.look(&self.config, &self.egresses);
            self.tell_of(changes);
        }
        let ways = ways.and(self.publish_ways());
        // The interfaces first: a table that outgrows its place is installed on those that are there now.
        let lans = self.follow_lans().await;
        let own = self.follow_own_addresses().await;
        ways.and(routing).and(lans).and(own)
    }

    /// Judges the egresses by what is known of them, and publishes what follows from that.
    pub(super) async fn settle_ways(&mut self) {
        let changes = self.health.look(&self.config, &self.egresses);
        if let Err(error) = self.publish_ways() {
            tracing::error!("steered packets go on as they did: {error:#}");
        }
        self.tell_of(changes);
    }

    /// Brings the path table up to date.
    pub(super) fn publish_ways(&mut self) -> Result<()> {
        let mut paths =
            self.health
                .paths(&self.config, &self.egresses, &self.persistent.preferences);
        let before = &self.published.table;
        let step = u32::from(changes_ways(before, &paths.table));
        paths.table.epoch = before.epoch.wrapping_add(step);
        paths.table.pins_beyond_ruleset = before.pins_beyond_ruleset;
        if step == 0 {
            return self.publish_paths(paths);
        }
        let Ok(before) = self.ways_now() else {
            return self.publish_paths(paths);
        };
        let mut moving = self.flows_that_lose_their_way(&before.words, &paths.table);
        self.publish_paths(paths)?;
        // Only now: their next packets shall find the new way.
        moving.extend(self.unpinned_that_move(&before));
        translate_afresh(&moving);
        Ok(())
    }

    /// Publishes a path table, unless it is the one in force.
    pub(super) fn publish_paths(&mut self, paths: Paths) -> Result<()> {
        if paths != self.published {
            self.datapath.publish_paths(&paths)?;
            self.published = paths;
        }
        Ok(())
    }

    fn tell_of(&mut self, changes: Vec<Changed>) {
        let verdicts = self.health.verdicts();
        if verdicts != self.persistent.verdicts {
            self.persistent.verdicts = verdicts;
            if let Err(error) = self.state.save(&self.persistent) {
                tracing::warn!("{error:#}; after a restart the egresses are judged anew");
            }
        }
        for Changed {
            egress,
            v6,
            before,
            standing,
        } in changes
        {
            let family = if v6 { "IPv6" } else { "IPv4" };
            let why = standing.why.unwrap_or_default();
            if before != standing.state {
                let what = format!("{}, was {}", standing.state.name(), before.name());
                self.events
                    .note("egress", format!("{egress} {family}"), what, &why);
            }
            match standing.state {
                State::Up if before == State::Up => {}
                State::Up => tracing::info!("egress {egress} is up for {family}"),
                State::Degraded => {
                    tracing::warn!("egress {egress} is degraded for {family}: {why}");
                }
                State::Down => tracing::warn!("egress {egress} is down for {family}: {why}"),
            }
        }
    }

    /// Compiles the ruleset again if the gateway's own addresses have changed.
    async fn follow_own_addresses(&mut self) -> Result<()> {
        let own = self.links.own_addresses().await?;
        if own == self.ruleset.own {
            return Ok(());
        }
        let ruleset = Ruleset {
            own,
            ..self.ruleset.clone()
        };
        let mut image = compile(&ruleset)?;
        let generation = self.generation.wrapping_add(1);
        image.set_generation(generation);
        if self.datapath.publish_ruleset(&image)? {
            self.commit(generation);
        } else {
            self.install(image).await?;
        }
        self.ruleset = ruleset;
        tracing::debug!(
            "the gateway's own addresses have changed: generation {}",
            self.generation
        );
        Ok(())
    }

    /// Attaches to LAN interfaces that have come back, or have another MAC address.
    async fn follow_lans(&mut self) -> Result<()> {
        let Lans { lans, missing } = look_at_lans(&self.links, &self.config).await?;
        for (name, problem) in &missing {
            if !self.missing_lans.contains_key(name) {
                tracing::warn!("nothing is steered there until it is back: {problem}");
                self.events.note("link", name, "gone", problem);
            }
        }
        // Those that have gone took their programs along; that is no reason to load others.
        if lans.iter().all(|lan| self.lans.contains(lan)) {
            (self.lans, self.missing_lans) = (lans, missing);
            return Ok(());
        }
        let before = std::mem::replace(&mut self.lans, lans);
        if let Err(error) = self.install(compile(&self.ruleset)?).await {
            // It is tried again at the next look.
            self.lans = before;
            return Err(error);
        }
        let back = std::mem::replace(&mut self.missing_lans, missing);
        for lan in self.lans.iter().filter(|lan| !before.contains(lan)) {
            let why = back
                .get(&lan.name)
                .map_or("it has changed", |_| "it is back");
            self.events.note("link", &lan.name, "attached again", why);
            tracing::info!(
                "attached to {} again: generation {}",
                lan.name,
                self.generation
            );
        }
        Ok(())
    }
}
