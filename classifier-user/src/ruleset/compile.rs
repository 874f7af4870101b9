//! Compiles a ruleset into the table of `breakout_common::table`.
//!
//! Prefixes of one address family become intervals of addresses with one leaf each, and the intervals
//! become multibit tries. Equal leaves are stored once, and so are equal nodes.

use std::collections::HashMap;

use breakout_common::table::{
    BODY, GENERATION, MAGIC, NODE, NODE_ENTRIES, ROOT_ENTRIES, USED, V4_ROOT, V6_ROOT,
};
use ipnet::IpNet;

use super::fold::{Cover, Range, fold};
use super::{Rule, Ruleset};

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

/// Compiles a ruleset. The same ruleset always gives the same image.
pub fn compile(ruleset: &Ruleset) -> Image {
    let mut compiler = Compiler::new(&ruleset.rules);
    compiler.family(V4_ROOT, 32);
    compiler.family(V6_ROOT, 128);
    let mut words = compiler.words;
    words[0] = MAGIC;
    words[USED as usize] = to_word(words.len());
    Image { words }
}

/// Addresses from `start` to the next interval's start, with the table entry of their leaf.
struct Interval {
    start: u128,
    entry: u32,
}

/// All rules that have one prefix.
struct Prefix {
    first: u128,
    last: u128,
    covers: Vec<Cover>,
}

struct Compiler<'a> {
    rules: &'a [Rule],
    words: Vec<u32>,
    /// Entry by the rules that cover an address.
    folded: HashMap<Vec<Cover>, u32>,
    /// Entry by the leaf's content.
    leaves: HashMap<Vec<Range>, u32>,
    /// Entry by the node's content.
    nodes: HashMap<Box<[u32]>, u32>,
}

impl<'a> Compiler<'a> {
    fn new(rules: &'a [Rule]) -> Self {
        Compiler {
            rules,
            words: vec![0; BODY as usize],
            folded: HashMap::new(),
            leaves: HashMap::new(),
            nodes: HashMap::new(),
        }
    }

    fn family(&mut self, root: u32, width: u32) {
        let prefixes = self.prefixes(width);
        let intervals = self.intervals(&prefixes, width);
        let mut rest = intervals.as_slice();
        let entries = self.children(0, width - 16, ROOT_ENTRIES, &mut rest);
        self.words[root as usize..][..ROOT_ENTRIES as usize].copy_from_slice(&entries);
    }

    /// The prefixes of one family, those that enclose others first, each once.
    fn prefixes(&self, width: u32) -> Vec<Prefix> {
        let mut flat: Vec<(u128, u8, usize)> = Vec::new();
        for (rule, definition) in self.rules.iter().enumerate() {
            for prefix in &definition.prefixes {
                match (prefix, width) {
                    (IpNet::V4(net), 32) => {
                        flat.push((u128::from(net.network().to_bits()), net.prefix_len(), rule));
                    }
                    (IpNet::V6(net), 128) => {
                        flat.push((net.network().to_bits(), net.prefix_len(), rule));
                    }
                    _ => {}
                }
            }
        }
        flat.sort_unstable();
        flat.dedup();
        let mut prefixes: Vec<Prefix> = Vec::with_capacity(flat.len());
        for (first, prefix_len, rule) in flat {
            let cover = Cover { rule, prefix_len };
            let last = first | low_bits(width - u32::from(prefix_len));
            match prefixes.last_mut() {
                Some(same) if (same.first, same.last) == (first, last) => same.covers.push(cover),
                _ => prefixes.push(Prefix {
                    first,
                    last,
                    covers: vec![cover],
                }),
            }
        }
        prefixes
    }

