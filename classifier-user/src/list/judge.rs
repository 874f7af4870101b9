//! Whether a new list looks right.

use std::collections::BTreeSet;
use std::fmt;

use breakout_common::table::Transport;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Category, EndpointSet, List, ListDelta, PortRange};
use crate::config::{ListConfig, Share};

/// Networks that no public service is in (RFC 6890 and the registries it names): private, loopback, link-local, shared,
/// documentation, benchmarking, multicast, reserved.
const SPECIAL: [&str; 24] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::/8",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3ffe::/16",
    "3fff::/20",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// The ports that Microsoft has given to category Optimize since there is one, in 2018: HTTP and HTTPS, QUIC, and Teams media.
const PORTS: [PortRange; 4] = [
    port_range(Transport::Tcp, 80, 80),
    port_range(Transport::Tcp, 443, 443),
    port_range(Transport::Udp, 443, 443),
    port_range(Transport::Udp, 3478, 3481),
];

/// What may come to category Optimize at once beyond as much again as there is: IPv4 addresses, and IPv6 networks of 64 bits. Of
/// either, Microsoft's lists of all years have fewer.
const GROWTH: [u128; 2] = [1 << 20, 1 << 32];

/// So many sets may move to category Optimize at once. In Microsoft's lists of all years hardly one did.
const MOVES: usize = 2;

const fn port_range(transport: Transport, first: u16, last: u16) -> PortRange {
    PortRange {
        transport,
        first,
        last,
    }
}

