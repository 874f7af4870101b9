//! The egresses' rules and routes, and their marks.

use std::net::Ipv6Addr;

use breakout_common::egress::MAX_EGRESSES;

use super::EgressState;
use crate::config::{Config, Mode, Routing};
use crate::links::{Gateway, ProbeWay, RouteRule, RoutingPlan};

/// The rules and routes that there should be.
pub(in crate::controller) fn routing(config: &Config, states: &[EgressState]) -> RoutingPlan {
    let mut plan = empty_routing(&config.routing);
    for state in states {
        for v6 in [false, true] {
            // In redirect mode the programs send by themselves, and only probes need routes.
            plan.probed.extend(state.probe_way(v6));
            let is_routed = state.config.mode == Mode::Route;
            plan.entries.extend(state.route(v6).filter(|_| is_routed));
        }
    }
    plan
}

impl EgressState {
    /// The rule and route for an address family, if it has a way out.
    fn route(&self, v6: bool) -> Option<RouteRule> {
        let ways = self.way_out.as_ref().ok()?;
        let gateway = ways.gateway(v6);
        let is_on_link = |address| ways.interface.is_on_link(address);
        (gateway != Gateway::None).then(|| RouteRule {
            mark: self.mark,
            table: self.table,
            interface: ways.interface.index,
            is_onlink: matches!(gateway, Gateway::Address(address) if !is_on_link(address)),
            gateway,
            v6,
        })
    }

    /// The way of probes where there is no rule for them.
    pub(in crate::controller) fn probe_way(&self, v6: bool) -> Option<ProbeWay> {
        let ways = self.way_out.as_ref().ok()?;
        let route = self.route(v6)?;
        let from = if v6 {
            ways.probe_source
        } else {
            Ipv6Addr::UNSPECIFIED
        };
        (self.config.mode == Mode::Redirect).then_some(ProbeWay { route, from })
    }
}

/// Notes what the kernel has refused of their plan.
pub(in crate::controller) fn note_refused(states: &mut [EgressState], refused: &[RouteRule]) {
    for state in states {
        state.is_refused = [false, true].map(|v6| {
            let mut entries = refused.iter();
            entries.any(|entry| entry.table == state.table && entry.v6 == v6)
        });
    }
}

/// The plan by which everything of ours is removed.
pub(in crate::controller) fn empty_routing(numbers: &Routing) -> RoutingPlan {
    RoutingPlan {
        priority: numbers.rule_priority,
        mask: numbers.mark_mask,
        tables: numbers.table
            ..numbers
                .table
                .saturating_add(u32::try_from(MAX_EGRESSES).unwrap_or(u32::MAX)),
        entries: Vec::new(),
        keeps_others: false,
        probed: Vec::new(),
    }
}

/// The firewall mark of an egress, within the mask.
pub fn mark_of(routing: &Routing, index: u8) -> u32 {
    (u32::from(index) + 1) << routing.mark_mask.trailing_zeros()
}
