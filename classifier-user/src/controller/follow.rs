//! Following what changes around the controller: egresses, the gateway's own addresses, and LAN interfaces.

use anyhow::Result;

use super::install::look_at_lans;
use super::{Controller, egress};
use crate::ruleset::{Ruleset, compile};

impl Controller {
    /// Looks at the egresses again and follows what has changed. Failures are logged; the next look tries again.
    pub(super) async fn follow(&mut self) {
        if let Err(error) = self.try_follow().await {
            tracing::warn!("cannot follow a change of the network: {error:#}");
        }
    }

    async fn try_follow(&mut self) -> Result<()> {
        let now = egress::look(&self.links, &self.config, &self.persistent.egresses, false).await?;
        let before = std::mem::replace(&mut self.egresses, now);
        // Routes first: a packet that is marked must find its rule. Without one it takes the ordinary path.
        let plan = egress::routing(&self.config, &self.egresses);
        self.links.apply_routing(&plan).await?;
        let table = egress::table(&self.egresses, self.config.routing.mark_mask);
        if table != self.published {
            self.datapath.publish_egresses(&table)?;
            self.published = table;
        }
        for (before, after) in before.iter().zip(&self.egresses) {
            match (before.problem(), after.problem()) {
                (None, Some(problem)) => tracing::warn!(
                    "egress {} is down, its traffic takes the ordinary path: {problem}",
                    after.name
                ),
                (Some(_), None) => tracing::info!("egress {} is up again", after.name),
                _ => {}
            }
        }
        // The interfaces first: a table that outgrows its place is installed on those that are there now.
        let lans = self.follow_lans().await;
        let own = self.follow_own_addresses().await;
        lans.and(own)
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
        tracing::info!(
            "attached to the LAN interfaces again: generation {}",
            self.generation
        );
        Ok(())
    }
}
