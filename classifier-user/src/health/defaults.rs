//! Default targets of probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use breakout_common::table::Transport;
use ipnet::IpNet;

use super::{Kind, Target};
use crate::list::{Category, List, PortRange};

/// The most TCP targets that are taken from the list.
const MOST_DOORS: usize = 3;

/// Targets that are probed by default besides addresses of the list: Teams' transport relays by their common name, and Exchange
/// Online's front doors. Microsoft, "Test Microsoft 365 connectivity" and endpoint set 1.
const NAMES: [(Kind, &str, u16); 2] = [
    (Kind::Turn, "world.tr.teams.microsoft.com", 3478),
    (Kind::Tls, "outlook.office365.com", 443),
];

/// The targets for egresses that name none: well-known names, and those Optimize prefixes that are single hosts.
pub fn default_targets(lists: &[List]) -> Vec<Target> {
    let mut targets: Vec<Target> = (NAMES.iter())
        .map(|(kind, host, port)| Target::new(*kind, *host, *port))
        .collect();
    let sets = lists.iter().flat_map(|list| &list.sets);
    let optimize = sets.filter(|set| set.category == Category::Optimize && set.withdrawn.is_none());
    let mut doors: BTreeMap<bool, BTreeSet<IpAddr>> = BTreeMap::new();
    for set in optimize {
        let has_https = |ports: &PortRange| {
            ports.transport == Transport::Tcp && (ports.first..=ports.last).contains(&443)
        };
        if !set.ports.iter().any(has_https) {
            continue;
        }
        // A /31 or /127 of the list stands for two anycast addresses of one front door.
        let hosts = set
            .prefixes
            .iter()
            .filter(|prefix| prefix.max_prefix_len() - prefix.prefix_len() <= 1);
        for prefix in hosts {
            doors
                .entry(matches!(prefix, IpNet::V6(_)))
                .or_default()
                .insert(prefix.addr());
        }
    }
    for addresses in doors.into_values() {
        let addresses = addresses.into_iter().take(MOST_DOORS);
        targets.extend(addresses.map(|address| Target::new(Kind::Tcp, address.to_string(), 443)));
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{Instance, embedded};

    #[test]
    fn default_targets_are_of_the_list() {
        let targets = default_targets(&[embedded(Instance::Worldwide)]);
        let texts: Vec<String> = targets.iter().map(Target::to_string).collect();
        assert!(
            texts.contains(&"tcp:13.107.6.152:443".to_owned()),
            "{texts:?}"
        );
        assert!(texts.contains(&"tls:outlook.office365.com:443".to_owned()));
        let count = |v6: bool| {
            targets
                .iter()
                .filter(|target| target.address().is_some_and(|a| a.is_ipv6() == v6))
                .count()
        };
        assert!(
            (1..=MOST_DOORS).contains(&count(false)) && (1..=MOST_DOORS).contains(&count(true))
        );
    }
}
