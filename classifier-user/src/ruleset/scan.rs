//! The ruleset asked rule by rule: slow, obviously right, and able to name the prefix.

use std::net::IpAddr;

use breakout_common::condition::Client;
use breakout_common::table::{Destination, Transport};
use ipnet::IpNet;

use super::fold::precedence;
use super::{Rule, Ruleset};
use crate::list::PortRange;
use crate::policy::Choice;

/// An endpoint set that a packet belongs to, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The longest of its prefixes that covers the destination.
    pub prefix: IpNet,
    /// Its port range that the packet matches.
    pub ports: PortRange,
}

/// Rule that decides a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The endpoint set.
    pub set: Match<'a>,
    /// Choice of the policy; `None` if no rule matches the packet, so that it passes.
    pub choice: Option<&'a Choice>,
    /// True if another client's packet might be decided otherwise.
    pub depends_on_client: bool,
}

/// A rule with the longest of its prefixes that covers a destination.
pub type Covering<'a> = (&'a Rule, IpNet);

impl Ruleset {
    /// Returns what decides a packet with a destination, protocol and port from a client, if any rule matches.
    pub fn find(
        &self,
        destination: IpAddr,
        transport: Transport,
        port: u16,
        client: &Client,
    ) -> Option<Found<'_>> {
        self.decide(&self.covering(destination), transport, port, client)
    }

    /// As [`find`](Self::find), among the rules that cover the destination.
    pub fn decide<'a>(
        &self,
        covering: &[Covering<'a>],
        transport: Transport,
        port: u16,
        client: &Client,
    ) -> Option<Found<'a>> {
        let matches = matches(covering, transport, port);
        let first = *matches.first()?;
        let groups = self.groups(client.source);
        let mut choices: Vec<(Match<'a>, &Choice)> = matches
            .into_iter()
            .flat_map(|set| set.rule.choices.iter().map(move |choice| (set, choice)))
            .filter(|(_, choice)| lists(choice.ports.as_deref(), transport, port))
            .collect();
        // Stable, so that of two sets that one rule is about the one that wins comes first.
        choices.sort_by_key(|(_, choice)| choice.policy);
        let mut depends_on_client = false;
        for (set, choice) in choices {
            depends_on_client |= !choice.is_for_everyone();
            let applies = |condition: &breakout_common::condition::Condition| {
                condition.applies(groups, client)
            };
            if choice.conditions.iter().any(applies) {
                return Some(Found {
                    set,
                    choice: Some(choice),
                    depends_on_client,
                });
            }
        }
        Some(Found {
            set: first,
            choice: None,
            depends_on_client,
        })
    }

    /// The source groups that an address is in, as bits.
    fn groups(&self, source: Destination) -> u32 {
        let address = IpAddr::from(source);
        let groups = self.sources.iter().zip(0u32..);
        let inside =
            groups.filter(|(group, _)| group.iter().any(|prefix| prefix.contains(&address)));
        inside.fold(0, |bits, (_, number)| bits | 1 << number)
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

/// The endpoint sets that a packet with a protocol and port belongs to, of those that cover its destination: one of each
/// instance, and custom ones. The first one wins over the others.
pub fn matches<'a>(covering: &[Covering<'a>], transport: Transport, port: u16) -> Vec<Match<'a>> {
    let mut all: Vec<Match<'a>> = covering
        .iter()
        .filter_map(|(rule, prefix)| {
            let ports = rule
                .ports
                .iter()
                .find(|ports| contains(ports, transport, port))?;
            Some(Match {
                rule,
                prefix: *prefix,
                ports: *ports,
            })
        })
        .collect();
    all.sort_by_key(|found| std::cmp::Reverse(precedence(found.rule, found.prefix.prefix_len())));
    let mut winners: Vec<Match<'a>> = Vec::new();
    for found in all {
        let is_same = |winner: &Match<'_>| winner.rule.key.same_origin(&found.rule.key);
        if !winners.iter().any(is_same) {
            winners.push(found);
        }
    }
    winners
}

fn contains(ports: &PortRange, transport: Transport, port: u16) -> bool {
    ports.transport == transport && (ports.first..=ports.last).contains(&port)
}

/// Returns whether a list of ports has one; no list has all.
fn lists(ports: Option<&[PortRange]>, transport: Transport, port: u16) -> bool {
    ports.is_none_or(|list| list.iter().any(|ports| contains(ports, transport, port)))
}
