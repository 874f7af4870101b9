//! The addresses that prefixes cover.

use std::fmt;

use ipnet::IpNet;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of a prefix.
    pub const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// Returns what is counted of it, for people.
    pub const fn unit(self) -> &'static str {
        match self {
            Family::V4 => "IPv4 addresses",
            Family::V6 => "IPv6 /64 networks",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The addresses of one family that prefixes cover. IPv6 is counted in networks of 64 bits; a longer prefix counts as its network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// First and last, in order, with gaps between them.
    intervals: Vec<(u64, u64)>,
}

impl Coverage {
    /// Counts the prefixes that are of the family.
    pub fn of<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, family: Family) -> Self {
        let prefixes = prefixes.into_iter();
        let of_family = prefixes.filter(|prefix| Family::of(prefix) == family);
        let mut all: Vec<(u64, u64)> = of_family.map(interval).collect();
        all.sort_unstable();
        let mut intervals: Vec<(u64, u64)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match intervals.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => intervals.push((first, last)),
            }
        }
        Coverage { intervals }
    }

    /// Returns how many there are.
    pub fn size(&self) -> u128 {
        let sizes = self.intervals.iter();
        sizes.map(|(first, last)| count(*first, *last)).sum()
    }

    /// Returns how many are in both.
    pub fn common(&self, other: &Coverage) -> u128 {
        let (mut ours, mut theirs) = (self.intervals.iter(), other.intervals.iter());
        let (mut a, mut b) = (ours.next(), theirs.next());
        let mut common = 0;
        while let (Some(x), Some(y)) = (a, b) {
            let (first, last) = (x.0.max(y.0), x.1.min(y.1));
            if first <= last {
                common += count(first, last);
            }
            if x.1 < y.1 {
                a = ours.next();
            } else {
                b = theirs.next();
            }
        }
        common
    }

    /// Returns whether all of a prefix is covered.
    pub fn contains(&self, prefix: &IpNet) -> bool {
        let (first, last) = interval(prefix);
        let behind = self.intervals.partition_point(|one| one.0 <= first);
        behind > 0 && self.intervals[behind - 1].1 >= last
    }

    /// Returns whether every address of the family is covered.
    pub fn is_everything(&self, family: Family) -> bool {
        let last = match family {
            Family::V4 => u64::from(u32::MAX),
            Family::V6 => u64::MAX,
        };
        self.intervals == [(0, last)]
    }
}

fn count(first: u64, last: u64) -> u128 {
    u128::from(last - first) + 1
}

/// The first and the last address, of IPv6 the upper half.
fn interval(prefix: &IpNet) -> (u64, u64) {
    let upper = |address: u128| u64::try_from(address >> 64).unwrap_or_default();
    match prefix {
        IpNet::V4(net) => (
            u32::from(net.network()).into(),
            u32::from(net.broadcast()).into(),
        ),
        IpNet::V6(net) => (
            upper(net.network().to_bits()),
            upper(net.broadcast().to_bits()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage(prefixes: &[&str], family: Family) -> Coverage {
        let prefixes: Vec<IpNet> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        Coverage::of(&prefixes, family)
    }

    #[test]
    fn overlaps_count_once() {
        let some = coverage(
            &["10.0.0.0/24", "10.0.0.0/25", "10.0.1.0/24", "::/1"],
            Family::V4,
        );
        assert_eq!(some.size(), 512);
        assert_eq!(
            some.common(&coverage(
                &["10.0.0.128/25", "10.0.1.7/32", "11.0.0.0/8"],
                Family::V4
            )),
            129
        );
        assert!(some.contains(&"10.0.0.0/23".parse().unwrap()));
        assert!(!some.contains(&"10.0.0.0/22".parse().unwrap()));
        assert_eq!(
            coverage(&["2001:db8::1/128", "2001:db8::2/128"], Family::V6).size(),
            1
        );
    }

    #[test]
    fn halves_are_everything() {
        assert!(coverage(&["0.0.0.0/1", "128.0.0.0/1"], Family::V4).is_everything(Family::V4));
        assert!(coverage(&["8000::/1", "::/2", "4000::/2"], Family::V6).is_everything(Family::V6));
        assert!(!coverage(&["0.0.0.0/1", "128.0.0.0/2"], Family::V4).is_everything(Family::V4));
    }
}
