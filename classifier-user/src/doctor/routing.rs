//! Rules and routes of others.

use anyhow::Result;
use ipnet::IpNet;

use super::{Finding, Level};
use crate::config::{Config, Mode, Routing};
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
    for rule in rules.iter().filter(|rule| rule.is_ours) {
        let is_configured =
            rule.priority == routing.rule_priority && tables(config).contains(&rule.table);
        if !is_configured {
            let family = if rule.v6 { "-6 " } else { "" };
            findings.push(Finding::new(
                Level::Warning,
                format!(
                    "the rule with priority {} (ip {family}rule show) is a Breakout controller's, but not of this configuration: it \
                     leads to table {}",
                    rule.priority, rule.table
                ),
                "If no other controller runs here: breakout unload, then breakout run; or remove it by ip rule del priority NUMBER",
            ));
        }
    }
    // In redirect mode nothing is marked, and no rule of Breakout's is asked.
    let mut egresses = config.egress.values();
    let has_rules = config.egress.is_empty() || egresses.any(|egress| egress.mode == Mode::Route);
    let others = rules.iter().filter(|rule| !rule.is_ours && has_rules);
    for rule in others {
        let family = if rule.v6 { "ip -6 rule" } else { "ip rule" };
        let name = format!("the rule with priority {} ({family} show)", rule.priority);
        if rule.mask & routing.mark_mask != 0 && !rule.is_inverted {
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
        findings.extend(comes_first(rule, &name, routing));
    }
    findings.extend(slows_all(rules));
    findings
}

/// Somebody else's rule for IPv4, which has a price that nobody sees: with the first rule beside its own three the kernel
/// begins to look for the source of each packet as well, and goes on when the rule is gone (Linux, `fib_has_custom_rules`).
fn slows_all(rules: &[RuleFound]) -> Option<Finding> {
    /// The kernel's own: those that lead to the tables local, main and default.
    const KERNELS: [(u32, u32); 3] = [(0, 255), (32_766, 254), (32_767, 253)];
    let is_others = |rule: &&RuleFound| {
        !rule.v6 && !rule.is_ours && !KERNELS.contains(&(rule.priority, rule.table))
    };
    let rule = rules.iter().find(is_others)?;
    Some(Finding::new(
        Level::Note,
        format!(
            "the rule with priority {} (ip rule show) is not Breakout's. With any rule beside its own the kernel forwards all \
             IPv4 packets more slowly, steered or not, and goes on to do so when the rule is gone",
            rule.priority
        ),
        "Nothing, if it is needed: wg-quick, mwan3 and VRFs need theirs. Otherwise remove it and restart the gateway",
    ))
}

/// A rule before ours that takes steered packets, or may.
fn comes_first(rule: &RuleFound, name: &str, routing: &Routing) -> Option<Finding> {
    let takes = rule.table != 0 && !rule.is_l3mdev && !rule.suppresses;
    if rule.priority == 0 || rule.priority >= routing.rule_priority || !takes {
        return None;
    }
    let what = format!(
        "{name} comes before Breakout's, and packets that it finds a route for are not steered in mode route"
    );
    Some(if rule.mask == 0 {
        let advice = format!(
            "Set [routing] rule_priority below {}, if it should not",
            rule.priority
        );
        Finding::new(Level::Warning, what, advice)
    } else if rule.is_inverted {
        // wg-quick's. The kernel puts a rule without a priority before all others.
        let advice = format!(
            "Give it a priority above {} (wg-quick: Table = off, and ip rule add ... priority NUMBER in PostUp); or set [routing] \
             rule_priority below {} and restart Breakout after it",
            routing.rule_priority, rule.priority
        );
        Finding::new(Level::Warning, what, advice)
    } else {
        let what = format!(
            "{name} comes before Breakout's and takes steered packets that carry its mark as well"
        );
        let advice = format!(
            "Set [routing] rule_priority below {}, if it should not",
            rule.priority
        );
        Finding::new(Level::Warning, what, advice)
    })
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
        is_inverted: false,
        table: 1,
        is_l3mdev: false,
        suppresses: false,
        is_ours: false,
    };

    fn found(rule: RuleFound) -> Vec<String> {
        found_with(rule, &Config::default())
    }

    fn found_with(rule: RuleFound, config: &Config) -> Vec<String> {
        let findings = rules(&[rule], config).into_iter();
        let clashes = findings.filter(|finding| finding.level != Level::Note);
        clashes.map(|finding| finding.advice).collect()
    }

    #[test]
    fn others_rules_are_noted_for_what_they_cost_all() {
        let notes = |rule: RuleFound| {
            let findings = rules(&[rule], &Config::default()).into_iter();
            findings
                .filter(|finding| finding.level == Level::Note)
                .count()
        };
        let kernels = RuleFound {
            priority: 32_766,
            table: 254,
            ..OTHER
        };
        let vrf = RuleFound {
            priority: 1000,
            table: 0,
            is_l3mdev: true,
            ..OTHER
        };
        assert_eq!([OTHER, vrf].map(notes), [1, 1]);
        let ours = RuleFound {
            is_ours: true,
            ..OTHER
        };
        let v6 = RuleFound { v6: true, ..OTHER };
        assert_eq!([kernels, ours, v6].map(notes), [0, 0, 0]);
    }

    #[test]
    fn clashes_of_rules_are_found_and_mwan3_is_none() {
        assert!(found(OTHER).is_empty());
        let ours = RuleFound {
            is_ours: true,
            mask: 0x1f00_0000,
            priority: 900,
            table: 5001,
            ..OTHER
        };
        assert!(found(ours).is_empty());
        let former = RuleFound {
            table: 6001,
            ..ours
        };
        assert!(found(former)[0].contains("breakout unload"));
        assert!(
            found(RuleFound {
                mask: 0x100_0000,
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
                priority: 900,
                ..OTHER
            })[0]
                .contains("rule_priority")
        );
        let early = RuleFound {
            priority: 800,
            ..OTHER
        };
        assert!(found(RuleFound { mask: 0, ..early })[0].contains("below 800"));
        for (mode, clashes) in [("route", 1), ("redirect", 0)] {
            let egress = format!("[egress.local]\ninterface = \"inet\"\nmode = \"{mode}\"\n");
            let config = toml::from_str(&egress).unwrap();
            let found = found_with(RuleFound { mask: 0, ..early }, &config);
            assert_eq!(found.len(), clashes, "{mode}: {found:?}");
        }
        // One of mwan3 that comes first takes what it marks, wg-quick's takes all.
        assert!(found(early)[0].contains("below 800"));
        let of_wireguard = found(RuleFound {
            mask: u32::MAX,
            is_inverted: true,
            ..early
        });
        assert!(of_wireguard.len() == 1 && of_wireguard[0].contains("wg-quick"));
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
