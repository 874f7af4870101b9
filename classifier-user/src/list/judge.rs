//! Whether a new list looks right.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Category, EndpointSet, List, ListDelta};
use crate::config::{ListConfig, Share};

/// Networks that no public service is in (RFC 6890 and the registries it names): private, loopback, link-local, shared,
/// documentation, benchmarking, multicast, reserved.
const SPECIAL: [&str; 20] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::/8",
    "100::/64",
    "2001:db8::/32",
    "3fff::/20",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

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
        for problem in &new.problems {
            find(problem.id, problem.is_damage, problem.problem.clone());
        }
        let has_optimize = |list: &List| {
            let mut sets = list.published();
            sets.any(|set| set.category == Category::Optimize && set.is_usable())
        };
        if !has_optimize(new) && has_optimize(before) {
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
        for delta in ListDelta::between(before, new).sets {
            if let (Some(old), Some(now), true) =
                (&delta.category.0, &delta.category.1, delta.is_move())
            {
                let what = format!("has moved from category {old} to {now}");
                find(Some(delta.id), false, what);
            }
        }
        for (what, usable) in [
            ("all sets", None),
            ("category Optimize", Some(Category::Optimize)),
        ] {
            if let Some(what) = self.losses(before, new, what, usable.as_ref()) {
                find(None, true, what);
            }
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

    fn losses(
        &self,
        before: &List,
        new: &List,
        what: &str,
        category: Option<&Category>,
    ) -> Option<String> {
        let of = |list: &List| -> BTreeSet<IpNet> {
            let sets = list.published().filter(|set| set.is_usable());
            let sets = sets.filter(|set| category.is_none_or(|category| set.category == *category));
            sets.flat_map(|set: &EndpointSet| set.prefixes.iter().copied())
                .collect()
        };
        let (old, new) = (of(before), of(new));
        let gone = old.difference(&new).count();
        if self
            .max_removed
            .is_exceeded(gone as u128, old.len() as u128)
        {
            return Some(format!(
                "{gone} of {} prefixes of {what} are gone at once, more than {}",
                old.len(),
                self.max_removed
            ));
        }
        for (family, is_v6) in [("IPv4", false), ("IPv6", true)] {
            let (old, kept) = (covered(&old, is_v6), covered_by_both(&old, &new, is_v6));
            let lost = old.saturating_sub(kept);
            if self.max_removed.is_exceeded(lost, old) {
                return Some(format!(
                    "{} % of the {family} addresses of {what} are gone at once, more than {}",
                    lost.saturating_mul(100) / old.max(1),
                    self.max_removed
                ));
            }
        }
        None
    }
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
        assert_eq!(refusal(&before, &keep(7)), "");
        assert!(refusal(&before, &keep(6)).contains("4 of 10 prefixes"));
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
        let refusal = judge().judge(&before, &new).refusal();
        assert!(refusal.contains("1 of 2 prefixes"), "{refusal}");
        let lenient = Judge {
            max_removed: Share::percent(50),
            ..judge()
        };
        assert_eq!(lenient.judge(&before, &new).refusal(), "");
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
