//! Compiles a ruleset into the table of `breakout_common::table`.
//!
//! The prefixes of each address family divide its address space into intervals that are covered by the same rules.
//! What a combination of rules says becomes a leaf; equal leaves are stored once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;

use breakout_common::condition::{MAX_ENTRIES, MAX_INTERVALS};
use breakout_common::forward::is_clients;
use breakout_common::table::{
    BLOCK, CLASS_COUNT, CLASSES, COUNT_SHIFT, Destination, GENERATION, LEAVES, LONG, MAGIC,
    MAX_LEAVES, MAX_WORDS, NO_PREFIX, OWN, OWN_BITS, OWN_LEAF, PAGE_KEYS, SEARCH_STEP,
    UNCOVERED_LEAF, USED, V4_COVERED, V4_ENTRIES, V4_ROOT, V6_COVERED, V6_ENTRIES, V6_OTHERS,
    V6_ROOT, own_bit,
};

use super::Ruleset;
use super::chains::{Chains, write_sources};
use super::classes::Classes;
use super::fold::{Cover, Covers};
use super::intervals::{Address, Interval, intervals};

/// The words that say which entries of the roots are covered.
const COVERED: Range<usize> = V4_COVERED as usize..V4_ROOT as usize;

/// A compiled ruleset: the words of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    words: Vec<u32>,
}

impl Image {
    /// The table's words, ready to be loaded.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The image that these words are of.
    pub fn of(words: Vec<u32>) -> Self {
        Image { words }
    }

    /// Says of all that a table before says is covered that it is covered.
    pub fn cover_as(&mut self, before: &[u32]) {
        for at in COVERED {
            self.words[at] |= before[at];
        }
    }

    /// Says that everything is covered.
    pub fn cover_everything(&mut self) {
        self.words[COVERED].fill(u32::MAX);
    }

    /// Says only what prefixes and own addresses cover. Returns whether anything else was said before.
    pub fn cover_nothing_else(&mut self) -> bool {
        let before = self.words[COVERED].to_vec();
        self.words[COVERED].fill(0);
        write_covered(&mut self.words);
        self.words[COVERED] != before
    }

    /// Writes the generation into the table.
    pub fn set_generation(&mut self, generation: u32) {
        self.words[GENERATION as usize] = generation;
    }
}

/// A ruleset that does not fit into any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// All in all.
    #[error(
        "the ruleset is too large: it needs a table of {needed} KiB, and a table can have {} KiB. Leave out prefixes",
        MAX_WORDS / 256
    )]
    Table {
        /// KiB that it needs.
        needed: usize,
    },
    /// In ways that prefixes of different endpoint sets overlap.
    #[error(
        "the ruleset is too large: its prefixes overlap in {needed} different ways, and a table can tell {MAX_LEAVES} of \
         them apart. Leave out endpoint sets, or have more of them share their ports"
    )]
    Leaves {
        /// Ways that there are.
        needed: usize,
    },
    /// In endpoint sets that cover the same addresses.
    #[error(
        "the ruleset is too large: too many of its endpoint sets cover the same addresses. Leave out endpoint sets"
    )]
    Overlaps,
    /// In different ports.
    #[error(
        "the ruleset is too large: its endpoint sets list ports in {needed} different combinations, and a table can \
         tell {MAX_CLASSES} of them apart. Leave out endpoint sets, or have more of them share their ports"
    )]
    Classes {
        /// Combinations that there are.
        needed: usize,
    },
    /// In rules that ask who the client is.
    #[error(
        "the ruleset is too large: for one destination there are {needed} conditions on clients (sources, LAN, VLAN, \
         share), and a table can have {MAX_ENTRIES}. Bring rules together, or name fewer VLANs"
    )]
    Conditions {
        /// Conditions that there are.
        needed: usize,
    },
    /// In source prefixes.
    #[error(
        "the ruleset is too large: the policy's sources divide the addresses into {needed} ranges, and a table can have \
         {MAX_INTERVALS}. Leave out sources"
    )]
    Sources {
        /// Ranges that there are.
        needed: usize,
    },
}

