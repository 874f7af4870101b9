//! The compiled ruleset as the data path reads it: one array of 32-bit words.
//!
//! ```text
//! word 0        layout magic
//! word 1        generation
//! word 2        words in use
//! word 3        number of classes
//! word 4        word offset and number of source intervals for IPv4, then for IPv6 (see `condition`)
//! word 8        64 bits, by which most addresses are known not to be the gateway's own (see `own_bit`)
//! word 16       a bit for each entry of the IPv4 root, then of the IPv6 root for 2000::/3: whether any prefix covers any of its part
//! word 2320     IPv4 root: 65,536 entries, indexed by the upper 16 bits of the destination
//! word 67856    IPv6 root: 8,192 entries for 2000::/3, indexed by bits 3 to 15; one entry for all other addresses
//! word 76064    class pages: 512 offsets, indexed by the upper 9 bits of a key
//! word 76576    leaves, each with as many words as there are classes
//! after those   the pages, and blocks, in any order
//! ```
//!
//! Protocols and ports that no rule tells apart have the same class. The class of a packet is found by its key (see
//! [`Transport::key`]): a page has the classes of 256 keys, two in a word, the one with the even key in the lower half. It
//! is the index of the answer in a leaf: the word of an [`Outcome`], [`NO_PREFIX`], [`NO_PORT`],
//! [`OWN`], or [`CHAIN`] with the offset of a chain of conditions (see [`condition`](crate::condition)). What several overlapping prefixes and endpoint sets say about one address is folded into its leaf by the
//! compiler, so one walk gives the whole answer. The first leaf is for addresses that no prefix covers, the second
//! one for those of the gateway itself; so those are found as all others are, without a branch.
//!
//! An entry stands for a part of the address space: the word offset of a leaf, or, where the part is not all alike, a block:
//! [`BLOCK`], the number of intervals in the 7 bits below, the word offset in the other 24. Of a block with [`LONG`] or more
//! intervals the number stands in the word before it.
//!
//! A block has the sorted intervals that its part falls into, and is searched for the last one that starts at or before
//! the address. The first one starts with the part.
//!
//! - IPv4: one word an interval, the lower 16 bits of its start above the number of its leaf, counted from 0.
//! - IPv6: two words an interval: 32 bits of its start, and its entry. Blocks of the first level have bits 16 to 47 of the
//!   address, then 48 to 79, 80 to 111, and 112 to 127 with zeros behind. Outside 2000::/3 they start with bit 0.
//!
//! All words are in the machine's byte order: a table never leaves the machine.

mod answer;
mod destination;

use crate::condition::{Client, choose};

pub use answer::{Answer, Hold, Outcome};
pub use destination::{Destination, Transport};

/// The first word of every table. Its low byte is the layout's version.
pub const MAGIC: u32 = 0x4252_4b09;