/// Something that stands out in a new list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The endpoint set, if it is about one.
    pub id: Option<u32>,
    /// What.
    pub what: String,
    /// Whether the list is refused for it.
    pub refuses: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.id {
            write!(f, "endpoint set {id}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// What the judge says of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// What stands out.
    pub findings: Vec<Finding>,
}

impl Judgement {
    /// Whether the list may be applied.
    pub fn is_passed(&self) -> bool {
        !self.findings.iter().any(|finding| finding.refuses)
    }

    /// Why it may not, in a sentence.
    pub fn refusal(&self) -> String {
        let refusals = self.findings.iter().filter(|finding| finding.refuses);
        let texts: Vec<String> = refusals.clone().take(3).map(ToString::to_string).collect();
        let more = refusals.count() - texts.len();
        match more {
            0 => texts.join("; "),
            _ => format!("{}; and {more} more", texts.join("; ")),
        }
    }
}

/// By what lists are judged.
#[derive(Clone, Debug)]
pub struct Judge {
    /// The shortest IPv4 prefix that is believed.
    pub shortest_v4: u8,
    /// The shortest IPv6 prefix that is believed.
    pub shortest_v6: u8,
    /// The largest share of prefixes or addresses that may go at once.
    pub max_removed: Share,
    /// The networks of the gateway and its LANs.
    pub own: Vec<IpNet>,
}

impl Judge {
    /// The judge that a configuration asks for, on a gateway with these networks.
    pub fn new(config: &ListConfig, own: Vec<IpNet>) -> Self {
        Judge {
            shortest_v4: config.shortest_v4,
            shortest_v6: config.shortest_v6,
            max_removed: config.max_removed,
            own,
        }
    }

    /// Judges a list that is to follow another one.
    pub fn judge(&self, before: &List, new: &List) -> Judgement {
        let mut findings = Vec::new();
        let mut find = |id, refuses, what| findings.push(Finding { id, what, refuses });
        if let (Some(old), Some(version)) = (&before.version, &new.version)
            && version < old
        {
            find(None, true, format!("version {version} is older than {old}"));
        }
        if let Some(version) = new
            .version
            .as_deref()
            .filter(|version| !is_version(version))
        {
            let what = format!(
                "version {version} is no day and number, as in 2026033100; every later list would be older"
            );
            find(None, true, what);
        }
        for problem in &new.problems {
            find(problem.id, problem.is_damage, problem.problem.clone());
        }
        if optimize(new).next().is_none() && optimize(before).next().is_some() {
            find(
                None,
                true,
                "no usable set is in category Optimize any more".to_owned(),
            );
        }
        for set in new.published() {
            for prefix in &set.prefixes {
                if let Some(what) = self.prefix(prefix) {
                    find(set.key.id(), true, what);
                }
            }
        }
        // The first lists had no category Optimize; those after them could be compared with nothing.
        let had_optimize = optimize(before).next().is_some();
        let mut moves = 0;
        for delta in ListDelta::between(before, new).sets {
            if let (Some(old), Some(now), true) =
                (&delta.category.0, &delta.category.1, delta.is_move())
            {
                let what = format!("has moved from category {old} to {now}");
                find(Some(delta.id), false, what);
                moves += usize::from(Category::from(now.as_str()) == Category::Optimize);
            }
        }
        if had_optimize && moves > MOVES {
            let what =
                format!("{moves} sets have moved to category Optimize at once, more than {MOVES}");
            find(None, true, what);
        }
        for set in optimize(new) {
            if let Some(what) = foreign_port(before, set) {
                find(set.key.id(), true, what);
            }
        }
        let (old, now) = (prefixes(optimize(before)), prefixes(optimize(new)));
        for what in self.losses(&old, &now) {
            find(
                None,
                true,
                format!(
                    "{what} of category Optimize are gone at once, more than {}",
                    self.max_removed
                ),
            );
        }
        for what in growths(&old, &now).into_iter().filter(|_| had_optimize) {
            find(None, true, what);
        }
        for set in optimize(before) {
            if let Some(lost) = self.lost_of(set, new) {
                let what = format!(
                    "{lost} % of what it steered, in addresses and ports, are gone at once, more than {}",
                    self.max_removed
                );
                find(set.key.id(), true, what);
            }
        }
        let usable = |list| prefixes(List::published(list).filter(|set| set.is_usable()));
        for what in self.losses(&usable(before), &usable(new)) {
            find(None, false, format!("{what} of all sets are gone at once"));
        }
        Judgement { findings }
    }

    fn prefix(&self, prefix: &IpNet) -> Option<String> {
        let shortest = match prefix {
            IpNet::V4(_) => self.shortest_v4,
            IpNet::V6(_) => self.shortest_v6,
        };
        if prefix.prefix_len() < shortest {
            return Some(format!(
                "{prefix} is shorter than /{shortest}, the shortest prefix that is believed"
            ));
        }
        let overlaps = |other: &IpNet| other.contains(prefix) || prefix.contains(other);
        let special = SPECIAL.iter().filter_map(|net| net.parse().ok());
        if let Some(net) = special.into_iter().find(overlaps) {
            return Some(format!("{prefix} is in {net}, where no public service is"));
        }
        let own = self.own.iter().find(|net| overlaps(net))?;
        Some(format!(
            "{prefix} overlaps {own}, a network of this gateway"
        ))
    }

    /// The families that lose too many addresses, with how many.
    fn losses(&self, old: &BTreeSet<IpNet>, new: &BTreeSet<IpNet>) -> Vec<String> {
        let families = [("IPv4", false), ("IPv6", true)].into_iter();
        let losses = families.filter_map(|(family, is_v6)| {
            let (old, kept) = (covered(old, is_v6), covered_by_both(old, new, is_v6));
            let lost = old.saturating_sub(kept);
            let is_too_much = self.max_removed.is_exceeded(lost, old);
            is_too_much.then(|| {
                format!(
                    "{} % of the {family} addresses",
                    lost.saturating_mul(100) / old.max(1)
                )
            })
        });
        losses.collect()
    }

    /// How much of an Optimize set that is there no more, in percent of addresses times ports, the new list steers by no other one
    /// either: media that loses its ports loses no address. It is too much if it is so in each family, or all of one. A set that is
    /// there still was renumbered, if anything.
    fn lost_of(&self, set: &EndpointSet, new: &List) -> Option<u128> {
        let own = prefixes([set].into_iter());
        let parts = elementary(&set.ports, new);
        let families = [false, true].into_iter().filter_map(|is_v6| {
            let is_family = |prefix: &IpNet| prefix.addr().is_ipv6() == is_v6;
            let mut same = optimize(new).filter(|now| now.key == set.key);
            let is_there = same.any(|now| now.prefixes.iter().any(is_family));
            let (addresses, mut old, mut lost) = (covered(&own, is_v6), 0u128, 0u128);
            for part in &parts {
                let width = u128::from(part.last - part.first) + 1;
                old += addresses * width;
                if !is_there {
                    let others = optimize(new)
                        .filter(|set| set.ports.iter().any(|range| overlaps(range, part)));
                    let kept = covered_by_both(&own, &prefixes(others), is_v6);
                    lost += addresses.saturating_sub(kept) * width;
                }
            }
            (old > 0).then_some((lost, old))
        });
        let families: Vec<(u128, u128)> = families.collect();
        let mut each = families.iter();
        let is_too_much = each.all(|(lost, old)| self.max_removed.is_exceeded(*lost, *old))
            || self.max_removed.is_exceeded(1, 1) && families.iter().any(|(lost, old)| lost == old);
        let percents = families
            .iter()
            .map(|(lost, old)| lost.saturating_mul(100) / old);
        percents.max().filter(|_| is_too_much)
    }
}

/// The sets that are steered unless a policy says otherwise.
fn optimize(list: &List) -> impl Iterator<Item = &EndpointSet> {
    let sets = list.published();
    sets.filter(|set| set.category == Category::Optimize && set.is_usable())
}

fn prefixes<'a>(sets: impl Iterator<Item = &'a EndpointSet>) -> BTreeSet<IpNet> {
    sets.flat_map(|set| set.prefixes.iter().copied()).collect()
}

