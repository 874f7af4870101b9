//! Following what changes around the controller: egresses, the gateway's own addresses, and LAN interfaces.

use anyhow::Result;

use super::install::look_at_lans;
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
        let mut now =
            egress::look(&self.links, &self.config, &self.persistent.egresses, false).await?;
        for (now, before) in now.iter_mut().zip(&self.egresses) {
            now.remember(before);
        }
        self.egresses = now;
        self.health
            .set_probes(&self.config, &self.egresses, &self.lists);
        let changes = self.health.look(&self.config, &self.egresses);
        // Packets are no longer sent a way that is gone before its route goes; a new way gets its route before any packet.
        if changes
            .iter()
            .any(|change| change.standing.state == State::Down)
        {
            self.publish_ways()?;
        }
        self.tell_of(changes);
        let plan = egress::routing(&self.config, &self.egresses);
        self.links.apply_routing(&plan).await?;
        self.publish_ways()?;
        // The interfaces first: a table that outgrows its place is installed on those that are there now.
        let lans = self.follow_lans().await;
        let own = self.follow_own_addresses().await;
        lans.and(own)
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
        let before = *before;
        let mut moving = self.flows_that_lose_their_way(&paths.table);
        self.publish_paths(paths)?;
        // Only now: their next packets shall find the new way.
        if step != 0 {
            moving.extend(self.unpinned_that_move(&before));
        }
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
        let lans = match look_at_lans(&self.links, &self.config).await {
            Ok(lans) => lans,
            Err(error) => {
                if self.lan_problem.is_none() {
                    tracing::warn!("nothing is steered there until it is back: {error:#}");
                    self.events
                        .note("link", "LAN", "gone", format!("{error:#}"));
                }
                self.lan_problem = Some(format!("{error:#}"));
                return Ok(());
            }
        };
        if lans == self.lans && self.lan_problem.is_none() {
            return Ok(());
        }
        self.lans = lans;
        let installed = self.install(compile(&self.ruleset)?).await;
        // What has failed is tried again at the next look.
        self.lan_problem = installed.as_ref().err().map(|error| format!("{error:#}"));
        installed?;
        let generation = format!("generation {}", self.generation);
        self.events
            .note("link", "LAN", "attached again", generation);
        tracing::info!(
            "attached to the LAN interfaces again: generation {}",
            self.generation
        );
        Ok(())
    }
}