/// Index of the word that holds the generation.
pub const GENERATION: u32 = 1;
/// Index of the word that holds the number of words in use.
pub const USED: u32 = 2;
/// Index of the word that holds the number of classes, which is the length of a leaf in words.
pub const CLASS_COUNT: u32 = 3;
/// Index of the two words that say where the source intervals for IPv4 are; those for IPv6 follow.
pub const SOURCES: u32 = 4;
/// Index of the two words, the lower half first, that have a bit for each of the gateway's own addresses; see [`own_bit`].
pub const OWN_BITS: u32 = 8;
/// Index of the first word of the bits for the IPv4 root; see [`is_covered`].
pub const V4_COVERED: u32 = 16;
/// The same for the IPv6 root.
pub const V6_COVERED: u32 = V4_COVERED + V4_ENTRIES / 32;
/// Index of the first entry of the IPv4 root.
pub const V4_ROOT: u32 = V6_COVERED + V6_ENTRIES / 32;
/// Entries of the IPv4 root.
pub const V4_ENTRIES: u32 = 1 << 16;
/// Index of the first entry of the IPv6 root.
pub const V6_ROOT: u32 = V4_ROOT + V4_ENTRIES;
/// Entries of the IPv6 root for 2000::/3, which is all that is routed in the Internet (RFC 4291, section 2.4).
pub const V6_ENTRIES: u32 = 1 << 13;
/// Index of the entry for all other IPv6 addresses.
pub const V6_OTHERS: u32 = V6_ROOT + V6_ENTRIES;
/// Index of the first class page's offset.
pub const CLASSES: u32 = V6_OTHERS + 16;
/// Keys there are: one for each port of both protocols.
pub const KEYS: u32 = 1 << 17;
/// Keys whose classes are in one page.
pub const PAGE_KEYS: u32 = 1 << 8;
/// Index of the first word of leaf number 0.
pub const LEAVES: u32 = CLASSES + KEYS / PAGE_KEYS;
/// The number of the leaf for addresses that no prefix covers.
pub const UNCOVERED_LEAF: u32 = 0;
/// The number of the leaf for the gateway's own addresses.
pub const OWN_LEAF: u32 = 1;
/// The most leaves there can be: an IPv4 block has 16 bits for their numbers.
pub const MAX_LEAVES: u32 = 1 << 16;
/// The answer where no prefix covers the destination.
pub const NO_PREFIX: u32 = 1;
/// The answer where no covering rule lists the protocol and port.
pub const NO_PORT: u32 = 2;
/// The answer where the destination is the gateway itself.
pub const OWN: u32 = 3;
/// The bit of a leaf's word that says it stands for a chain of conditions; the others are its word offset.
pub const CHAIN: u32 = 1 << 31;
/// The bit of an entry that says it stands for a block.
pub const BLOCK: u32 = 1 << 31;
/// Bit position of the number of intervals in the entry of a block.
pub const COUNT_SHIFT: u32 = 24;
/// Number of intervals in the entry of a block that stands for as many or more.
pub const LONG: u32 = 127;
/// The most words a table can have: 64 MiB. An entry of a block has 24 bits for an offset.
pub const MAX_WORDS: u32 = 1 << 24;
/// Words that a search reads at once, and which must be in the table wherever a block starts.
pub const SEARCH_STEP: usize = 8;
/// Levels of IPv6 blocks below the root.
const V6_LEVELS: u32 = 4;

/// Read access to a table.
pub trait Table {
    /// The `N` words from `index` on, or `None` if the table ends before the last of them.
    fn words<const N: usize>(&self, index: u32) -> Option<[u32; N]>;

    /// Returns `value`. In the kernel, in a way that hides from the verifier what it knows of it; see
    /// [`Frame::blur`](crate::frame::Frame::blur).
    #[inline(always)]
    fn blur(&self, value: u32) -> u32 {
        value
    }

    /// The word at `index`, or `None` beyond the table's end.
    #[inline(always)]
    fn word(&self, index: u32) -> Option<u32> {
        let [word] = self.words::<1>(index)?;
        Some(word)
    }
}

impl Table for [u32] {
    fn words<const N: usize>(&self, index: u32) -> Option<[u32; N]> {
        self.get(index as usize..)?.first_chunk().copied()
    }
}

/// Something that answers what a ruleset says.
pub trait Lookup {
    /// Returns what the ruleset says about a destination, and a protocol and port as [`Transport::key`] gives them, as the word of
    /// an answer (see [`Answer::from_word`]). `client` is called if that depends on who sends the packet. 0 if there is no
    /// ruleset, or its table is damaged, or the client cannot be told.
    fn lookup_word(
        &self,
        destination: Destination,
        key: u32,
        client: impl FnOnce() -> Option<Client>,
    ) -> u32;

    /// The same as an answer.
    fn lookup(
        &self,
        destination: Destination,
        key: u32,
        client: impl FnOnce() -> Option<Client>,
    ) -> Option<Answer> {
        Answer::from_word(self.lookup_word(destination, key, client))
    }
}

impl Lookup for [u32] {
    fn lookup_word(
        &self,
        destination: Destination,
        key: u32,
        client: impl FnOnce() -> Option<Client>,
    ) -> u32 {
        answer_word(self, destination, key, client).unwrap_or(0)
    }
}

/// Asks a table, as [`Lookup::lookup_word`] says. The word is that of an answer; see [`Answer::from_word`].
#[inline(always)]
pub fn answer_word<T: Table + ?Sized>(
    table: &T,
    destination: Destination,
    key: u32,
    client: impl FnOnce() -> Option<Client>,
) -> Option<u32> {
    let word = match destination {
        Destination::V4(address) => lookup_v4(table, address, key),
        Destination::V6(high, low) => lookup_v6(table, high, low, key),
    }?;
    if word & CHAIN == 0 {
        return Some(word);
    }
    choose(table, word & !CHAIN, &client()?)
}

