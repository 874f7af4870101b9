//! Compiles a ruleset into the table of `breakout_common::table`.
//!
//! The prefixes of each address family divide its address space into intervals that are covered by the same rules.
//! What a combination of rules says becomes a leaf; equal leaves are stored once.

use std::collections::HashMap;
use std::net::IpAddr;

use breakout_common::table::{
    BLOCK, GENERATION, LEAF_WORDS, LEAVES, MAGIC, MAX_LEAF, MAX_WORDS, OWN, ROOT_ENTRIES, USED,
    V4_ROOT, V6_ROOT,
};

use super::Ruleset;
use super::fold::{Cover, Covers, Range};
use super::intervals::{Address, Interval, intervals};

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
    /// In different combinations of ports and endpoint sets.
    #[error(
        "the ruleset is too large: its prefixes have {needed} KiB of different port ranges and endpoint sets, and a \
         table can have {} KiB of them. Leave out endpoint sets, or have more of them share their ports",
        MAX_LEAF * LEAF_WORDS / 256
    )]
    Leaves {
        /// KiB that it needs.
        needed: usize,
    },
}

/// Compiles a ruleset. The same ruleset always gives the same image.
///
/// # Errors
///
/// When the table would be too large.
pub fn compile(ruleset: &Ruleset) -> Result<Image, TooLarge> {
    let mut covers = Covers::new(&ruleset.rules);
    let v4 = intervals::<u32>(&ruleset.rules, &mut covers);
    let v6 = intervals::<u128>(&ruleset.rules, &mut covers);
    let mut words = vec![0; LEAVES as usize];
    let leaves = write_leaves(&covers, &mut words)?;
    let (mut own_v4, mut own_v6) = (Vec::new(), Vec::new());
    for address in &ruleset.own {
        match address {
            IpAddr::V4(address) => own_v4.push(address.to_bits()),
            IpAddr::V6(address) => own_v6.push(address.to_bits()),
        }
    }
    write_v4(&entries(&v4, &leaves, own_v4), &mut words);
    write_v6(&entries(&v6, &leaves, own_v6), &mut words);
    if words.len() > MAX_WORDS as usize {
        return Err(TooLarge::Table {
            needed: words.len() / 256,
        });
    }
    words[0] = MAGIC;
    words[USED as usize] = to_word(words.len());
    Ok(Image { words })
}

/// Writes a leaf for each cover. Returns their numbers by cover.
fn write_leaves(covers: &Covers<'_>, words: &mut Vec<u32>) -> Result<Vec<u32>, TooLarge> {
    let mut by_content: HashMap<Vec<Range>, u32> = HashMap::new();
    let mut next = 1;
    let mut numbers = vec![0];
    for cover in 1..covers.len() {
        let ranges = covers.fold(to_word(cover));
        let number = *by_content.entry(ranges).or_insert_with_key(|ranges| {
            let number = next;
            words.push(to_word(ranges.len()));
            for range in ranges {
                words.extend([range.first, range.last, range.outcome.to_word()]);
            }
            let used = (words.len() - LEAVES as usize).next_multiple_of(LEAF_WORDS as usize);
            words.resize(LEAVES as usize + used, 0);
            next = to_word(used) / LEAF_WORDS + 1;
            number
        });
        numbers.push(number);
    }
    if next > MAX_LEAF + 1 {
        return Err(TooLarge::Leaves {
            needed: (words.len() - LEAVES as usize) / 256,
        });
    }
    Ok(numbers)
}

/// The intervals with the entries of their leaves and the gateway's own addresses; neighbours differ.
fn entries<A: Address>(
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
            push(address, OWN);
            start = address.next();
        }
        if let Some(start) = start.filter(|start| next.is_none_or(|next| *start < next)) {
            push(start, value);
        }
    }
    entries
}

fn write_v4(entries: &[Interval<u32, u32>], words: &mut Vec<u32>) {
    let mut rest = entries;
    for part in 0..ROOT_ENTRIES {
        let (before, within) = split(&mut rest, part << 16, part << 16 | 0xffff);
        words[(V4_ROOT + part) as usize] = if within.is_empty() {
            before
        } else {
            let block = BLOCK | to_word(words.len());
            words.push(to_word(within.len()) << 16 | before);
            let starts = within.iter();
            words.extend(starts.map(|interval| interval.start << 16 | interval.value));
            block
        };
    }
}

fn write_v6(entries: &[Interval<u128, u32>], words: &mut Vec<u32>) {
    let mut rest = entries;
    for part in 0..ROOT_ENTRIES {
        let first = u128::from(part) << 112;
        let (before, within) = split(&mut rest, first, first | u128::MAX >> 16);
        words[(V6_ROOT + part) as usize] = if within.is_empty() {
            before
        } else {
            v6_block(before, within, 16, words)
        };
    }
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
    let mut block = vec![(0, before)];
    let mut current = before;
    for group in intervals.chunk_by(|a, b| key(a.start) == key(b.start)) {
        let group_key = key(group[0].start);
        let starts_deeper = |interval: &Interval<u128, u32>| interval.start << depth << 32 != 0;
        // What goes on from the group before, if that was a block of its own.
        let (last_key, last_entry) = block[block.len() - 1];
        if last_entry != current && last_key + 1 < group_key {
            block.push((last_key + 1, current));
        }
        let (before, within) = match group {
            [first, within @ ..] if !starts_deeper(first) => (first.value, within),
            within => (current, within),
        };
        let entry = if within.is_empty() {
            before
        } else {
            v6_block(before, within, depth + 32, words)
        };
        if group_key == 0 {
            block[0] = (0, entry);
        } else {
            block.push((group_key, entry));
        }
        current = group[group.len() - 1].value;
    }
    let (last_key, last_entry) = block[block.len() - 1];
    if last_entry != current
        && let Some(behind) = last_key.checked_add(1)
    {
        block.push((behind, current));
    }
    // Both words of an interval shall be in one cache line.
    if words.len().is_multiple_of(2) {
        words.push(0);
    }
    let offset = BLOCK | to_word(words.len());
    words.push(to_word(block.len()));
    words.extend(block.iter().flat_map(|(key, entry)| [*key, *entry]));
    offset
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

fn to_word(value: usize) -> u32 {
    u32::try_from(value).expect("a table that fits into memory has fewer than 2^32 words")
}

#[cfg(test)]
mod tests;
