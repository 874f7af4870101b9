//! The list that is built in, so that Breakout works before it has reached the web service.

use super::{Instance, List, parse};

/// The built-in list of an instance: its Optimize and Allow sets that have addresses, as published on
/// <https://learn.microsoft.com/microsoft-365/enterprise/urls-and-ip-address-ranges> and the pages for the other clouds.
///
/// The version is the newest published one that is known to have this content; Worldwide was still the same in
/// August 2026.
pub fn embedded(instance: Instance) -> List {
    let (version, text) = match instance {
        Instance::Worldwide => ("2025063000", include_str!("embedded/worldwide.json")),
        Instance::China => ("2026022700", include_str!("embedded/china.json")),
        Instance::USGovDoD => ("2026033100", include_str!("embedded/usgovdod.json")),
        Instance::USGovGCCHigh => ("2026033100", include_str!("embedded/usgovgcchigh.json")),
    };
    let source = format!("built-in {} list", instance.name());
    match parse(text.as_bytes(), instance, &source) {
        Ok(mut list) => {
            list.version = Some(version.to_owned());
            list
        }
        Err(error) => unreachable!("a test parses every built-in list: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::list::{Category, EndpointSet};

    #[test]
    fn every_built_in_list_is_whole() {
        for instance in Instance::ALL {
            let list = embedded(instance);
            assert!(list.problems.is_empty(), "{instance}: {:?}", list.problems);
            assert!(list.sets.iter().all(EndpointSet::is_usable), "{instance}");
            let (v4, v6) = list.prefix_counts(&Category::Optimize);
            assert!(v4 > 0 && v6 > 0, "{instance}");
        }
    }

    #[test]
    fn worldwide_optimize_is_what_microsoft_publishes() {
        let list = embedded(Instance::Worldwide);
        assert_eq!(list.prefix_counts(&Category::Optimize), (18, 22));
        let ids: Vec<u32> = list
            .sets
            .iter()
            .filter(|set| set.category == Category::Optimize)
            .filter_map(|set| set.key.id())
            .collect();
        assert_eq!(ids, [1, 11, 31]);
    }

    /// Over prefixes alone, Optimize and Allow overlap; over prefix, protocol and port they never do.
    #[test]
    fn optimize_and_allow_never_overlap() {
        for instance in Instance::ALL {
            let list = embedded(instance);
            let of = |category: Category| -> HashSet<_> {
                let sets = list.sets.iter().filter(|set| set.category == category);
                sets.flat_map(|set| {
                    let ports = set.ports.iter().flat_map(|range| {
                        (range.first..=range.last).map(|port| (range.transport, port))
                    });
                    ports.flat_map(|port| set.prefixes.iter().map(move |prefix| (*prefix, port)))
                })
                .collect()
            };
            let allow = of(Category::Allow);
            for (prefix, port) in of(Category::Optimize) {
                let clash = allow.iter().find(|(other, other_port)| {
                    *other_port == port && (other.contains(&prefix) || prefix.contains(other))
                });
                assert_eq!(clash, None, "{instance}: {prefix} {port:?}");
            }
        }
    }
}
