//! What is steered, in addresses and ports, and how it differs between two lists.

use std::collections::BTreeSet;

use breakout_common::table::Transport;

use crate::config::Share;
use crate::list::{Category, Coverage, EndpointSet, Family, PortRange};

/// The ports that Microsoft has given to category Optimize since there is one, in 2018: HTTP and HTTPS, QUIC, and Teams media.
const PORTS: [PortRange; 4] = [
    port_range(Transport::Tcp, 80, 80),
    port_range(Transport::Tcp, 443, 443),
    port_range(Transport::Udp, 443, 443),
    port_range(Transport::Udp, 3478, 3481),
];

/// The ports that other categories have had beyond these: mail.
const OTHER_PORTS: [PortRange; 4] = [
    port_range(Transport::Tcp, 25, 25),
    port_range(Transport::Tcp, 143, 143),
    port_range(Transport::Tcp, 587, 587),
    port_range(Transport::Tcp, 993, 995),
];

/// What may come to be steered at once beyond as much again as there is: IPv4 addresses, and IPv6 networks of 64 bits. Of
/// either, Microsoft's lists of all years have fewer in category Optimize.
const GROWTH: [u128; 2] = [1 << 20, 1 << 32];

const fn port_range(transport: Transport, first: u16, last: u16) -> PortRange {
    PortRange {
        transport,
        first,
        last,
    }
}

/// The sets of a list that are steered.
pub(super) struct Steered<'a> {
    pub(super) sets: Vec<&'a EndpointSet>,
    /// What they cover together, by family.
    coverage: [Coverage; 2],
}

impl<'a> Steered<'a> {
    pub(super) fn of(sets: impl Iterator<Item = &'a EndpointSet>) -> Self {
        let sets: Vec<&EndpointSet> = sets.collect();
        let coverage = Family::ALL.map(|family| coverage(&sets, family));
        Steered { sets, coverage }
    }

    /// Names the families of which too much is gone.
    pub(super) fn losses(&self, now: &Steered<'_>, most: Share) -> Vec<String> {
        let families = Family::ALL.into_iter();
        let losses = families.filter_map(|family| {
            let coverage = &self.coverage[family as usize];
            let all = coverage.size();
            let lost = all - coverage.common(&now.coverage[family as usize]);
            most.is_exceeded(lost, all).then(|| {
                format!(
                    "{} % of the {family} addresses that are steered ({lost} of {all} {})",
                    percent(lost, all),
                    family.unit()
                )
            })
        });
        losses.collect()
    }

    /// Names the families in which far more is steered than was.
    pub(super) fn growths(&self, old: &Steered<'_>) -> Vec<String> {
        let families = Family::ALL.into_iter().zip(GROWTH);
        let growths = families.filter_map(|(family, most)| {
            let (before, now) = (
                old.coverage[family as usize].size(),
                self.coverage[family as usize].size(),
            );
            (now > before.saturating_mul(2).saturating_add(most)).then(|| {
                format!(
                    "what is steered grows from {before} to {now} {} at once",
                    family.unit()
                )
            })
        });
        growths.collect()
    }

    /// Names the sets of which too much is gone, with the share: of addresses times ports that no other set has either, because media
    /// that loses its ports loses no address. It is too much if it is so in each family, or all of one. A set that is there
    /// still was renumbered, if anything.
    pub(super) fn lost_sets(&self, now: &Steered<'_>, most: Share) -> Vec<(Option<u32>, u128)> {
        let sets = self.sets.iter();
        let lost = sets.filter_map(|set| Some((set.key.id(), lost_of(set, now, most)?)));
        lost.collect()
    }

    /// Names the sets with ports that neither Microsoft's have had nor those that were steered before.
    pub(super) fn foreign_ports(&self, old: &Steered<'_>) -> Vec<(Option<u32>, String)> {
        let before: Vec<PortRange> = old.sets.iter().flat_map(|set| set.ports.clone()).collect();
        let foreign = self.sets.iter().filter_map(|set| {
            let others: &[PortRange] = match set.category {
                Category::Optimize => &[],
                _ => &OTHER_PORTS,
            };
            let known = || PORTS.iter().chain(others).chain(&before);
            let is_known = |transport, port| {
                known().any(|range| {
                    range.transport == transport && (range.first..=range.last).contains(&port)
                })
            };
            let foreign = set.ports.iter().find(|range| {
                let mut ports = range.first..=range.last;
                ports.any(|port| !is_known(range.transport, port))
            })?;
            let what = format!(
                "has {foreign}, where category {} has never had a port",
                set.category
            );
            Some((set.key.id(), what))
        });
        foreign.collect()
    }
}

fn coverage<'a>(sets: impl IntoIterator<Item = &'a &'a EndpointSet>, family: Family) -> Coverage {
    let prefixes = sets.into_iter().flat_map(|set| &set.prefixes);
    Coverage::of(prefixes, family)
}

fn lost_of(set: &EndpointSet, now: &Steered<'_>, most: Share) -> Option<u128> {
    let parts = elementary(&set.ports, now);
    let families = Family::ALL.into_iter().filter_map(|family| {
        let own = coverage([&set], family);
        let mut same = now.sets.iter().filter(|other| other.key == set.key);
        let is_there = same.any(|now| now.prefixes.iter().any(|net| Family::of(net) == family));
        let (addresses, mut all, mut lost) = (own.size(), 0u128, 0u128);
        for part in &parts {
            let width = u128::from(part.last - part.first) + 1;
            all += addresses * width;
            if !is_there {
                let others = now.sets.iter().filter(|set| has_port_of(set, part));
                lost += (addresses - own.common(&coverage(others, family))) * width;
            }
        }
        (all > 0).then_some((lost, all))
    });
    let families: Vec<(u128, u128)> = families.collect();
    let is_too_much = (families.iter()).all(|(lost, all)| most.is_exceeded(*lost, *all))
        || most.is_exceeded(1, 1) && families.iter().any(|(lost, all)| lost == all);
    let percents = families.iter().map(|(lost, all)| percent(*lost, *all));
    percents.max().filter(|_| is_too_much)
}

fn percent(part: u128, all: u128) -> u128 {
    part.saturating_mul(100) / all.max(1)
}

fn has_port_of(set: &EndpointSet, part: &PortRange) -> bool {
    let mut ports = set.ports.iter();
    ports.any(|range| {
        range.transport == part.transport && range.first <= part.last && part.first <= range.last
    })
}

/// Cuts ports into parts that each of the sets has as a whole or not at all.
fn elementary(ports: &[PortRange], steered: &Steered<'_>) -> Vec<PortRange> {
    let cuts: BTreeSet<(Transport, u16)> = (steered.sets.iter().flat_map(|set| &set.ports))
        .flat_map(|range| {
            [Some(range.first), range.last.checked_add(1)].map(|cut| (range.transport, cut))
        })
        .filter_map(|(transport, cut)| Some((transport, cut?)))
        .collect();
    let mut parts = Vec::new();
    for range in ports {
        let mut first = range.first;
        let inside = cuts.iter().filter(|(transport, cut)| {
            *transport == range.transport && range.first < *cut && *cut <= range.last
        });
        for (_, cut) in inside {
            parts.push(port_range(range.transport, first, cut - 1));
            first = *cut;
        }
        parts.push(port_range(range.transport, first, range.last));
    }
    parts
}
