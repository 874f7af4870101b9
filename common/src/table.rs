//! The compiled ruleset as the data path reads it: one array of 32-bit words.
//!
//! ```text
//! word 0        layout magic
//! word 1        generation
//! word 2        words in use
//! word 16       IPv4 root: 65,536 entries, indexed by the upper 16 bits of the destination
//! word 65552    IPv6 root: 65,536 entries, likewise
//! word 131088   leaves: number 1 is here, number n is 4 * (n - 1) words further on
//! after those   blocks, in any order
//! ```
//!
//! An entry stands for a part of the address space. It is 0 (no prefix covers these addresses), [`OWN`] (an address of
//! the gateway itself), the number of a leaf, or the word offset of a block with [`BLOCK`] set, where the part is not
//! all alike.
//!
//! A block has the sorted intervals that its part falls into, and is searched for the last one that starts at or before
//! the address:
//!
//! - IPv4: one word an interval, its start's lower 16 bits above its entry (never another block). The first interval
//!   starts with the part; where its start would stand is the number of intervals, less one.
//! - IPv6: the number of intervals, then two words for each: 32 bits of its start, its entry. Blocks of the first level
//!   have bits 16 to 47 of the address, then 48 to 79, 80 to 111, and 112 to 127 with zeros behind.
//!
//! A leaf is a count, followed by that many ranges of three words: first key, last key (see [`Transport::key`]),
//! [`Outcome`]. Ranges are sorted and disjoint. What several overlapping prefixes and endpoint sets say about one
//! address is folded into its leaf by the compiler, so one walk gives the whole answer.
//!
//! All words are in the machine's byte order: a table never leaves the machine.

/// The first word of every table. Its low byte is the layout's version.
pub const MAGIC: u32 = 0x4252_4b02;

/// Index of the word that holds the generation.
pub const GENERATION: u32 = 1;
/// Index of the word that holds the number of words in use.
pub const USED: u32 = 2;
/// Index of the first entry of the IPv4 root.
pub const V4_ROOT: u32 = 16;
/// Entries of a root.
pub const ROOT_ENTRIES: u32 = 1 << 16;
/// Index of the first entry of the IPv6 root.
pub const V6_ROOT: u32 = V4_ROOT + ROOT_ENTRIES;
/// Index of the first word behind the roots, where leaf number 1 is.
pub const LEAVES: u32 = V6_ROOT + ROOT_ENTRIES;
/// Words from one leaf's number to the next one's. A leaf with more than one range takes several numbers.
pub const LEAF_WORDS: u32 = 4;
/// The entry of an address that the gateway itself has: never steered.
pub const OWN: u32 = 0xffff;
/// The highest leaf number: an IPv4 block has 16 bits for it.
pub const MAX_LEAF: u32 = OWN - 1;
/// The bit of an entry that says it points to a block.
pub const BLOCK: u32 = 1 << 31;
/// Words of one range of a leaf.
pub const RANGE_WORDS: u32 = 3;
/// The most words a table can have: 64 MiB.
pub const MAX_WORDS: u32 = 1 << 24;
/// Steps of the binary search that are enough for anything in a table of [`MAX_WORDS`].
const MAX_STEPS: u32 = 24;
/// Levels of IPv6 blocks below the root.
const V6_LEVELS: u32 = 4;

/// Read access to a table.
pub trait Table {
    /// The word at `index`, or `None` beyond the table's end.
    fn word(&self, index: u32) -> Option<u32>;

    /// Returns `value`. In the kernel, in a way that hides from the verifier what it knows of it; see
    /// [`Frame::blur`](crate::frame::Frame::blur).
    #[inline(always)]
    fn blur(&self, value: u32) -> u32 {
        value
    }
}

impl Table for [u32] {
    fn word(&self, index: u32) -> Option<u32> {
        self.get(index as usize).copied()
    }
}

/// The transport protocols that endpoint sets list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl Transport {
    /// The transport with this IP protocol number, if it is one of the two.
    pub const fn from_protocol(number: u8) -> Option<Self> {
        match number {
            6 => Some(Transport::Tcp),
            17 => Some(Transport::Udp),
            _ => None,
        }
    }

    /// Protocol and port as one number: TCP's ports, then UDP's.
    pub const fn key(self, port: u16) -> u32 {
        match self {
            Transport::Tcp => port as u32,
            Transport::Udp => 0x1_0000 | port as u32,
        }
    }
}