/// Asks the table about an IPv4 destination; see [`Answer::from_word`]. `None` if the table is damaged: an offset leads
/// out of it.
#[inline(always)]
pub fn lookup_v4<T: Table + ?Sized>(table: &T, address: u32, key: u32) -> Option<u32> {
    let class = class(table, key)?;
    let mut entry = table.word(v4_root(address))?;
    if entry & BLOCK != 0 {
        let (first, count) = block(table, entry)?;
        let interval = search::<T, 4>(table, first, count, address << 16 | 0xffff)?;
        entry = (interval & 0xffff)
            .wrapping_mul(table.word(CLASS_COUNT)?)
            .wrapping_add(LEAVES);
    }
    table.word(entry.wrapping_add(class))
}

/// Asks the table about an IPv6 destination, as [`lookup_v4`] does.
#[inline(always)]
pub fn lookup_v6<T: Table + ?Sized>(table: &T, high: u64, low: u64, key: u32) -> Option<u32> {
    let mut entry = table.word(table.blur(v6_root(high)))?;
    let (mut next, mut rest) = if high >> 61 == 1 {
        (high << 16 | low >> 48, low << 16)
    } else {
        (high, low)
    };
    let mut level = 0;
    while level < V6_LEVELS && entry & BLOCK != 0 {
        let (first, count) = block(table, entry)?;
        entry = search::<T, 8>(table, first, count, (next >> 32) as u32)?;
        next = next << 32 | rest >> 32;
        rest <<= 32;
        level += 1;
    }
    leaf_word(table, entry, key)
}

/// The index of an IPv4 destination's entry in the root.
#[inline(always)]
pub const fn v4_root(address: u32) -> u32 {
    V4_ROOT + (address >> 16)
}

/// The index of an IPv6 destination's entry in the root, by the first half of the address.
#[inline(always)]
pub const fn v6_root(high: u64) -> u32 {
    if high >> 61 == 1 {
        V6_ROOT + ((high >> 48) as u32 & (V6_ENTRIES - 1))
    } else {
        V6_OTHERS
    }
}

/// Returns whether any prefix, or an address of the gateway, is in the part of the address space that a destination's entry in the root stands for. Most
/// destinations are elsewhere, and these bits are small enough to stay in the processor's first cache. Parts that rulesets before
/// covered may be said to be covered as well, while flows to there go on.
#[inline(always)]
pub fn is_covered<T: Table + ?Sized>(table: &T, destination: Destination) -> bool {
    let (first, entry) = match destination {
        Destination::V4(address) => (V4_COVERED, address >> 16),
        Destination::V6(high, _) if high >> 61 == 1 => {
            (V6_COVERED, (high >> 48) as u32 & (V6_ENTRIES - 1))
        }
        Destination::V6(..) => return true,
    };
    let bits = table.word(first + entry / 32);
    bits.is_none_or(|bits| bits >> (entry % 32) & 1 != 0)
}

/// The bit of an address, by its lower half, in the words at [`OWN_BITS`]. Where it is not set the address is not the gateway's own.
#[inline(always)]
pub const fn own_bit(low: u64) -> u64 {
    1 << ((low ^ low >> 32) & 63)
}

/// Returns whether an address may be the gateway's own; if so, the table itself is to be asked.
#[inline(always)]
pub fn may_be_own<T: Table + ?Sized>(table: &T, low: u64) -> bool {
    match table.words::<2>(OWN_BITS) {
        Some([lower, upper]) => (u64::from(upper) << 32 | u64::from(lower)) & own_bit(low) != 0,
        None => true,
    }
}

/// The word of a leaf, by the leaf's entry.
#[inline(always)]
pub fn leaf_word<T: Table + ?Sized>(table: &T, entry: u32, key: u32) -> Option<u32> {
    table.word(entry.wrapping_add(class(table, key)?))
}

/// The class of a key.
#[inline(always)]
fn class<T: Table + ?Sized>(table: &T, key: u32) -> Option<u32> {
    let page = table.word(CLASSES + (key & (KEYS - 1)) / PAGE_KEYS)?;
    let pair = table.word(page.wrapping_add(key % PAGE_KEYS / 2))?;
    Some(pair >> (16 * (key & 1)) & 0xffff)
}

