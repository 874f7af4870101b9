//! The address space of one family as a ruleset divides it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Rule;
use super::fold::{Cover, Covers};

/// An address as a number.
pub(super) trait Address: Copy + Ord {
    /// The lowest address.
    const ZERO: Self;

    /// The address and the length of a prefix, if it is of this family.
    fn of(prefix: &IpNet) -> Option<(Self, u8)>;

    /// The last address of a prefix that starts here.
    fn last(self, prefix_len: u8) -> Self;

    /// The next address, but for the last one.
    fn next(self) -> Option<Self>;

    /// The address as such.
    fn to_ip(self) -> IpAddr;
}

impl Address for u32 {
    const ZERO: u32 = 0;

    fn of(prefix: &IpNet) -> Option<(u32, u8)> {
        match prefix {
            IpNet::V4(net) => Some((net.network().to_bits(), net.prefix_len())),
            IpNet::V6(_) => None,
        }
    }

    fn last(self, prefix_len: u8) -> u32 {
        self | u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0)
    }

    fn next(self) -> Option<u32> {
        self.checked_add(1)
    }

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from_bits(self).into()
    }
}

impl Address for u128 {
    const ZERO: u128 = 0;

    fn of(prefix: &IpNet) -> Option<(u128, u8)> {
        match prefix {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some((net.network().to_bits(), net.prefix_len())),
        }
    }

    fn last(self, prefix_len: u8) -> u128 {
        self | u128::MAX.checked_shr(prefix_len.into()).unwrap_or(0)
    }

    fn next(self) -> Option<u128> {
        self.checked_add(1)
    }

    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from_bits(self).into()
    }
}

/// Addresses from `start` to the next interval's start that are covered alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval<A, T> {
    pub(super) start: A,
    pub(super) value: T,
}

/// The intervals of one family, the first from the lowest address on.
pub(super) fn intervals<A: Address>(
    rules: &[Rule],
    covers: &mut Covers<'_>,
) -> Vec<Interval<A, Cover>> {
    let prefixes = sorted_prefixes::<A>(rules);
    let mut sweep = Sweep::default();
    for (first, prefix_len, rule) in prefixes {
        let last = first.last(prefix_len);
        sweep.leave_before(Some(first));
        // A prefix that several rules have lies within itself.
        let cover = covers.add(sweep.cover(), rule);
        sweep.push(first, cover);
        sweep.enclosing.push((last, cover));
    }
    sweep.leave_before(None);
    sweep.intervals
}

/// The address space of one family by the groups that source addresses are in, as bits.
pub(super) fn source_intervals<A: Address>(groups: &[Vec<IpNet>]) -> Vec<Interval<A, u32>> {
    let mut prefixes = Vec::new();
    for (number, group) in (0u32..).zip(groups) {
        let of_group = group.iter().filter_map(A::of);
        prefixes.extend(of_group.map(|(first, prefix_len)| (first, prefix_len, 1 << number)));
    }
    prefixes.sort_unstable();
    let mut sweep = Sweep::default();
    for (first, prefix_len, group) in prefixes {
        sweep.leave_before(Some(first));
        let groups = sweep.cover() | group;
        sweep.push(first, groups);
        sweep.enclosing.push((first.last(prefix_len), groups));
    }
    sweep.leave_before(None);
    sweep.intervals
}

/// Start, length and rule of each prefix, those that enclose others first; of several rules with the same prefix
/// the one with the highest id first.
fn sorted_prefixes<A: Address>(rules: &[Rule]) -> Vec<(A, u8, u32)> {
    let mut by_id: Vec<u32> = (0u32..).take(rules.len()).collect();
    by_id.sort_by(|a, b| rules[*b as usize].key.cmp(&rules[*a as usize].key));
    let mut prefixes = Vec::with_capacity(rules.iter().map(|rule| rule.prefixes.len()).sum());
    for (place, rule) in (0u32..).zip(&by_id) {
        let of_rule = rules[*rule as usize].prefixes.iter();
        prefixes.extend(of_rule.filter_map(|prefix| {
            let (first, prefix_len) = A::of(prefix)?;
            Some((first, prefix_len, place))
        }));
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    for prefix in &mut prefixes {
        prefix.2 = by_id[prefix.2 as usize];
    }
    prefixes
}

/// A walk over the address space with the prefixes that enclose the current address.
struct Sweep<A> {
    /// Last address and cover of each, the longest one last.
    enclosing: Vec<(A, Cover)>,
    intervals: Vec<Interval<A, Cover>>,
}

impl<A: Address> Default for Sweep<A> {
    fn default() -> Self {
        let everything = Interval {
            start: A::ZERO,
            value: 0,
        };
        Sweep {
            enclosing: Vec::new(),
            intervals: vec![everything],
        }
    }
}

impl<A: Address> Sweep<A> {
    /// Returns what covers the current address.
    fn cover(&self) -> Cover {
        self.enclosing.last().map_or(0, |enclosing| enclosing.1)
    }

    /// Walks on to `next`; behind each prefix that ends before it, the one around it goes on.
    fn leave_before(&mut self, next: Option<A>) {
        while let Some((last, _)) = self.enclosing.last() {
            if next.is_some_and(|next| next <= *last) {
                break;
            }
            let behind = last.next();
            self.enclosing.pop();
            if let Some(start) = behind {
                self.push(start, self.cover());
            }
        }
    }

    fn push(&mut self, start: A, value: Cover) {
        match self.intervals.last_mut() {
            Some(last) if last.start == start => last.value = value,
            _ => self.intervals.push(Interval { start, value }),
        }
    }
}
