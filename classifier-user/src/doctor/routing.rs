//! Rules and routes of others.

use anyhow::Result;
use ipnet::IpNet;

use super::{Finding, Level};
use crate::config::Config;
use crate::links::{Links, RouteFound, RuleFound};
use crate::ruleset::{Rule, Ruleset};
use breakout_common::egress::MAX_EGRESSES;

/// The most routes that are named one by one.
const MOST_ROUTES: usize = 5;

pub(super) async fn examine(
    links: &Links,
    config: &Config,
    ruleset: &Ruleset,
) -> Result<Vec<Finding>> {
    let mut findings = rules(&links.rules().await?, config);
    findings.extend(routes(&links.routes().await?, config, ruleset));
    Ok(findings)
}

fn rules(rules: &[RuleFound], config: &Config) -> Vec<Finding> {
    let routing = &config.routing;
    let mut findings = Vec::new();
    for rule in rules.iter().filter(|rule| !rule.is_ours) {
        let family = if rule.v6 { "ip -6 rule" } else { "ip rule" };
        let name = format!("the rule with priority {} ({family} show)", rule.priority);
        if rule.mask & routing.mark_mask != 0 {
            findings.push(Finding::new(
                Level::Warning,
                format!(
                    "{name} asks for bits of the firewall mark that are Breakout's ({:#x})",
                    routing.mark_mask
                ),
                "Set [routing] mark_mask to bits that nobody uses",
            ));
        }
        if tables(config).contains(&rule.table) {
            findings.push(Finding::new(
                Level::Warning,
                format!("{name} leads to table {}, which is Breakout's", rule.table),
                "Set [routing] table to numbers that nobody uses",
            ));
        }
        if rule.priority == routing.rule_priority {
            findings.push(Finding::new(
                Level::Warning,
                format!("{name} has the priority of Breakout's; which one comes first is chance"),
                "Set [routing] rule_priority to a number that nobody uses",
            ));
        }
        // Rules that want a mark are about other packets than ours.
        if rule.priority != 0
            && rule.priority < routing.rule_priority
            && rule.mask == 0
            && rule.table != 0
            && !rule.is_l3mdev
            && !rule.suppresses
        {
            findings.push(Finding::new(
                Level::Warning,
                format!("{name} comes before Breakout's, and packets that it finds a route for are not steered in mode route"),
                format!("Set [routing] rule_priority below {}, if it should not", rule.priority),
            ));
        }
    }
    findings
}

fn routes(routes: &[RouteFound], config: &Config, ruleset: &Ruleset) -> Vec<Finding> {
    let mut findings = Vec::new();
    for route in routes
        .iter()
        .filter(|route| !route.is_ours && tables(config).contains(&route.table))
    {
        findings.push(Finding::new(
            Level::Warning,
            format!(
                "table {}, which is Breakout's, has somebody else's route to {}",
                route.table, route.prefix
            ),
            "Set [routing] table to numbers that nobody uses, or remove the route",
        ));
    }
    let steered: Vec<IpNet> = (ruleset.rules.iter().filter(|rule| Rule::is_steered(rule)))
        .flat_map(|rule| rule.prefixes.iter().copied())
        .collect();
    let is_egress = |name: &str| {
        config
            .egress
            .values()
            .any(|egress| egress.interface == name)
    };
    let specific = routes.iter().filter(|route| {
        route.prefix.prefix_len() > 0 && route.table == 254 && !is_egress(&route.interface)
    });
    let overridden: Vec<&RouteFound> = specific
        .filter(|route| {
            steered
                .iter()
                .any(|net| net.contains(&route.prefix) || route.prefix.contains(net))
        })
        .collect();
    for route in overridden.iter().take(MOST_ROUTES) {
        findings.push(Finding::new(
            Level::Note,
            format!(
                "the route to {} by {} is about steered destinations, which no longer take it{}",
                route.prefix,
                route.interface,
                match overridden.len().saturating_sub(MOST_ROUTES) {
                    0 => String::new(),
                    more => format!(" (and {more} more)"),
                }
            ),
            "If they should, have a [[policy]] pass them",
        ));
    }
    findings
}

fn tables(config: &Config) -> std::ops::Range<u32> {
    let count = u32::try_from(MAX_EGRESSES).unwrap_or(u32::MAX);
    config.routing.table..config.routing.table.saturating_add(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: RuleFound = RuleFound {
        v6: false,
        priority: 2000,
        mask: 0x3f00,
        table: 1,
        is_l3mdev: false,
        suppresses: false,
        is_ours: false,
    };

    fn found(rule: RuleFound) -> Vec<String> {
        let findings = rules(&[rule], &Config::default());
        findings.into_iter().map(|finding| finding.advice).collect()
    }

    #[test]
    fn clashes_of_rules_are_found_and_mwan3_is_none() {
        assert!(found(OTHER).is_empty());
        let ours = RuleFound {
            is_ours: true,
            mask: 0xff_0000,
            ..OTHER
        };
        assert!(found(ours).is_empty());
        assert!(
            found(RuleFound {
                mask: 0x1_0000,
                ..OTHER
            })[0]
                .contains("mark_mask")
        );
        assert!(
            found(RuleFound {
                table: 5003,
                ..OTHER
            })[0]
                .contains("table")
        );
        assert!(
            found(RuleFound {
                priority: 5000,
                ..OTHER
            })[0]
                .contains("rule_priority")
        );
        assert!(found(RuleFound { mask: 0, ..OTHER })[0].contains("below 2000"));
        assert!(
            found(RuleFound {
                mask: 0,
                priority: 0,
                ..OTHER
            })
            .is_empty()
        );
    }
}