/// The most classes that a table can have, which has 16 bits for each.
const MAX_CLASSES: usize = 1 << 16;

/// Compiles a ruleset. The same ruleset always gives the same image.
///
/// # Errors
///
/// When the table would be too large.
pub fn compile(ruleset: &Ruleset) -> Result<Image, TooLarge> {
    let mut covers = Covers::new(ruleset);
    let v4 = intervals::<u32>(&ruleset.rules, &mut covers);
    let v6 = intervals::<u128>(&ruleset.rules, &mut covers);
    if covers.is_too_large() {
        return Err(TooLarge::Overlaps);
    }
    let mut words = vec![0; LEAVES as usize];
    let classes = Classes::new(&ruleset.rules);
    write_class_count(&classes, &mut words)?;
    let mut chains = Chains::default();
    let leaves = write_leaves(&covers, &classes, &mut chains, &mut words)?;
    chains.write(LEAVES as usize, &mut words)?;
    write_sources(&ruleset.sources, &mut words)?;
    write_class_pages(&classes, &mut words);
    let (mut own_v4, mut own_v6) = (Vec::new(), Vec::new());
    write_own_bits(&ruleset.own, &mut words);
    for address in &ruleset.own {
        match address {
            IpAddr::V4(address) => own_v4.push(address.to_bits()),
            IpAddr::V6(address) => own_v6.push(address.to_bits()),
        }
    }
    write_v4(&with_leaves(&v4, &leaves, own_v4), &mut words);
    write_v6(&with_leaves(&v6, &leaves, own_v6), &mut words);
    if words.len() > MAX_WORDS as usize {
        return Err(TooLarge::Table {
            needed: words.len() / 256,
        });
    }
    write_covered(&mut words);
    // The last block is searched in whole steps as well.
    words.extend([0; SEARCH_STEP]);
    words[0] = MAGIC;
    words[USED as usize] = to_word(words.len());
    Ok(Image { words })
}

/// Notes which entries of the roots are not simply those of uncovered addresses.
fn write_covered(words: &mut [u32]) {
    let roots = [
        (V4_COVERED, V4_ROOT, V4_ENTRIES),
        (V6_COVERED, V6_ROOT, V6_ENTRIES),
    ];
    for (bits, root, entries) in roots {
        for entry in 0..entries {
            let is_covered = words[(root + entry) as usize] != leaf_entry(UNCOVERED_LEAF, words);
            words[(bits + entry / 32) as usize] |= u32::from(is_covered) << (entry % 32);
        }
    }
}

/// Notes by which bits the gateway's own IPv4 addresses are known, as far as clients could have them.
fn write_own_bits(own: &[IpAddr], words: &mut [u32]) {
    let v4 = own.iter().filter(|address| address.is_ipv4());
    let halves = v4.map(|address| Destination::from(*address).to_halves());
    let clients = halves.filter(|(high, low)| is_clients(false, *high, *low));
    let bits = clients.fold(0, |bits, (_, low)| bits | own_bit(low));
    let at = OWN_BITS as usize;
    words[at] = (bits & 0xffff_ffff) as u32;
    words[at + 1] = (bits >> 32) as u32;
}

fn write_class_count(classes: &Classes, words: &mut [u32]) -> Result<(), TooLarge> {
    if classes.count() > MAX_CLASSES {
        return Err(TooLarge::Classes {
            needed: classes.count(),
        });
    }
    words[CLASS_COUNT as usize] = to_word(classes.count());
    Ok(())
}

/// Writes the pages, each content once.
fn write_class_pages(classes: &Classes, words: &mut Vec<u32>) {
    let of_keys: Vec<u32> = classes.of_keys().collect();
    let mut by_content: HashMap<Vec<u32>, u32> = HashMap::new();
    for (number, keys) in of_keys.chunks(PAGE_KEYS as usize).enumerate() {
        let page = keys.chunks(2).map(|pair| pair[1] << 16 | pair[0]).collect();
        words[CLASSES as usize + number] = *by_content.entry(page).or_insert_with_key(|page| {
            let offset = to_word(words.len());
            words.extend(page);
            offset
        });
    }
}

