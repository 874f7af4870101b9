//! The ruleset asked rule by rule: slow, obviously right, and able to name the prefix.

use std::net::IpAddr;

use breakout_common::table::Transport;
use ipnet::IpNet;

use super::fold::precedence;
use super::{Rule, Ruleset};
use crate::list::PortRange;

/// The rule that decides a packet, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'a> {
    /// The winning rule.
    pub rule: &'a Rule,
    /// The longest of its prefixes that covers the destination.
    pub prefix: IpNet,
    /// Its port range that the packet matches.
    pub ports: PortRange,
}

/// A rule with the longest of its prefixes that covers a destination.
pub type Covering<'a> = (&'a Rule, IpNet);

impl Ruleset {
    /// The rule that wins for a destination, protocol and port, if any matches.
    pub fn find(&self, destination: IpAddr, transport: Transport, port: u16) -> Option<Match<'_>> {
        winner(&self.covering(destination), transport, port)
    }

    /// The rules that cover a destination; none if it is the gateway itself.
    pub fn covering(&self, destination: IpAddr) -> Vec<Covering<'_>> {
        if self.own.contains(&destination) {
            return Vec::new();
        }
        let covering = self.rules.iter().filter_map(|rule| {
            let covering = rule.prefixes.iter().filter(|p| p.contains(&destination));
            let prefix = covering.max_by_key(|prefix| prefix.prefix_len())?;
            Some((rule, *prefix))
        });
        covering.collect()
    }

    /// The longest prefix of any rule that covers the destination.
    pub fn covering_prefix(&self, destination: IpAddr) -> Option<IpNet> {
        let covering = self.covering(destination).into_iter();
        let prefixes = covering.map(|(_, prefix)| prefix);
        prefixes.max_by_key(IpNet::prefix_len)
    }
}

/// The rule that wins for a protocol and port among those that cover the destination.
pub fn winner<'a>(covering: &[Covering<'a>], transport: Transport, port: u16) -> Option<Match<'a>> {
    let matches = covering.iter().filter_map(|(rule, prefix)| {
        let ports = rule.ports.iter().find(|ports| {
            ports.transport == transport && (ports.first..=ports.last).contains(&port)
        })?;
        Some(Match {
            rule,
            prefix: *prefix,
            ports: *ports,
        })
    });
    matches.max_by_key(|found| precedence(found.rule, found.prefix.prefix_len()))
}