fn overlaps(a: &PortRange, b: &PortRange) -> bool {
    a.transport == b.transport && a.first <= b.last && b.first <= a.last
}

/// The ports in parts that each Optimize set of the list has as a whole or not at all.
fn elementary(ports: &[PortRange], list: &List) -> Vec<PortRange> {
    let cuts: BTreeSet<(Transport, u16)> = (optimize(list).flat_map(|set| &set.ports))
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

/// Ports of an Optimize set that neither Microsoft's have had nor those of the list before.
fn foreign_port(before: &List, set: &EndpointSet) -> Option<String> {
    let known: Vec<&PortRange> = (PORTS.iter())
        .chain(optimize(before).flat_map(|set| &set.ports))
        .collect();
    let is_known = |transport, port| {
        let mut known = known.iter();
        known
            .any(|range| range.transport == transport && (range.first..=range.last).contains(&port))
    };
    let foreign = set.ports.iter().find(|range| {
        let mut ports = range.first..=range.last;
        ports.any(|port| !is_known(range.transport, port))
    })?;
    Some(format!(
        "has {foreign}, where category Optimize has never had a port"
    ))
}

/// Whether a version is a year since 2018, a month, a day and two digits, as Microsoft's.
fn is_version(version: &str) -> bool {
    let number = |range| {
        version
            .get(range)
            .and_then(|digits: &str| digits.parse().ok())
    };
    version.len() == 10
        && version.bytes().all(|byte| byte.is_ascii_digit())
        && number(0..4).is_some_and(|year: u32| (2018..2100).contains(&year))
        && number(4..6).is_some_and(|month: u32| (1..=12).contains(&month))
        && number(6..8).is_some_and(|day: u32| (1..=31).contains(&day))
}

/// The families in which far more would be steered than was.
fn growths(old: &BTreeSet<IpNet>, new: &BTreeSet<IpNet>) -> Vec<String> {
    let families = [("IPv4 addresses", false), ("IPv6 networks", true)].into_iter();
    let growths = families.zip(GROWTH).filter_map(|((what, is_v6), most)| {
        let (old, now) = (covered(old, is_v6), covered(new, is_v6));
        let is_too_much = now > old.saturating_mul(2).saturating_add(most);
        is_too_much.then(|| format!("category Optimize grows from {old} to {now} {what} at once"))
    });
    growths.collect()
}

/// How many addresses the prefixes of a family cover, IPv6 by /64 networks.
pub fn covered(prefixes: &BTreeSet<IpNet>, is_v6: bool) -> u128 {
    let networks: Vec<IpNet> = prefixes.iter().map(enclosing).collect();
    IpNet::aggregate(&networks)
        .iter()
        .filter(|net| is_v6 == net.addr().is_ipv6())
        .map(size)
        .sum()
}

/// How many addresses both sets of prefixes cover, counted as [`covered`] does.
fn covered_by_both(a: &BTreeSet<IpNet>, b: &BTreeSet<IpNet>, is_v6: bool) -> u128 {
    let union: BTreeSet<IpNet> = a.union(b).copied().collect();
    (covered(a, is_v6) + covered(b, is_v6)).saturating_sub(covered(&union, is_v6))
}

/// The prefix; of a longer one than /64 the network of that length.
fn enclosing(prefix: &IpNet) -> IpNet {
    match prefix {
        IpNet::V6(net) if net.prefix_len() > 64 => {
            Ipv6Net::new_assert(net.network(), 64).trunc().into()
        }
        prefix => *prefix,
    }
}

fn size(prefix: &IpNet) -> u128 {
    let size = |most: u8, length: u8| 1u128 << most.saturating_sub(length);
    match prefix {
        IpNet::V4(net) => size(Ipv4Net::max_prefix_len(net), net.prefix_len()),
        IpNet::V6(net) => size(Ipv6Net::max_prefix_len(net) / 2, net.prefix_len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{Instance, embedded, parse};

    fn judge() -> Judge {
        Judge::new(
            &ListConfig::default(),
            vec!["20.20.0.0/24".parse().unwrap()],
        )
    }

    fn list(rows: &str) -> List {
        parse(rows.as_bytes(), Instance::Worldwide, "test").unwrap()
    }

    fn set(id: u32, category: &str, prefixes: &[&str]) -> String {
        format!(r#"{{"id":{id},"ips":{prefixes:?},"tcpPorts":"443","category":"{category}"}}"#)
    }

    fn refusal(before: &List, new: &str) -> String {
        judge().judge(before, &list(new)).refusal()
    }

    #[test]
    fn the_built_in_lists_pass() {
        for instance in Instance::ALL {
            let list = embedded(instance);
            assert_eq!(
                judge().judge(&list, &list),
                Judgement::default(),
                "{instance}"
            );
        }
    }

    #[test]
    fn prefixes_that_no_service_has_are_refused() {
        let before = list(&format!("[{}]", set(1, "Optimize", &["40.96.0.0/13"])));
        for (prefix, part) in [
            ("0.0.0.0/0", "every address"),
            ("40.0.0.0/8", "shorter than /10"),
            ("2000::/16", "shorter than /28"),
            ("10.1.0.0/16", "10.0.0.0/8"),
            ("192.168.3.0/24", "192.168.0.0/16"),
            ("192.88.99.0/24", "192.88.99.0/24"),
            ("2001::/32", "2001::/23"),
            ("2002:2860::/28", "2002::/16"),
            ("127.0.0.1/32", "127.0.0.0/8"),
            ("239.1.0.0/16", "224.0.0.0/3"),
            ("fe80::/64", "fe80::/10"),
            ("20.20.0.0/16", "a network of this gateway"),
            ("40.96.0.1/13", "beyond its prefix length"),
        ] {
            let new = format!("[{}]", set(1, "Optimize", &["40.96.0.0/13", prefix]));
            let refusal = refusal(&before, &new);
            assert!(refusal.contains(part), "{prefix}: {refusal}");
            assert!(refusal.starts_with("endpoint set 1: "), "{refusal}");
        }
    }

    #[test]
    fn large_losses_are_refused() {
        let prefixes: Vec<String> = (0..10).map(|n| format!("40.{n}.0.0/16")).collect();
        let names: Vec<&str> = prefixes.iter().map(String::as_str).collect();
        let before = list(&format!("[{}]", set(1, "Optimize", &names)));
        let keep = |count: usize| format!("[{}]", set(1, "Optimize", &names[..count]));
        assert_eq!(refusal(&before, &keep(6)), "");
        let text = refusal(&before, &keep(5));
        assert!(
            text.contains("50 % of the IPv4 addresses of category Optimize are gone at once"),
            "{text}"
        );
        // Many prefixes, but hardly an address.
        let small: Vec<String> = (0..100).map(|n| format!("41.0.{n}.0/32")).collect();
        let small = small.iter().map(String::as_str);
        let many: Vec<&str> = names.iter().copied().chain(small).collect();
        let many = list(&format!("[{}]", set(1, "Optimize", &many)));
        assert_eq!(refusal(&many, &keep(10)), "");
        let halves: Vec<String> = (0..10).map(|n| format!("40.{n}.0.0/17")).collect();
        let both: Vec<&str> = names[..7].iter().copied().chain(["41.0.0.0/16"]).collect();
        assert_eq!(
            refusal(&before, &format!("[{}]", set(1, "Optimize", &both))),
            ""
        );
        let mut mixed = names.clone();
        mixed[9] = &halves[9];
        assert_eq!(
            refusal(&before, &format!("[{}]", set(1, "Optimize", &mixed))),
            ""
        );
        let before = list(&format!(
            "[{}]",
            set(
                1,
                "Optimize",
                &["40.96.0.0/13", "1.0.0.0/24", "1.0.1.0/24", "1.0.2.0/24"]
            )
        ));
        let less = format!(
            "[{}]",
            set(1, "Optimize", &["1.0.0.0/24", "1.0.1.0/24", "1.0.2.0/24"])
        );
        assert!(refusal(&before, &less).contains("% of the IPv4 addresses"));
    }

    #[test]
    fn long_prefixes_count_as_their_networks() {
        let before = list(&format!(
            "[{}]",
            set(1, "Optimize", &["2603:1006::/40", "2620:1ec:4::/64"])
        ));
        let longer = ["2603:1006::/40", "2620:1ec:4::1/128", "2620:1ec:4::2/128"];
        let new = list(&format!("[{}]", set(1, "Optimize", &longer)));
        // One of two prefixes is gone, but no address.
        assert_eq!(judge().judge(&before, &new).refusal(), "");
    }

    #[test]
    fn what_other_categories_lose_is_said_only() {
        let optimize = set(1, "Optimize", &["40.96.0.0/13"]);
        let before = list(&format!(
            "[{optimize},{}]",
            set(2, "Allow", &["52.0.0.0/10"])
        ));
        let judgement = judge().judge(&before, &list(&format!("[{optimize}]")));
        assert!(judgement.is_passed(), "{judgement:?}");
        let said = judgement.findings[0].to_string();
        assert_eq!(
            said,
            "88 % of the IPv4 addresses of all sets are gone at once"
        );
    }

    #[test]
    fn media_that_loses_its_ports_is_refused() {
        let media = |id: u32, ports: &str, prefix: &str| {
            format!(r#"{{"id":{id},"ips":["{prefix}"],{ports},"category":"Optimize"}}"#)
        };
        let mail = media(1, r#""tcpPorts":"80,443","udpPorts":"443""#, "40.64.0.0/10");
        let calls = |ports: &str| media(11, ports, "52.112.0.0/14");
        let before = list(&format!("[{mail},{}]", calls(r#""udpPorts":"3478-3481""#)));
        for (row, part) in [
            (String::new(), "endpoint set 11: 100 % of what it steered"),
            (calls(r#""udpPorts":"""#), "endpoint set 11: 100 % of"),
            (
                calls(r#""udpPorts":"3478-65535""#),
                "endpoint set 11: has UDP 3478-65535, where",
            ),
            (
                calls(r#""tcpPorts":"22""#),
                "endpoint set 11: has TCP 22, where",
            ),
        ] {
            let rows = [mail.clone(), row]
                .into_iter()
                .filter(|row| !row.is_empty());
            let rows: Vec<String> = rows.collect();
            let text = refusal(&before, &format!("[{}]", rows.join(",")));
            assert!(text.contains(part), "{part}: {text}");
        }
        let fewer = calls(r#""udpPorts":"3478,3481""#);
        assert_eq!(refusal(&before, &format!("[{mail},{fewer}]")), "");
        // What it had itself, and what another set has taken over.
        let quic = media(
            11,
            r#""tcpPorts":"443","udpPorts":"443,3478-3481""#,
            "52.112.0.0/14",
        );
        assert_eq!(refusal(&before, &format!("[{mail},{quic}]")), "");
        let renamed = media(51, r#""udpPorts":"3478-3481""#, "52.112.0.0/14");
        assert_eq!(refusal(&before, &format!("[{mail},{renamed}]")), "");
    }

    #[test]
    fn a_list_that_steers_the_internet_is_refused() {
        let before = list(&format!("[{}]", set(1, "Optimize", &["40.96.0.0/13"])));
        let tenths: Vec<String> = (1..=55).map(|n| format!("{}.64.0.0/10", n + 10)).collect();
        let tenths = tenths.iter().map(String::as_str);
        let much: Vec<&str> = ["40.96.0.0/13"].into_iter().chain(tenths).collect();
        let text = refusal(&before, &format!("[{}]", set(1, "Optimize", &much)));
        assert!(
            text.contains("category Optimize grows from 524288 to"),
            "{text}"
        );
        let more = ["40.96.0.0/13", "52.96.0.0/12"];
        assert_eq!(
            refusal(&before, &format!("[{}]", set(1, "Optimize", &more))),
            ""
        );
    }

    #[test]
    fn many_moves_to_optimize_are_refused() {
        let list_of = |category: &str| {
            let others = (2..=4).map(|id| set(id, category, &["41.0.0.0/16"]));
            let sets = [set(1, "Optimize", &["40.96.0.0/13"])]
                .into_iter()
                .chain(others);
            format!("[{}]", sets.collect::<Vec<_>>().join(","))
        };
        let text = refusal(&list(&list_of("Allow")), &list_of("Optimize"));
        assert_eq!(
            text,
            "3 sets have moved to category Optimize at once, more than 2"
        );
    }

    #[test]
    fn a_version_after_which_none_can_come_is_refused() {
        let before = list(&format!("[{}]", set(1, "Optimize", &["40.96.0.0/13"])));
        for (version, is_plain) in [
            ("2026033100", true),
            ("2018063000", true),
            ("9999999999", false),
            ("2026130100", false),
            ("20260331000", false),
            ("latest", false),
        ] {
            let mut new = before.clone();
            new.version = Some(version.to_owned());
            let judgement = judge().judge(&before, &new);
            assert_eq!(judgement.is_passed(), is_plain, "{version}: {judgement:?}");
        }
    }

    #[test]
    fn moves_are_called_out_and_older_versions_refused() {
        let mut before = list(&format!(
            "[{}, {}]",
            set(1, "Optimize", &["40.96.0.0/13"]),
            set(2, "Allow", &["41.0.0.0/16"])
        ));
        let mut new = list(&format!(
            "[{}, {}]",
            set(1, "Optimize", &["40.96.0.0/13"]),
            set(2, "Optimize", &["41.0.0.0/16"])
        ));
        let judgement = judge().judge(&before, &new);
        assert!(judgement.is_passed());
        assert_eq!(
            judgement.findings[0].to_string(),
            "endpoint set 2: has moved from category Allow to Optimize"
        );
        before.version = Some("2026033100".to_owned());
        new.version = Some("2026022700".to_owned());
        assert!(
            judge()
                .judge(&before, &new)
                .refusal()
                .contains("older than 2026033100")
        );
        let gone = refusal(
            &before,
            &format!("[{}]", set(1, "Allow", &["40.96.0.0/13"])),
        );
        assert!(
            gone.contains("no usable set is in category Optimize"),
            "{gone}"
        );
    }
}
