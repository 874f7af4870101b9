//! What the controller answers.

use anyhow::Result;
use breakout_common::table::GENERATION;
use ipnet::IpNet;

use super::egress::ways_out;
use super::{Controller, egress_name, summary};
use crate::config::XdpAttach;
use crate::control::{LanStatus, ReasonCount, RulesetStatus, SetCount, Stats, Status};
use crate::explain::{Context, Explanation, Query, explain};
use crate::policy::Action;

impl Controller {
    pub(super) fn status(&self) -> Status {
        let steered = || {
            let rules = self.ruleset.rules.iter();
            rules.filter(|rule| matches!(rule.action, Action::Steer(_)))
        };
        let prefixes = || steered().flat_map(|rule| &rule.prefixes);
        let mask = self.config.routing.mark_mask;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            adopted: self.adopted,
            config: self.options.config.display().to_string(),
            ruleset: RulesetStatus {
                generation: self.generation,
                hash: self.ruleset_hash.clone(),
                steered_sets: steered().count(),
                steered_v4: prefixes().filter(|net| matches!(net, IpNet::V4(_))).count(),
                steered_v6: prefixes().filter(|net| matches!(net, IpNet::V6(_))).count(),
                table_bytes: self.datapath.table_bytes(),
            },
            list: summary(&self.list),
            lan: self
                .lans
                .iter()
                .map(|lan| LanStatus {
                    interface: lan.name.clone(),
                    xdp: lan.xdp.map(|xdp| match xdp {
                        XdpAttach::Native => "native".to_owned(),
                        XdpAttach::Generic => "generic".to_owned(),
                    }),
                    problem: self.lan_problem.clone(),
                })
                .collect(),
            egress: self
                .egresses
                .iter()
                .map(|egress| (egress.name.clone(), egress.status(mask)))
                .collect(),
        }
    }

    pub(super) fn stats(&self) -> Result<Stats> {
        let counters = self.datapath.counters()?;
        let reasons = counters.reasons.iter().map(|(reason, count)| ReasonCount {
            reason: reason.name().to_owned(),
            verdict: if reason.is_steer() { "steer" } else { "pass" }.to_owned(),
            count: *count,
            description: reason.description().to_owned(),
        });
        let sets = self.ruleset.rules.iter().map(|rule| SetCount {
            instance: rule.key.instance.to_string(),
            id: rule.key.id,
            service_area: rule.service_area.clone(),
            category: rule.category.to_string(),
            egress: match rule.action {
                Action::Steer(index) => egress_name(&self.persistent.egresses, index),
                Action::Pass => None,
            },
            count: counters
                .sets
                .get(usize::from(rule.slot))
                .copied()
                .unwrap_or_default(),
        });
        Ok(Stats {
            generation: self.generation,
            reasons: reasons.collect(),
            endpoint_sets: sets.collect(),
        })
    }

    /// Asks the table that the kernel holds now.
    pub(super) fn explain(&self, query: Query) -> Result<Explanation> {
        let table = self.datapath.live_table()?;
        let context = Context {
            ruleset: &self.ruleset,
            egresses: &self.persistent.egresses,
            list: (self.list.version.clone(), self.list.source.clone()),
            generation: table.get(GENERATION as usize).copied(),
            ways_out: Some(&ways_out(&self.egresses)),
            table: &table,
        };
        Ok(explain(query, &context))
    }
}
