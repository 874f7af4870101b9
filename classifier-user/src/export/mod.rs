//! The same rules for what else a site has: browsers, firewalls, routers, tunnels.

mod nft;
mod pac;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Result, bail};
use ipnet::IpNet;
use serde::Serialize;

use crate::config::{Config, EgressConfig, Preference};
use crate::controller::name_of;
use crate::list::{List, PortRange};
use crate::plain::plain;
use crate::policy::{Action, Choice};
use crate::ruleset::{Rule, Ruleset};

pub use pac::Pac;

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Proxy auto-configuration, for browsers. By host name, from the list alone.
    Pac,
    /// An nftables table that marks, exact to the port.
    Nft,
    /// Routes as a batch for `ip -batch`.
    Iproute2,
    /// Static routes for BIRD 2.
    Bird,
    /// Static routes for FRRouting.
    Frr,
    /// An external dynamic list: a prefix a line.
    Edl,
    /// `AllowedIPs` of a WireGuard peer that is to take all the rest.
    Wireguard,
    /// Everything, for programs.
    Json,
}

impl Format {
    /// Returns whether it can say which ports are meant.
    pub const fn has_ports(self) -> bool {
        matches!(self, Format::Nft | Format::Json)
    }
}

/// Input of an export.
pub struct Source<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The lists.
    pub lists: &'a [List],
    /// Ruleset that the policy makes of them.
    pub ruleset: &'a Ruleset,
    /// The preferences' indices, by their texts. Formats know one way: the most preferred egress.
    pub preferences: &'a BTreeMap<String, u8>,
    /// Only these rules of the policy; all without.
    pub only: &'a [String],
}

/// A rule of the policy about an endpoint set, as formats write it.
struct Line<'a> {
    rule: &'a Rule,
    policy: &'a str,
    choice: &'a Choice,
    /// The egress; `None` for the ordinary path.
    egress: Option<(&'a str, &'a EgressConfig)>,
}

/// Writes the rules in a format.
///
/// # Errors
///
/// When a rule is named that there is none of.
pub fn export(source: &Source<'_>, format: Format, pac: &Pac) -> Result<String> {
    for name in source.only {
        if !source.ruleset.policy.contains(name) {
            bail!(
                "there is no policy \"{name}\"; there are: {}",
                source.ruleset.policy.join(", ")
            );
        }
    }
    let lines = source.lines();
    if matches!(format, Format::Iproute2 | Format::Bird | Format::Frr) {
        interface_names(&lines)?;
    }
    Ok(match format {
        Format::Pac => pac.write(source.lists)?,
        Format::Nft => nft::write(source, &lines),
        Format::Iproute2 => routes::iproute2(source, &lines),
        Format::Bird => routes::bird(source, &lines),
        Format::Frr => routes::frr(source, &lines),
        Format::Edl => routes::edl(source, &lines),
        Format::Wireguard => routes::wireguard(source, &lines),
        Format::Json => json(source, &lines)?,
    })
}