    /// Sweeps over the address space with a stack of the prefixes that enclose the current address.
    fn intervals(&mut self, prefixes: &[Prefix], width: u32) -> Vec<Interval> {
        let mut intervals = vec![Interval { start: 0, entry: 0 }];
        let mut stack: Vec<(u128, Vec<Cover>, u32)> = Vec::new();
        for prefix in prefixes {
            leave_before(Some(prefix.first), &mut stack, &mut intervals);
            let mut covers = stack.last().map_or_else(Vec::new, |top| top.1.clone());
            for cover in &prefix.covers {
                covers.retain(|outer| outer.rule != cover.rule);
                covers.push(*cover);
            }
            covers.sort_unstable();
            let entry = self.leaf(&covers);
            push_interval(&mut intervals, prefix.first, entry);
            stack.push((prefix.last, covers, entry));
        }
        leave_before(None, &mut stack, &mut intervals);
        let end = low_bits(width);
        intervals.retain(|interval| interval.start <= end);
        intervals
    }

    /// The entry of the leaf for addresses that these rules cover.
    fn leaf(&mut self, covers: &[Cover]) -> u32 {
        if let Some(entry) = self.folded.get(covers) {
            return *entry;
        }
        let ranges = fold(self.rules, covers);
        let words = &mut self.words;
        let entry = *self.leaves.entry(ranges).or_insert_with_key(|ranges| {
            let entry = to_word(words.len());
            words.push(to_word(ranges.len()));
            for range in ranges {
                words.extend([range.first, range.last, range.outcome.to_word()]);
            }
            entry
        });
        self.folded.insert(covers.to_vec(), entry);
        entry
    }

    /// The entries for `count` equal parts of the address space from `base` on, each `2^shift` addresses.
    ///
    /// `rest` starts with the interval that `base` lies in, and is moved along.
    fn children(&mut self, base: u128, shift: u32, count: u32, rest: &mut &[Interval]) -> Vec<u32> {
        let mut entries = Vec::with_capacity(count as usize);
        for child in 0..u128::from(count) {
            let first = base + (child << shift);
            let last = first | low_bits(shift);
            skip_to(rest, first);
            let one_leaf = rest.get(1).is_none_or(|next| next.start > last);
            let entry = if one_leaf {
                rest[0].entry
            } else {
                let node = self.children(first, shift - 8, NODE_ENTRIES, rest);
                self.node(node)
            };
            entries.push(entry);
        }
        entries
    }

    fn node(&mut self, entries: Vec<u32>) -> u32 {
        let words = &mut self.words;
        *self
            .nodes
            .entry(entries.into_boxed_slice())
            .or_insert_with_key(|entries| {
                let entry = to_word(words.len()) | NODE;
                words.extend_from_slice(entries);
                entry
            })
    }
}

/// Drops the prefixes that end before `next` from the stack; behind each, the one around it goes on.
fn leave_before(
    next: Option<u128>,
    stack: &mut Vec<(u128, Vec<Cover>, u32)>,
    intervals: &mut Vec<Interval>,
) {
    while let Some((last, _, _)) = stack.last() {
        if next.is_some_and(|next| next <= *last) {
            break;
        }
        let behind = last.checked_add(1);
        stack.pop();
        if let Some(start) = behind {
            push_interval(intervals, start, stack.last().map_or(0, |top| top.2));
        }
    }
}

fn push_interval(intervals: &mut Vec<Interval>, start: u128, entry: u32) {
    match intervals.last_mut() {
        Some(last) if last.start == start => last.entry = entry,
        _ => intervals.push(Interval { start, entry }),
    }
}

/// Moves on to the interval that `address` lies in.
fn skip_to(rest: &mut &[Interval], address: u128) {
    while rest.get(1).is_some_and(|next| next.start <= address) {
        *rest = &rest[1..];
    }
}

const fn low_bits(count: u32) -> u128 {
    if count == 128 {
        u128::MAX
    } else {
        (1 << count) - 1
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "checked: no table that fits into memory has 2^31 words"
)]
fn to_word(value: usize) -> u32 {
    assert!(value < NODE as usize, "table too large");
    value as u32
}

#[cfg(test)]
mod tests;
