//! Conditions on who sends a packet: where the policy has any, a leaf's word leads to a chain of them.
//!
//! A chain has [`ENTRY_WORDS`] words for each entry, of which the first one that applies is the answer; the last one always
//! does:
//!
//! ```text
//! word 0   the answer: the word of an outcome
//! word 1   source groups, one bit each, of which the client must be in one; EVERYONE: any client
//! word 2   LAN interfaces, one bit each
//! word 3   VLAN id in the upper half, 0: any; in the lower half the highest share bucket that is included
//! ```
//!
//! Source groups are lists of prefixes. Source intervals, sorted by the 128 bits of their start, have the groups that the
//! addresses from there to the next start are in: [`INTERVAL_WORDS`] words each, four of the start, highest first, and one
//! of groups. Those of each family begin at its lowest address.

use crate::question::address_to_words;
use crate::table::{Destination, SOURCES, Table};

/// Words of one entry of a chain.
pub const ENTRY_WORDS: u32 = 4;
/// The most entries of one chain.
pub const MAX_ENTRIES: u32 = 32;
/// Words of one source interval.
pub const INTERVAL_WORDS: u32 = 8;
/// The most source intervals of one family, as a power of two.
const MAX_INTERVALS_LOG: u32 = 16;
/// The most source intervals of one family.
pub const MAX_INTERVALS: u32 = 1 << MAX_INTERVALS_LOG;
/// The most source groups, and the most LAN interfaces that can be told apart.
pub const MAX_GROUPS: u32 = 31;
/// The group that every client is in.
pub const EVERYONE: u32 = 1 << MAX_GROUPS;

/// Sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The source address.
    pub source: Destination,
    /// Number of the LAN interface, from 0 on.
    pub lan: u32,
    /// Id of the outermost VLAN tag, 0 without.
    pub vlan: u32,
}

/// One entry of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Source groups, as bits; [`EVERYONE`] for any client.
    pub groups: u32,
    /// LAN interfaces, as bits.
    pub lans: u32,
    /// VLAN id; 0 for any or none.
    pub vlan: u16,
    /// The highest [`bucket`] that is included.
    pub share: u16,
}

impl Condition {
    /// Applies to every client.
    pub const ANY: Condition = Condition {
        groups: EVERYONE,
        lans: u32::MAX,
        vlan: 0,
        share: u16::MAX,
    };

    /// The entry that has this answer.
    pub const fn to_entry(self, answer: u32) -> [u32; ENTRY_WORDS as usize] {
        [
            answer,
            self.groups,
            self.lans,
            (self.vlan as u32) << 16 | self.share as u32,
        ]
    }

    /// Returns whether it applies to a client that is in these source groups.
    pub const fn applies(self, groups: u32, client: &Client) -> bool {
        misses(&self.to_entry(0), groups, client, bucket(client.source)) == 0
    }
}

