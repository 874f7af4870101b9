//! The egresses' rules and routes, and their marks.

use breakout_common::egress::MAX_EGRESSES;

use super::EgressState;
use crate::config::{Config, Routing};
use crate::links::{Gateway, RouteRule, RoutingPlan};

/// The rules and routes that there should be.
pub(in crate::controller) fn routing(config: &Config, states: &[EgressState]) -> RoutingPlan {
    let mut plan = empty_routing(&config.routing);
    for state in states {
        let Ok(ways) = &state.way_out else { continue };
        for v6 in [false, true] {
            let gateway = ways.gateway(v6);
            if gateway != Gateway::None {
                plan.entries.push(RouteRule {
                    mark: state.mark,
                    table: state.table,
                    interface: ways.interface.index,
                    is_onlink: matches!(gateway, Gateway::Address(address) if !ways.interface.is_on_link(address)),
                    gateway,
                    v6,
                });
            }
        }
    }
    plan
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
    }
}

/// The firewall mark of an egress, within the mask.
pub fn mark_of(routing: &Routing, index: u8) -> u32 {
    (u32::from(index) + 1) << routing.mark_mask.trailing_zeros()
}