/// Returns where the intervals of a block are, and how many.
#[inline(always)]
fn block<T: Table + ?Sized>(table: &T, entry: u32) -> Option<(u32, u32)> {
    let first = entry & (MAX_WORDS - 1);
    let count = entry >> COUNT_SHIFT & LONG;
    if count == LONG {
        return Some((first, table.word(first.wrapping_sub(1))?));
    }
    Some((first, count))
}

/// The last word of the last of `count` elements whose first word is at most `key`, or of the first element if there is
/// none. Elements are a quarter of `N` words long and sorted by their first word.
///
/// Halves the range until there are four elements at most, and compares those at once: loads that do not wait for each
/// other take the processor hardly longer than one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "N is 4 or 8")]
fn search<T: Table + ?Sized, const N: usize>(
    table: &T,
    first: u32,
    count: u32,
    key: u32,
) -> Option<u32> {
    if count == 0 || count > MAX_WORDS {
        return None;
    }
    let stride = N as u32 / 4;
    // Enough for every block: an IPv4 one has 2^16 intervals at most, an IPv6 one half as many as a table has words.
    let most = if N == 4 { 14 } else { MAX_WORDS.ilog2() - 3 };
    let mut at = table.blur(first);
    let mut remaining = count;
    let mut step = 0;
    while step < most && remaining > 4 {
        let half = remaining / 2;
        let ahead = half.wrapping_mul(stride);
        let start = table.word(at.wrapping_add(ahead))?;
        at = at
            .wrapping_add(ahead)
            .wrapping_sub(ahead & after(start, key));
        remaining -= half;
        step += 1;
    }
    let four = table.words::<N>(at)?;
    let (start, value) = (|n| four[n * N / 4], |n| four[n * N / 4 + N / 4 - 1]);
    let mut found = value(0);
    for n in 1..4 {
        // Behind the last element there may be anything.
        let is_before = !after(start(n), key) & after(remaining, n as u32);
        found = found.wrapping_add(value(n).wrapping_sub(value(n - 1)) & is_before);
    }
    Some(found)
}

/// All ones if `a` is more than `b`, else zero. A branch would double the paths that the kernel's verifier has to follow
/// at every step, and the processor would mispredict every other one.
#[inline(always)]
pub(crate) const fn after(a: u32, b: u32) -> u32 {
    ((b as u64).wrapping_sub(a as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec;

    #[test]
    fn the_search_finds_the_last_one_at_or_before() {
        for count in 1..=70u32 {
            // Behind the elements is what would be found there if it were one of them.
            let pairs = (0..count).flat_map(|n| [n * 10, n]);
            let words: vec::Vec<u32> = pairs.chain([0; 8]).collect();
            for key in 0..count * 10 + 20 {
                let found = search::<[u32], 8>(&words, 0, count, key);
                assert_eq!(found, Some((key / 10).min(count - 1)), "{count} {key}");
            }
        }
        let highest = [5, u32::MAX - 1, u32::MAX, 0];
        for (key, found) in [(0, 5), (u32::MAX - 1, u32::MAX - 1), (u32::MAX, u32::MAX)] {
            assert_eq!(search::<[u32], 4>(&highest, 0, 3, key), Some(found));
        }
    }

    #[test]
    fn damaged_tables_give_no_answer() {
        let short: &[u32] = &[0; 32];
        assert_eq!(
            short.lookup(Destination::V4(0xffff_ffff), 443, || None),
            None
        );
        let mut words = vec![0u32; LEAVES as usize + 4];
        words[V4_ROOT as usize] = BLOCK | 0x7fff_ff00; // a block behind the end
        assert_eq!(words.lookup(Destination::V4(255 << 8), 443, || None), None);
        words[V4_ROOT as usize] = LEAVES + 4; // a leaf behind the end
        assert_eq!(words.lookup(Destination::V4(1), 443, || None), None);
        words[V6_OTHERS as usize] = BLOCK | (LEAVES + 1); // a block that claims no intervals
        assert_eq!(words.lookup(Destination::V6(0, 1), 443, || None), None);
    }
}