/// Writes the leaves. Returns their numbers by cover.
fn write_leaves(
    covers: &Covers<'_>,
    classes: &Classes,
    chains: &mut Chains,
    words: &mut Vec<u32>,
) -> Result<Vec<u32>, TooLarge> {
    let uncovered = vec![NO_PREFIX; classes.count()];
    let own = vec![OWN; classes.count()];
    words.extend(uncovered.iter().chain(&own));
    let mut by_content = HashMap::from([(uncovered, UNCOVERED_LEAF), (own, OWN_LEAF)]);
    let mut numbers = vec![UNCOVERED_LEAF];
    for cover in 1..covers.len() {
        let leaf = covers.fold(to_word(cover), classes, chains);
        let next = to_word(by_content.len());
        numbers.push(*by_content.entry(leaf).or_insert_with_key(|leaf| {
            words.extend(leaf);
            next
        }));
        // Before all memory is used up.
        if words.len() > MAX_WORDS as usize {
            return Err(TooLarge::Table {
                needed: (LEAVES as usize + covers.len() * classes.count()) / 256,
            });
        }
    }
    if by_content.len() > MAX_LEAVES as usize {
        return Err(TooLarge::Leaves {
            needed: by_content.len(),
        });
    }
    Ok(numbers)
}

/// The intervals with their leaves' numbers, and the gateway's own addresses; neighbours differ.
fn with_leaves<A: Address>(
    intervals: &[Interval<A, Cover>],
    leaves: &[u32],
    mut own: Vec<A>,
) -> Vec<Interval<A, u32>> {
    own.sort_unstable();
    own.dedup();
    let mut own = own.into_iter().peekable();
    let mut entries: Vec<Interval<A, u32>> = Vec::with_capacity(intervals.len());
    let mut push = |start, value| {
        if entries.last().is_none_or(|last| last.value != value) {
            entries.push(Interval { start, value });
        }
    };
    for (index, interval) in intervals.iter().enumerate() {
        let value = leaves[interval.value as usize];
        let next = intervals.get(index + 1).map(|next| next.start);
        let mut start = Some(interval.start);
        while let Some(address) = own.next_if(|own| next.is_none_or(|next| *own < next)) {
            if let Some(start) = start.filter(|start| *start < address) {
                push(start, value);
            }
            push(address, OWN_LEAF);
            start = address.next();
        }
        if let Some(start) = start.filter(|start| next.is_none_or(|next| *start < next)) {
            push(start, value);
        }
    }
    entries
}

fn write_v4(intervals: &[Interval<u32, u32>], words: &mut Vec<u32>) {
    let mut rest = intervals;
    for part in 0..V4_ENTRIES {
        let (before, within) = split(&mut rest, part << 16, part << 16 | 0xffff);
        words[(V4_ROOT + part) as usize] = if within.is_empty() {
            leaf_entry(before, words)
        } else {
            let entry = start_block(within.len() + 1, words);
            words.push(before);
            let starts = within.iter();
            words.extend(starts.map(|interval| interval.start << 16 | interval.value));
            entry
        };
    }
}

fn write_v6(intervals: &[Interval<u128, u32>], words: &mut Vec<u32>) {
    let (routed, behind) = (0x2000 << 112, 0x4000 << 112);
    let mut rest = intervals;
    let (lowest, others) = split(&mut rest, 0, routed - 1);
    for part in 0..V6_ENTRIES {
        let first = routed | u128::from(part) << 112;
        let (before, within) = split(&mut rest, first, first | u128::MAX >> 16);
        words[(V6_ROOT + part) as usize] = v6_entry(before, within, 16, words);
    }
    let (before, within) = split(&mut rest, behind, u128::MAX);
    let start = Interval {
        start: behind,
        value: before,
    };
    let others = [others, &[start], within].concat();
    words[V6_OTHERS as usize] = v6_entry(lowest, &others, 0, words);
}

