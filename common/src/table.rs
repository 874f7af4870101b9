//! The compiled ruleset as the data path reads it: one array of 32-bit words.
//!
//! ```text
//! word 0        layout magic
//! word 1        generation
//! word 2        words in use
//! word 16       IPv4 root: 65,536 entries, indexed by the upper 16 bits of the destination
//! word 65552    IPv6 root: 65,536 entries, likewise
//! after that    nodes (256 entries, indexed by the next 8 bits) and leaves, in any order
//! ```
//!
//! An entry is 0 (no prefix covers these addresses), the word offset of a leaf, or the word offset of
//! a node with [`NODE`] set. A leaf is a count, followed by that many ranges of three words: first key,
//! last key (see [`Transport::key`]), [`Outcome`]. Ranges are sorted and disjoint. What several
//! overlapping prefixes and endpoint sets say about one address is folded into its leaf by the compiler, so
//! one walk gives the whole answer.
//!
//! All words are in the machine's byte order: a table never leaves the machine.

/// The first word of every table. Its low byte is the layout's version.
pub const MAGIC: u32 = 0x4252_4b01;

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
/// Index of the first word behind the roots.
pub const BODY: u32 = V6_ROOT + ROOT_ENTRIES;
/// Entries of a node below a root.
pub const NODE_ENTRIES: u32 = 256;
/// The bit of an entry that says it points to a node.
pub const NODE: u32 = 1 << 31;
/// Words of one range of a leaf.
pub const RANGE_WORDS: u32 = 3;
/// The most ranges a leaf can have: one for each port of both protocols.
pub const MAX_RANGES: u32 = 1 << 17;

/// Read access to a table.
pub trait Table {
    /// The word at `index`, or `None` beyond the table's end.
    fn word(&self, index: u32) -> Option<u32>;
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
}

/// Asks the table. `None` if the table is damaged: an offset leads out of it.
#[inline(always)]
pub fn lookup<T: Table + ?Sized>(table: &T, destination: Destination, key: u32) -> Option<Answer> {
    let entry = match destination {
        Destination::V4(address) => descend_v4(table, address)?,
        Destination::V6(high, low) => descend_v6(table, high, low)?,
    };
    if entry == 0 {
        return Some(Answer::NoPrefix);
    }
    search_leaf(table, entry, key)
}

#[inline(always)]
fn descend_v4<T: Table + ?Sized>(table: &T, address: u32) -> Option<u32> {
    let mut entry = table.word(V4_ROOT + (address >> 16))?;
    if entry & NODE != 0 {
        entry = table.word((entry & !NODE) + (address >> 8 & 0xff))?;
        if entry & NODE != 0 {
            entry = table.word((entry & !NODE) + (address & 0xff))?;
        }
    }
    Some(entry)
}

#[inline(always)]
fn descend_v6<T: Table + ?Sized>(table: &T, high: u64, low: u64) -> Option<u32> {
    let mut entry = table.word(V6_ROOT + (high >> 48) as u32)?;
    let mut half = high << 16;
    let mut level = 2;
    while level < 16 && entry & NODE != 0 {
        if level == 8 {
            half = low;
        }
        entry = table.word((entry & !NODE) + (half >> 56) as u32)?;
        half <<= 8;
        level += 1;
    }
    Some(entry)
}

/// The last range that starts at or before `key`, by binary search; it matches if it ends at or after it.
#[inline(always)]
fn search_leaf<T: Table + ?Sized>(table: &T, leaf: u32, key: u32) -> Option<Answer> {
    let mut remaining = table.word(leaf)?;
    if remaining == 0 || remaining > MAX_RANGES {
        return None;
    }
    let mut base = leaf + 1;
    let mut step = 0;
    while step < 17 && remaining > 1 {
        let half = remaining / 2;
        let step_words = half.wrapping_mul(RANGE_WORDS);
        let first = table.word(base.wrapping_add(step_words))?;
        // All ones if first <= key, else zero; both are below 2^31. A branch here would double the paths that the
        // kernel's verifier has to follow at every step.
        let taken = !(key.wrapping_sub(first).cast_signed() >> 31).cast_unsigned();
        base = base.wrapping_add(step_words & taken);
        remaining -= half;
        step += 1;
    }
    let first = table.word(base)?;
    let last = table.word(base.wrapping_add(1))?;
    if first <= key && key <= last {
        let outcome = Outcome::from_word(table.word(base.wrapping_add(2))?);
        Some(Answer::Match(outcome))
    } else {
        Some(Answer::NoPort)
    }
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
            }
        }
    }

    #[test]
    fn leaf_search_finds_each_range_and_no_gap() {
        for count in 1..=9u32 {
            let mut words = vec![0u32; 8];
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
                assert_eq!(search_leaf(table, 8, key), Some(expected), "{count} {key}");
            }
        }
    }

    #[test]
    fn damaged_tables_give_no_answer() {
        let short: &[u32] = &[0; 32];
        assert_eq!(lookup(short, Destination::V4(0xffff_ffff), 443), None);
        let mut words = vec![0u32; BODY as usize];
        words[V4_ROOT as usize] = NODE | 0x7fff_ff00;
        assert_eq!(lookup(&words[..], Destination::V4(255 << 8), 443), None);
        words[V4_ROOT as usize] = 12; // a leaf that claims no ranges
        assert_eq!(lookup(&words[..], Destination::V4(1), 443), None);
    }
}