impl<'a> Source<'a> {
    /// The rules that hold for every client, in the policy's order.
    fn lines(&self) -> Vec<Line<'a>> {
        let mut lines = Vec::new();
        for rule in &self.ruleset.rules {
            for choice in rule
                .choices
                .iter()
                .filter(|choice| choice.is_for_everyone())
            {
                let policy = self.policy_of(choice);
                if !self.only.is_empty() && !self.only.iter().any(|name| name == policy) {
                    continue;
                }
                let egress = match choice.action {
                    Action::Steer(index) => name_of(self.preferences, index),
                    Action::Pass => None,
                };
                lines.push(Line {
                    rule,
                    policy,
                    choice,
                    egress: egress
                        .and_then(|text| {
                            let preference = Preference::from_text(&text);
                            let name = *preference.egresses().first()?;
                            self.config.egress.get_key_value(name)
                        })
                        .map(|(name, egress)| (name.as_str(), egress)),
                });
            }
        }
        lines.sort_by_key(|line| line.choice.policy);
        lines
    }

    fn policy_of(&self, choice: &Choice) -> &'a str {
        let name = self.ruleset.policy.get(usize::from(choice.policy));
        name.map_or("", String::as_str)
    }

    /// Returns what stands at the head of every text.
    fn header(&self, comment: &str, lines: &[Line<'_>], format: Format) -> String {
        let mut text = String::new();
        let mut say = |line: &str| {
            // `ip -batch` joins a line that ends with a backslash to the next, also a comment.
            let end = if line.ends_with('\\') { " " } else { "" };
            let _ = writeln!(text, "{comment} {}{end}", plain(line));
        };
        say("Written by breakout export.");
        for list in self.lists {
            say(&format!("List {} from {}", list.name(), list.source));
        }
        say(&format!("Ruleset {}", self.ruleset.hash()));
        let conditional: BTreeSet<&str> = (self.ruleset.rules.iter())
            .flat_map(|rule| &rule.choices)
            .filter(|choice| !choice.is_for_everyone())
            .map(|choice| self.policy_of(choice))
            .collect();
        for policy in conditional {
            say(&format!(
                "LEFT OUT: policy \"{policy}\", which asks for sources, LAN, VLAN or share; its clients go by the others"
            ));
        }
        if format == Format::Nft {
            say(
                "Where endpoint sets overlap in addresses and ports, the order of the policy decides here.",
            );
        }
        if matches!(format, Format::Iproute2 | Format::Bird | Format::Frr) {
            for hop in missing_hops(lines) {
                say(&format!(
                    "NO NEXT HOP: set {hop}, or these routes look for every destination on the link itself"
                ));
            }
        }
        if !format.has_ports() {
            say(
                "This format has no ports. It also matches, because they share addresses with what is steered:",
            );
            let over_matched = self.over_matched(lines);
            for set in &over_matched {
                say(&format!("  {set}"));
            }
            if over_matched.is_empty() {
                say("  other ports of the same sets only");
            }
        }
        text
    }

    /// The endpoint sets that are not steered but have addresses of those that are.
    fn over_matched(&self, lines: &[Line<'_>]) -> Vec<String> {
        let steered = prefixes(lines);
        let is_steered = |rule: &Rule| {
            lines
                .iter()
                .any(|line| line.rule.key == rule.key && line.egress.is_some())
        };
        let others = self.ruleset.rules.iter().filter(|rule| !is_steered(rule));
        let shares = |rule: &&Rule| {
            let mut prefixes = rule.prefixes.iter();
            prefixes.any(|prefix| {
                steered
                    .iter()
                    .any(|net| net.contains(prefix) || prefix.contains(net))
            })
        };
        others
            .filter(shares)
            .map(|rule| {
                let area = &rule.service_area;
                format!(
                    "{} ({area}, {}): {}",
                    rule.key,
                    rule.category,
                    ports(&rule.ports)
                )
            })
            .collect()
    }
}

/// The kernel takes nearly every character in the name of a link; the languages of routers do not.
fn interface_names(lines: &[Line<'_>]) -> Result<()> {
    let is_ordinary =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'@');
    for (name, egress) in lines.iter().filter_map(|line| line.egress) {
        if !egress.interface.bytes().all(is_ordinary) {
            bail!(
                "egress.{name}.interface = \"{}\" has characters that the format cannot hold; rename the link, with letters, \
                 digits and . _ - + @",
                egress.interface
            );
        }
    }
    Ok(())
}

/// The next hops that routes want and the configuration does not have: Breakout learns them, other programs do not.
fn missing_hops(lines: &[Line<'_>]) -> BTreeSet<String> {
    let egresses = lines.iter().filter_map(|line| line.egress);
    let keys = egresses.flat_map(|(name, egress)| {
        let v4 = egress
            .gateway
            .is_none()
            .then(|| format!("egress.{name}.gateway"));
        let v6 = egress
            .gateway6
            .is_none()
            .then(|| format!("egress.{name}.gateway6"));
        [v4, v6]
    });
    keys.flatten().collect()
}

/// The prefixes that are steered, each once, in order.
fn prefixes(lines: &[Line<'_>]) -> BTreeSet<IpNet> {
    let steered = lines
        .iter()
        .filter(|line| line.egress.is_some() && !line.choice.shadow);
    steered
        .flat_map(|line| line.rule.prefixes.iter().copied())
        .collect()
}

fn ports(ports: &[PortRange]) -> String {
    let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn json(source: &Source<'_>, lines: &[Line<'_>]) -> Result<String> {
    #[derive(Serialize)]
    struct Exported<'a> {
        lists: Vec<String>,
        ruleset_hash: String,
        rules: Vec<ExportedRule<'a>>,
    }
    #[derive(Serialize)]
    struct ExportedRule<'a> {
        policy: &'a str,
        endpoint_set: String,
        service_area: &'a str,
        category: String,
        withdrawn: bool,
        action: &'a str,
        shadow: bool,
        prefixes: Vec<IpNet>,
        ports: Vec<PortRange>,
    }
    let rules = lines.iter().map(|line| ExportedRule {
        policy: line.policy,
        endpoint_set: line.rule.key.to_string(),
        service_area: &line.rule.service_area,
        category: line.rule.category.to_string(),
        withdrawn: line.rule.withdrawn.is_some(),
        action: line.egress.map_or("pass", |(name, _)| name),
        shadow: line.choice.shadow,
        prefixes: line.rule.prefixes.clone(),
        ports: line.ports(),
    });
    let exported = Exported {
        lists: source.lists.iter().map(List::name).collect(),
        ruleset_hash: source.ruleset.hash(),
        rules: rules.collect(),
    };
    Ok(serde_json::to_string_pretty(&exported)? + "\n")
}

impl Line<'_> {
    /// The ports that the rule is about: those of the set, and of these only what the rule names.
    fn ports(&self) -> Vec<PortRange> {
        let Some(wanted) = &self.choice.ports else {
            return self.rule.ports.clone();
        };
        let pairs = self
            .rule
            .ports
            .iter()
            .flat_map(|ports| wanted.iter().map(move |wanted| (ports, wanted)));
        let common = pairs.filter_map(|(ports, wanted)| {
            let (first, last) = (ports.first.max(wanted.first), ports.last.min(wanted.last));
            let meet = ports.transport == wanted.transport && first <= last;
            meet.then_some(PortRange {
                transport: ports.transport,
                first,
                last,
            })
        });
        common.collect()
    }
}

#[cfg(test)]
mod tests;