/// A destination address. IPv6 addresses are two halves because eBPF has 64-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An IPv4 address as a number, first octet highest.
    V4(u32),
    /// An IPv6 address: its first and last eight bytes as numbers, first byte highest.
    V6(u64, u64),
}

impl Destination {
    /// Whether it is an IPv6 address.
    #[inline(always)]
    pub const fn is_v6(self) -> bool {
        matches!(self, Destination::V6(..))
    }
}

/// What a range of a leaf says: the endpoint set that wins there and what is done with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Outcome {
    /// The endpoint set's slot, the index of its counter.
    pub set: u16,
    /// The egress to steer to, or `None` where the policy passes the set.
    pub egress: Option<u8>,
}

impl Outcome {
    const STEER: u32 = 1 << 24;

    /// The outcome as a table word.
    pub const fn to_word(self) -> u32 {
        match self.egress {
            Some(egress) => Self::STEER | (egress as u32) << 16 | self.set as u32,
            None => self.set as u32,
        }
    }

    /// The outcome that a table word stands for.
    pub const fn from_word(word: u32) -> Self {
        Outcome {
            set: (word & 0xffff) as u16,
            egress: if word & Self::STEER == 0 {
                None
            } else {
                Some((word >> 16 & 0xff) as u8)
            },
        }
    }
}

/// What a table says about a destination, protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No prefix covers the destination.
    NoPrefix,
    /// Prefixes cover the destination, none with this protocol and port.
    NoPort,
    /// This endpoint set wins.
    Match(Outcome),
    /// The destination is the gateway itself.
    Own,
}

impl Answer {
    /// The answer as a number other than zero, in which the kernel's functions can return it.
    #[inline(always)]
    pub const fn to_code(self) -> u64 {
        match self {
            Answer::NoPrefix => 1,
            Answer::NoPort => 2,
            Answer::Own => 3,
            Answer::Match(outcome) => 1 << 32 | outcome.to_word() as u64,
        }
    }

    /// The answer that a number stands for, if any.
    #[inline(always)]
    pub const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Answer::NoPrefix),
            2 => Some(Answer::NoPort),
            3 => Some(Answer::Own),
            code => Some(Answer::Match(Outcome::from_word(
                (code & 0xffff_ffff) as u32,
            ))),
        }
    }
}

/// Something that answers what a ruleset says.
pub trait Lookup {
    /// What the ruleset says about a destination, and a protocol and port as [`Transport::key`] gives them. `None` if
    /// there is no ruleset, or its table is damaged.
    fn lookup(&self, destination: Destination, key: u32) -> Option<Answer>;
}

impl Lookup for [u32] {
    fn lookup(&self, destination: Destination, key: u32) -> Option<Answer> {
        match destination {
            Destination::V4(address) => lookup_v4(self, address, key),
            Destination::V6(high, low) => lookup_v6(self, high, low, key),
        }
    }
}

/// Asks the table about an IPv4 destination. `None` if the table is damaged: an offset leads out of it.
#[inline(always)]
pub fn lookup_v4<T: Table + ?Sized>(table: &T, address: u32, key: u32) -> Option<Answer> {
    let entry = descend_v4(table, address)?;
    search_entry(table, entry, key)
}

/// Asks the table about an IPv6 destination, as [`lookup_v4`] does.
#[inline(always)]
pub fn lookup_v6<T: Table + ?Sized>(table: &T, high: u64, low: u64, key: u32) -> Option<Answer> {
    let entry = descend_v6(table, high, low)?;
    search_entry(table, entry, key)
}

#[inline(always)]
fn search_entry<T: Table + ?Sized>(table: &T, entry: u32, key: u32) -> Option<Answer> {
    match entry {
        0 => Some(Answer::NoPrefix),
        OWN => Some(Answer::Own),
        number => search_leaf(table, number, key),
    }
}

#[inline(always)]
fn descend_v4<T: Table + ?Sized>(table: &T, address: u32) -> Option<u32> {
    let entry = table.word(V4_ROOT + (address >> 16))?;
    if entry & BLOCK == 0 {
        return Some(entry);
    }
    let block = entry & !BLOCK;
    let intervals = (table.word(block)? >> 16) + 1;
    let at = search(table, block, intervals, 1, address << 16 | 0xffff)?;
    Some(table.word(at)? & 0xffff)
}

