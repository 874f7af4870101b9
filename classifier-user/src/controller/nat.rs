//! Our nftables table: made as the configuration wants it, and made again if somebody removes it, as a firewall does that begins
//! with `flush ruleset`.

use std::collections::HashSet;

use anyhow::Result;

use super::Controller;
use crate::config::Routing;
use crate::links::conntrack::{self, Connection};
use crate::nat::{NatEgress, NatPlan};

impl Controller {
    /// The table that there should be.
    pub(super) fn nat(&self) -> NatPlan {
        let wanting = self.egresses.iter().filter_map(|egress| {
            let (masquerade, skip_dnat) = (egress.config.masquerade, egress.config.skips_dnat());
            (masquerade || skip_dnat).then(|| NatEgress {
                interface: egress.config.interface.clone(),
                mark: egress.mark,
                masquerade,
                skip_dnat,
            })
        });
        nat_plan(&self.config.routing, wanting.collect())
    }

    /// Makes the table as the configuration wants it; none if no egress wants anything of it.
    pub(super) async fn apply_nat(&mut self) -> Result<()> {
        let plan = self.nat();
        if !self.persistent.nat && plan.egresses.is_empty() {
            return Ok(());
        }
        self.persistent.nat = true;
        self.state.save(&self.persistent)?;
        plan.apply().await
    }

    /// Makes the table again if somebody has removed it, or something of it.
    pub(super) async fn keep_nat(&mut self) {
        let plan = self.nat();
        if plan.egresses.is_empty() || plan.is_in_place().await.unwrap_or(true) {
            return;
        }
        let subject = format!("inet {}", plan.table);
        match plan.apply().await {
            Ok(()) => {
                let why = "somebody had removed it, or something of it";
                tracing::warn!("the nftables table {subject} was made again: {why}");
                self.events.note("nat", subject, "made again", why);
                self.masquerade_afresh();
            }
            Err(error) => tracing::error!("steered packets are not translated: {error:#}"),
        }
    }

    /// Has connections translated that have begun without.
    fn masquerade_afresh(&self) {
        let masquerades = |index: u8| {
            let mut egresses = self.egresses.iter();
            egresses.any(|egress| egress.index == index && egress.config.masquerade)
        };
        let steered = self.steered_connections().into_iter();
        let wanting = steered.filter(|(_, egress)| masquerades(*egress));
        let wanting: HashSet<Connection> = wanting.map(|(connection, _)| connection).collect();
        let mut untranslated = conntrack::connections().unwrap_or_default();
        // One that leaves with another address is not among them.
        untranslated.retain(|connection| wanting.contains(connection));
        if let Err(error) = conntrack::forget(&untranslated) {
            tracing::warn!("connections go on without translation: {error:#}");
        }
    }
}

/// The table of these routing numbers.
pub(super) fn nat_plan(routing: &Routing, egresses: Vec<NatEgress>) -> NatPlan {
    NatPlan {
        table: format!("breakout-{}", routing.table),
        mask: routing.mark_mask,
        egresses,
    }
}
