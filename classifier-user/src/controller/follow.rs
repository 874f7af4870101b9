//! Following what changes around the controller: egresses, the gateway's own addresses, and LAN interfaces.

use anyhow::Result;
use nix::net::if_::if_nametoindex;

use super::lans::{Lans, look_at_lans};
use super::ways::Changed;
use super::{Controller, egress};
use crate::config::EgressConfig;
use crate::health::State;
use crate::links::{Interest, RoutingOutcome};
use crate::ruleset::{Ruleset, compile};

impl Controller {
    /// Looks at the egresses again and follows what has changed. Failures are logged; the next look tries again.
    pub(super) async fn follow(&mut self) {
        if let Err(error) = self.try_follow().await {
            tracing::warn!("cannot follow a change of the network: {error:#}");
        }
    }

    async fn try_follow(&mut self) -> Result<()> {
        // Before they are looked at, so that what changes meanwhile is told of.
        self.note_interest();
        let (before, since) = {
            let paths = self.failover.paths();
            (paths.egresses().to_vec(), paths.fact_number())
        };
        let indices = &self.persistent.egresses;
        let mut egresses = egress::look(&self.links, &self.config, indices, &before).await?;
        // Packets are no longer sent a way that is gone before its route goes; a new way gets its route before any packet.
        if let Some(worse) = egress::worsened(&before, &egresses) {
            let mut paths = self.failover.paths();
            paths.set_egresses(worse, since);
            paths.settle();
        }
        // Where flows are translated no packet leaves before what its reply needs is in place.
        let early = match self.config.translates() {
            true => Some(self.follow_lans().await),
            false => None,
        };
        egress::note_unattended(&mut egresses, &self.lans);
        let plan = egress::routing(&self.config, &egresses);
        let mut outcome = RoutingOutcome::default();
        let routing = self.links.apply_possible(&plan, &mut outcome).await;
        egress::note_refused(&mut egresses, &outcome.refused);
        {
            let mut paths = self.failover.paths();
            paths.set_egresses(egresses, since);
            paths.settle();
        }
        self.after_failover();
        if outcome.added > 0 {
            // What went elsewhere meanwhile is not translated, or with the address of another way.
            self.translation.look_at_all();
        }
        // The interfaces first: a table that outgrows its place is installed on those that are there now.
        let lans = match early {
            Some(lans) => lans,
            None => self.follow_lans().await,
        };
        let own = self.follow_own_addresses().await;
        routing.and(lans).and(own)
    }

    /// Has the kernel tell of those routes that the egresses are looked at for.
    fn note_interest(&self) {
        let egresses = self.config.egress.values();
        // Also where there is no way out yet: its route may be what comes next.
        let index = |egress: &EgressConfig| if_nametoindex(egress.interface.as_str()).ok();
        self.changes.set_interest(Interest {
            interfaces: egresses.filter_map(index).collect(),
            tables: egress::empty_routing(&self.config.routing).tables,
        });
    }

    /// Does what remains to be done once the path table has changed: events, flows that have moved, and a look at
    /// the links soon if they have changed.
    pub(super) fn after_failover(&mut self) {
        let news = self.failover.paths().take_news();
        self.tell_of(news.changes);
        if let Some(before) = news.before {
            self.translate_moved(before);
        }
        self.wants_look |= news.look;
    }

    fn tell_of(&mut self, changes: Vec<Changed>) {
        let verdicts = self.failover.paths().health.verdicts();
        if verdicts != self.persistent.verdicts {
            self.persistent.verdicts = verdicts;
            self.save("after a restart the egresses are judged anew");
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
                self.obstacles.want_look();
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
        let has_flows_beyond = self.path_table().pins_beyond_ruleset != 0;
        if self
            .datapath
            .publish_ruleset(&mut image, has_flows_beyond)?
        {
            self.commit(generation);
        } else {
            let paths = self.failover.paths().again();
            self.install(image, paths).await?;
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
        let Lans {
            lans,
            missing,
            without_xdp,
        } = look_at_lans(
            &self.links,
            &self.config,
            &self.lans,
            &self.without_xdp,
            &self.persistent.egresses,
        )
        .await?;
        for (name, problem) in &missing {
            if !self.missing_lans.contains_key(name) {
                tracing::warn!("nothing is steered there until it is back: {problem}");
                self.events.note("link", name, "gone", problem);
            }
        }
        // Those that have gone took their programs along; that is no reason to load others.
        if lans.iter().all(|lan| self.lans.contains(lan)) {
            (self.lans, self.missing_lans) = (lans, missing);
            self.without_xdp = without_xdp;
            return Ok(());
        }
        let before = std::mem::replace(&mut self.lans, lans);
        let refused = std::mem::replace(&mut self.without_xdp, without_xdp);
        let paths = self.failover.paths().again();
        if let Err(error) = self.install(compile(&self.ruleset)?, paths).await {
            // It is tried again at the next look.
            (self.lans, self.without_xdp) = (before, refused);
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