/// The entry of the part of the address space that shares its first `depth` bits. `before` is the leaf at the part's
/// start, and `intervals` start behind that.
fn v6_entry(
    before: u32,
    intervals: &[Interval<u128, u32>],
    depth: u32,
    words: &mut Vec<u32>,
) -> u32 {
    if intervals.is_empty() {
        leaf_entry(before, words)
    } else {
        v6_block(before, intervals, depth, words)
    }
}

/// The entry of a leaf.
fn leaf_entry(number: u32, words: &[u32]) -> u32 {
    LEAVES + number * words[CLASS_COUNT as usize]
}

/// The entry of a block that starts with the next word.
fn start_block(count: usize, words: &mut Vec<u32>) -> u32 {
    let count = to_word(count);
    if count >= LONG {
        words.push(count);
        return BLOCK | LONG << COUNT_SHIFT | to_offset(words);
    }
    BLOCK | count << COUNT_SHIFT | to_offset(words)
}

/// The offset of the next word. A table that has become too large is refused in the end, whatever its offsets are.
fn to_offset(words: &[u32]) -> u32 {
    to_word(words.len()) & (MAX_WORDS - 1)
}

/// Writes the block for the part of the address space that shares its first `depth` bits. `before` is the entry at the
/// part's start, and `intervals` start behind that.
fn v6_block(
    before: u32,
    intervals: &[Interval<u128, u32>],
    depth: u32,
    words: &mut Vec<u32>,
) -> u32 {
    let key = |start: u128| to_key(start << depth);
    let mut block = vec![(0, leaf_entry(before, words))];
    let mut current = before;
    for group in intervals.chunk_by(|a, b| key(a.start) == key(b.start)) {
        let group_key = key(group[0].start);
        let starts_deeper = |interval: &Interval<u128, u32>| interval.start << depth << 32 != 0;
        go_on(&mut block, leaf_entry(current, words), Some(group_key));
        let (before, within) = match group {
            [first, within @ ..] if !starts_deeper(first) => (first.value, within),
            within => (current, within),
        };
        let entry = v6_entry(before, within, depth + 32, words);
        if group_key == 0 {
            block[0] = (0, entry);
        } else {
            block.push((group_key, entry));
        }
        current = group[group.len() - 1].value;
    }
    go_on(&mut block, leaf_entry(current, words), None);
    // Both words of an interval shall be in one cache line.
    let is_long = block.len() >= LONG as usize;
    if words.len().is_multiple_of(2) == is_long {
        words.push(0);
    }
    let entry = start_block(block.len(), words);
    words.extend(block.iter().flat_map(|(key, entry)| [*key, *entry]));
    entry
}

/// Behind the part of a block that has intervals of its own, the last of them goes on until `next`.
fn go_on(block: &mut Vec<(u32, u32)>, current: u32, next: Option<u32>) {
    let (last_key, last_entry) = block[block.len() - 1];
    if last_entry != current
        && let Some(behind) = last_key.checked_add(1)
        && next.is_none_or(|next| behind < next)
    {
        block.push((behind, current));
    }
}

/// The entry at `first` and the intervals that start after it, up to `last`. Moves `rest` on to what may follow.
fn split<'a, A: Address>(
    rest: &mut &'a [Interval<A, u32>],
    first: A,
    last: A,
) -> (u32, &'a [Interval<A, u32>]) {
    while rest.get(1).is_some_and(|next| next.start <= first) {
        *rest = &rest[1..];
    }
    let starts_within = |interval: &&Interval<A, u32>| interval.start <= last;
    let count = rest[1..].iter().take_while(starts_within).count();
    let (before, within) = (rest[0].value, &rest[1..=count]);
    *rest = &rest[count..];
    (before, within)
}

const fn to_key(bits: u128) -> u32 {
    (bits >> 96) as u32
}

pub(super) fn to_word(value: usize) -> u32 {
    u32::try_from(value).expect("a table that fits into memory has fewer than 2^32 words")
}

#[cfg(test)]
mod tests;