/// The share bucket of an address, from 0 to 65,535: a hash of it (the multiplicative one of Knuth, The Art of Computer
/// Programming, volume 3, section 6.4).
#[inline(always)]
pub const fn bucket(address: Destination) -> u32 {
    let bits = match address {
        Destination::V4(address) => address as u64,
        Destination::V6(high, low) => high.rotate_left(29) ^ low,
    };
    let mixed = (bits ^ bits >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32
}

/// Not zero if an entry does not apply. Without branches, of which the kernel's verifier would have to follow each way on
/// its own, entry by entry.
#[inline(always)]
const fn misses(
    entry: &[u32; ENTRY_WORDS as usize],
    groups: u32,
    client: &Client,
    bucket: u32,
) -> u32 {
    let [_, wanted, lans, last] = *entry;
    let vlan = last >> 16;
    let in_no_group = is_zero(wanted & (groups | EVERYONE));
    let other_lan = !(lans >> (client.lan & 31)) & 1;
    let other_vlan = (vlan ^ client.vlan) & is_zero(vlan).wrapping_sub(1);
    let beyond_share = is_more(bucket, last & 0xffff);
    in_no_group | other_lan | other_vlan | beyond_share
}

/// 1 if a number is zero, else 0.
#[inline(always)]
const fn is_zero(number: u32) -> u32 {
    is_more(1, number)
}

/// 1 if `a` is more than `b`, else 0.
#[inline(always)]
const fn is_more(a: u32, b: u32) -> u32 {
    ((b as u64).wrapping_sub(a as u64) >> 63) as u32
}

/// The answer of the chain at a word offset, for a client. `None` if the table is damaged.
#[inline(always)]
pub fn choose<T: Table + ?Sized>(table: &T, chain: u32, client: &Client) -> Option<u32> {
    let groups = groups(table, client.source)?;
    let bucket = bucket(client.source);
    let mut at = table.blur(chain);
    let mut count = 0;
    while count < MAX_ENTRIES {
        let entry = table.words::<4>(at)?;
        if misses(&entry, groups, client, bucket) == 0 {
            return Some(entry[0]);
        }
        at = at.wrapping_add(ENTRY_WORDS);
        count += 1;
    }
    None
}

/// The groups that an address is in: those of the last interval that starts at or before it.
#[inline(always)]
pub fn groups<T: Table + ?Sized>(table: &T, address: Destination) -> Option<u32> {
    let family = if address.is_v6() { 2 } else { 0 };
    let key = address_to_words(address);
    let [first, mut remaining] = table.words::<2>(table.blur(SOURCES + family))?;
    let mut at = table.blur(first);
    let mut step = 0;
    while step < MAX_INTERVALS_LOG && remaining > 1 {
        let half = remaining / 2;
        let ahead = half.wrapping_mul(INTERVAL_WORDS);
        let start = table.words::<4>(at.wrapping_add(ahead))?;
        // All ones if the interval starts at or before the address.
        let is_before = starts_after(&start, &key).wrapping_sub(1);
        at = table.blur(at.wrapping_add(ahead & is_before));
        remaining -= half;
        step += 1;
    }
    table.word(at.wrapping_add(4))
}

/// 1 if a start is a larger number than a key, else 0: the borrow of their difference.
#[inline(always)]
const fn starts_after(start: &[u32; 4], key: &[u32; 4]) -> u32 {
    let mut borrow = 0;
    let mut limb = 4;
    while limb > 0 {
        limb -= 1;
        let difference = (key[limb] as u64)
            .wrapping_sub(start[limb] as u64)
            .wrapping_sub(borrow);
        borrow = difference >> 63;
    }
    (borrow & 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Client = Client {
        source: Destination::V4(0x0a01_0002),
        lan: 1,
        vlan: 20,
    };

    #[test]
    fn each_part_of_a_condition_counts() {
        assert!(Condition::ANY.applies(0, &CLIENT));
        let any = Condition::ANY;
        for (condition, expected) in [
            (Condition { groups: 6, ..any }, true),
            (Condition { groups: 1, ..any }, false),
            (Condition { lans: 2, ..any }, true),
            (Condition { lans: 5, ..any }, false),
            (Condition { vlan: 20, ..any }, true),
            (Condition { vlan: 21, ..any }, false),
        ] {
            assert_eq!(condition.applies(4, &CLIENT), expected, "{condition:?}");
        }
    }

    #[test]
    fn a_share_is_that_share_of_clients() {
        for (percent, wanted) in [(1u32, 100usize), (10, 1000), (50, 5000)] {
            let share = u16::try_from(65_536 * percent / 100 - 1).unwrap();
            for network in [0x0a01_0000u32, 0xc0a8_0000] {
                let included = |n: &u32| bucket(Destination::V4(network + n)) <= u32::from(share);
                let count = (0..10_000).filter(included).count();
                assert!(count.abs_diff(wanted) < 150, "{percent}: {count}");
            }
            let included = |n: &u64| bucket(Destination::V6(0xfd00 << 48, *n)) <= u32::from(share);
            let count = (0..10_000u64).filter(included).count();
            assert!(count.abs_diff(wanted) < 150, "{percent}: {count}");
        }
    }
}