#[inline(always)]
fn descend_v6<T: Table + ?Sized>(table: &T, high: u64, low: u64) -> Option<u32> {
    let mut entry = table.word(V6_ROOT + (high >> 48) as u32)?;
    let mut next = high << 16 | low >> 48;
    let mut rest = low << 16;
    let mut level = 0;
    while level < V6_LEVELS && entry & BLOCK != 0 {
        let block = entry & !BLOCK;
        let intervals = table.word(block)?;
        let at = search(
            table,
            block.wrapping_add(1),
            intervals,
            2,
            (next >> 32) as u32,
        )?;
        entry = table.word(at.wrapping_add(1))?;
        next = next << 32 | rest >> 32;
        rest <<= 32;
        level += 1;
    }
    Some(entry)
}

/// The range that starts last at or before `key` matches if it ends at or after it.
#[inline(always)]
fn search_leaf<T: Table + ?Sized>(table: &T, number: u32, key: u32) -> Option<Answer> {
    let leaf = (number - 1).wrapping_mul(LEAF_WORDS).wrapping_add(LEAVES);
    let ranges = table.word(leaf)?;
    let at = search(table, leaf.wrapping_add(1), ranges, RANGE_WORDS, key)?;
    let first = table.word(at)?;
    let last = table.word(at.wrapping_add(1))?;
    if first <= key && key <= last {
        let outcome = Outcome::from_word(table.word(at.wrapping_add(2))?);
        Some(Answer::Match(outcome))
    } else {
        Some(Answer::NoPort)
    }
}

/// Where the last of `count` elements starts whose first word is at most `key`, or the first element if there is none.
/// Elements are `stride` words long and sorted by their first word.
#[inline(always)]
fn search<T: Table + ?Sized>(
    table: &T,
    first: u32,
    count: u32,
    stride: u32,
    key: u32,
) -> Option<u32> {
    if count == 0 || count > MAX_WORDS {
        return None;
    }
    let mut at = table.blur(first);
    let mut remaining = count;
    let mut step = 0;
    while step < MAX_STEPS && remaining > 1 {
        let half = remaining / 2;
        let ahead = half.wrapping_mul(stride);
        let word = table.word(at.wrapping_add(ahead))?;
        // All ones if word <= key, else zero. A branch here would double the paths that the kernel's verifier has to
        // follow at every step, and the processor would mispredict every other one.
        let taken = !((u64::from(key).wrapping_sub(u64::from(word)) >> 32) as u32);
        at = at.wrapping_add(ahead & taken);
        remaining -= half;
        step += 1;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec;

    #[test]
    fn outcomes_survive_the_word() {
        for egress in [None, Some(0), Some(255)] {
            for set in [0, 1, u16::MAX] {
                let outcome = Outcome { set, egress };
                assert_eq!(Outcome::from_word(outcome.to_word()), outcome);
                let answer = Answer::Match(outcome);
                assert_eq!(Answer::from_code(answer.to_code()), Some(answer));
            }
        }
    }

    #[test]
    fn leaf_search_finds_each_range_and_no_gap() {
        for count in 1..=9u32 {
            let mut words = vec![0u32; LEAVES as usize];
            words.push(count);
            for range in 0..count {
                words.extend([range * 10 + 5, range * 10 + 7, range]);
            }
            let table: &[u32] = &words;
            for key in 0..count * 10 + 20 {
                let inside = key >= 5 && (key - 5) % 10 <= 2 && (key - 5) / 10 < count;
                let expected = if inside {
                    Answer::Match(Outcome::from_word((key - 5) / 10))
                } else {
                    Answer::NoPort
                };
                assert_eq!(search_leaf(table, 1, key), Some(expected), "{count} {key}");
            }
        }
    }

    #[test]
    fn damaged_tables_give_no_answer() {
        let short: &[u32] = &[0; 32];
        assert_eq!(short.lookup(Destination::V4(0xffff_ffff), 443), None);
        let mut words = vec![0u32; LEAVES as usize + 4];
        words[V4_ROOT as usize] = BLOCK | 0x7fff_ff00;
        assert_eq!(words.lookup(Destination::V4(255 << 8), 443), None);
        words[V4_ROOT as usize] = 1; // a leaf that claims no ranges
        assert_eq!(words.lookup(Destination::V4(1), 443), None);
        words[V6_ROOT as usize] = BLOCK | LEAVES; // a block that claims no intervals
        assert_eq!(words.lookup(Destination::V6(0, 1), 443), None);
    }
}
