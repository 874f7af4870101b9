//! Steered addresses and ports, and how they differ between two lists.

use std::collections::{BTreeSet, HashMap};

use breakout_common::table::Transport;

use crate::config::Share;
use crate::list::{Category, Coverage, EndpointSet, Family, PortRange, SetKey};

/// The ports that Microsoft has given to category Optimize since there is one, in 2018: HTTP and HTTPS, QUIC, and Teams media.
const PORTS: [PortRange; 4] = [
    port_range(Transport::Tcp, 80, 80),
    port_range(Transport::Tcp, 443, 443),
    port_range(Transport::Udp, 443, 443),
    port_range(Transport::Udp, 3478, 3481),
];

/// The ports of Teams' media.
const MEDIA: PortRange = port_range(Transport::Udp, 3478, 3481);

/// The ports that other categories have had beyond these: mail.
const OTHER_PORTS: [PortRange; 4] = [
    port_range(Transport::Tcp, 25, 25),
    port_range(Transport::Tcp, 143, 143),
    port_range(Transport::Tcp, 587, 587),
    port_range(Transport::Tcp, 993, 995),
];

/// Addresses that may come to be steered at once beyond as much again as there is: IPv4 addresses, and IPv6 networks of 64 bits. Of
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
    /// Coverage of all together, by family.
    pub(super) coverage: [Coverage; 2],
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
    /// still may have as many other addresses instead.
    pub(super) fn lost_sets(&self, now: &Steered<'_>, most: Share) -> Vec<(Option<u32>, u128)> {
        let by_key: HashMap<&SetKey, &EndpointSet> =
            now.sets.iter().map(|set| (&set.key, *set)).collect();
        let cells = cells(&self.sets, &now.sets);
        let sets = self.sets.iter();
        let lost = sets.filter_map(|set| {
            let lost = lost_of(set, by_key.get(&set.key).copied(), &cells, most)?;
            Some((set.key.id(), lost))
        });
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

pub(super) fn coverage<'a>(
    sets: impl IntoIterator<Item = &'a &'a EndpointSet>,
    family: Family,
) -> Coverage {
    let prefixes = sets.into_iter().flat_map(|set| &set.prefixes);
    Coverage::of(prefixes, family)
}

/// Ports that each set has as a whole or not at all, and what the sets cover that have them, by family.
struct Cell {
    ports: PortRange,
    coverage: [Coverage; 2],
}

impl Cell {
    /// Returns how much the ports count: what all of a service depends on more, HTTP without TLS, which only leads on to HTTPS, not at all.
    fn weight(&self) -> u128 {
        let PortRange {
            transport,
            first,
            last,
        } = self.ports;
        let has = |port: u16| u128::from((first..=last).contains(&port));
        let width = u128::from(last - first) + 1;
        match transport {
            Transport::Tcp => width + 2 * has(443) - has(80),
            Transport::Udp => width + 2 * has(3478),
        }
    }
}

/// Cuts the ports of `before` into cells, with what `now` covers of each.
fn cells(before: &[&EndpointSet], now: &[&EndpointSet]) -> Vec<Cell> {
    let all = before.iter().chain(now).flat_map(|set| &set.ports);
    let cuts: BTreeSet<(Transport, u32)> = all
        .flat_map(|range| {
            [u32::from(range.first), u32::from(range.last) + 1].map(|cut| (range.transport, cut))
        })
        .collect();
    let cuts: Vec<(Transport, u32)> = cuts.into_iter().collect();
    let between = cuts.windows(2).filter_map(|pair| {
        let ((transport, first), (other, end)) = (pair[0], pair[1]);
        let ports = PortRange {
            transport,
            first: u16::try_from(first).ok()?,
            last: u16::try_from(end - 1).ok()?,
        };
        (transport == other && before.iter().any(|set| has_ports(set, &ports))).then_some(ports)
    });
    let cells = between.map(|ports| Cell {
        ports,
        coverage: Family::ALL
            .map(|family| coverage(now.iter().filter(|set| has_ports(set, &ports)), family)),
    });
    cells.collect()
}

fn has_ports(set: &EndpointSet, cell: &PortRange) -> bool {
    let mut ports = set.ports.iter();
    ports.any(|range| {
        range.transport == cell.transport && range.first <= cell.first && cell.last <= range.last
    })
}

fn lost_of(
    set: &EndpointSet,
    successor: Option<&EndpointSet>,
    cells: &[Cell],
    most: Share,
) -> Option<u128> {
    let own_cells = || cells.iter().filter(|cell| has_ports(set, &cell.ports));
    // A set of HTTP alone counts as well.
    let is_light = own_cells().all(|cell| cell.weight() == 0);
    let families = Family::ALL.into_iter().filter_map(|family| {
        let own = coverage([&set], family);
        let instead = successor.map(|set| coverage([&set], family).size());
        let (addresses, mut all, mut lost) = (own.size(), 0u128, 0u128);
        for cell in own_cells() {
            let weight = cell.weight() + u128::from(is_light);
            let kept = own.common(&cell.coverage[family as usize]);
            // In China Skype became Teams, and HTTPS its media.
            let becomes_media =
                |now: &EndpointSet| has_ports(now, &MEDIA) && !has_ports(set, &MEDIA);
            let is_there = |now: &EndpointSet| has_ports(now, &cell.ports) || becomes_media(now);
            let instead = instead.filter(|_| successor.is_some_and(is_there));
            let kept = kept.max(instead.unwrap_or_default().min(addresses));
            all += addresses * weight;
            lost += (addresses - kept) * weight;
        }
        (all > 0).then_some((lost, all))
    });
    let families: Vec<(u128, u128)> = families.collect();
    let is_too_much = !families.is_empty()
        && (families.iter()).all(|(lost, all)| most.is_exceeded(*lost, *all))
        || most.is_exceeded(1, 1) && families.iter().any(|(lost, all)| lost == all);
    let percents = families.iter().map(|(lost, all)| percent(*lost, *all));
    percents.max().filter(|_| is_too_much)
}

/// Percent, rounded up, so that what is more than a limit is also shown so.
fn percent(part: u128, all: u128) -> u128 {
    part.saturating_mul(100).div_ceil(all.max(1))
}
