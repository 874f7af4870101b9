//! Grace periods: what Microsoft has withdrawn is still steered for a time, because removals are published without notice.

use std::collections::HashSet;
use std::time::Duration;

use super::{EndpointSet, List, PortRange};
use crate::timestamp::Timestamp;

/// The list, and behind its sets what the list before had beyond it: withdrawn at `now`, or earlier and for less than
/// `longest` by now.
///
/// A withdrawn set has the prefixes and ports that its published namesake lacks. Where anything is published for an address
/// and port, that holds; see `ruleset`'s order of precedence.
pub fn with_grace(before: &List, mut list: List, now: Timestamp, longest: Duration) -> List {
    list.sets.retain(|set| set.withdrawn.is_none());
    let published = list.sets.len();
    for old in before.sets.iter().filter(|set| set.is_usable()) {
        let since = old.withdrawn.unwrap_or(now);
        if now >= since.after(longest) {
            continue;
        }
        let new = list.sets[..published].iter().find(|new| new.key == old.key);
        let parts = missing(old, new);
        list.sets.extend(parts.into_iter().map(|part| EndpointSet {
            withdrawn: Some(since),
            ..part
        }));
    }
    list
}

/// The parts of a set that its successor lacks: its prefixes that went, with all ports, and the others with the ports that
/// went.
fn missing(old: &EndpointSet, new: Option<&EndpointSet>) -> Vec<EndpointSet> {
    let Some(new) = new else {
        return vec![old.clone()];
    };
    let published: HashSet<_> = new.prefixes.iter().collect();
    let (kept, gone) = old
        .prefixes
        .iter()
        .partition(|prefix| published.contains(prefix));
    let gone = EndpointSet {
        prefixes: gone,
        ..old.clone()
    };
    let kept = EndpointSet {
        prefixes: kept,
        ports: subtract(&old.ports, &new.ports),
        ..old.clone()
    };
    [gone, kept]
        .into_iter()
        .filter(EndpointSet::is_usable)
        .collect()
}

/// The ports of `old` that are not in `new`.
fn subtract(old: &[PortRange], new: &[PortRange]) -> Vec<PortRange> {
    let mut left = old.to_vec();
    for cut in new {
        left = left
            .into_iter()
            .flat_map(|range| cut_out(range, *cut))
            .collect();
    }
    left
}

fn cut_out(range: PortRange, cut: PortRange) -> Vec<PortRange> {
    let meets = cut.last >= range.first && cut.first <= range.last;
    if range.transport != cut.transport || !meets {
        return vec![range];
    }
    let mut parts = Vec::new();
    if range.first < cut.first {
        parts.push(PortRange {
            last: cut.first - 1,
            ..range
        });
    }
    if range.last > cut.last {
        parts.push(PortRange {
            first: cut.last + 1,
            ..range
        });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{Instance, parse};

    const DAY: Duration = Duration::from_secs(86_400);

    fn list(rows: &str) -> List {
        parse(rows.as_bytes(), Instance::Worldwide, "test").unwrap()
    }

    fn withdrawn(list: &List) -> Vec<(Vec<String>, Vec<String>)> {
        let sets = list.sets.iter().filter(|set| set.withdrawn.is_some());
        sets.map(|set| {
            (
                set.prefixes.iter().map(ToString::to_string).collect(),
                set.ports.iter().map(ToString::to_string).collect(),
            )
        })
        .collect()
    }

    #[test]
    fn what_goes_stays_for_its_time() {
        let first = list(
            r#"[{"id":1,"ips":["1.0.0.0/24","2.0.0.0/24"],"tcpPorts":"80,443","category":"Optimize"},
                {"id":2,"ips":["3.0.0.0/24"],"tcpPorts":"25","category":"Allow"}]"#,
        );
        let second =
            || list(r#"[{"id":1,"ips":["1.0.0.0/24"],"tcpPorts":"443","category":"Optimize"}]"#);
        let start = Timestamp::from_seconds(1_000_000);
        let now = with_grace(&first, second(), start, DAY * 7);
        let gone = |prefix: &str, ports: &[&str]| {
            let ports = ports.iter().map(ToString::to_string).collect();
            (vec![prefix.to_owned()], ports)
        };
        let expected = [
            gone("2.0.0.0/24", &["TCP 80", "TCP 443"]),
            gone("1.0.0.0/24", &["TCP 80"]),
            gone("3.0.0.0/24", &["TCP 25"]),
        ];
        assert_eq!(withdrawn(&now), expected);
        // Another list does not start the time again.
        let later = with_grace(&now, second(), start.after(DAY * 6), DAY * 7);
        assert_eq!(withdrawn(&later), expected);
        let over = with_grace(&later, second(), start.after(DAY * 7), DAY * 7);
        assert_eq!(withdrawn(&over), []);
        // What comes back is no longer withdrawn.
        assert_eq!(withdrawn(&with_grace(&now, first.clone(), start, DAY)), []);
    }
}
