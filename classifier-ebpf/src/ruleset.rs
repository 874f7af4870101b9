//! The ruleset in force, and how it is asked.
//!
//! What not every packet needs is in functions of their own, which the verifier looks at once (global functions, Linux
//! 5.6). Inlined, it would go through them again for every way through the header walk.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps};
use aya_ebpf::macros::btf_map;
use breakout_common::condition::Client;
use breakout_common::table::{
    BLOCK, CHAIN, Destination, Lookup, Table, answer_word, leaf_word, lookup_v4, lookup_v6,
    v4_root, v6_root,
};

use crate::globals;
use crate::opaque::opaque;

/// The ruleset in force. The controller creates this map with inner maps of the size it needs
/// and hands it to the loader; the value type here only names the word.
#[btf_map]
static RULESET: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

/// One table, for destinations of which it is known that they may be [covered](breakout_common::table::is_covered).
impl Lookup for LiveTable {
    #[inline(always)]
    fn lookup_word(
        &self,
        destination: Destination,
        key: u32,
        client: impl FnOnce() -> Option<Client>,
    ) -> u32 {
        match in_root(self, destination, key) {
            Some(word) => for_client(destination, key, word, client),
            None => LookupApart.lookup_word(destination, key, client),
        }
    }
}

/// The ruleset in force, with nothing inlined, for where that does not pay.
pub(crate) struct LookupApart;

impl Lookup for LookupApart {
    #[inline(always)]
    fn lookup_word(
        &self,
        destination: Destination,
        key: u32,
        client: impl FnOnce() -> Option<Client>,
    ) -> u32 {
        let (high, low) = destination.to_halves();
        let word = breakout_ask(high, low, question(destination, key));
        for_client(destination, key, word, client)
    }
}

/// Follows an answer that depends on the client.
#[inline(always)]
fn for_client(
    destination: Destination,
    key: u32,
    word: u32,
    client: impl FnOnce() -> Option<Client>,
) -> u32 {
    if word & CHAIN == 0 {
        return word;
    }
    let Some(client) = client() else { return 0 };
    let (high, low) = destination.to_halves();
    let (source_high, source_low) = client.source.to_halves();
    let whose = u64::from(client.lan) << LAN | u64::from(client.vlan) << VLAN;
    let question = question(destination, key) | whose;
    breakout_ask_for(high, low, question, source_high, source_low)
}

#[inline(always)]
fn question(destination: Destination, key: u32) -> u64 {
    u64::from(key) | if destination.is_v6() { V6 } else { 0 }
}

/// The answer for those destinations that the root decides: most of the others.
#[inline(always)]
fn in_root(table: &LiveTable, destination: Destination, key: u32) -> Option<u32> {
    let (high, low) = destination.to_halves();
    let root = if destination.is_v6() {
        v6_root(high)
    } else {
        v4_root((low & 0xffff_ffff) as u32)
    };
    let entry = table.word(table.blur(root))?;
    if entry & BLOCK != 0 {
        return None;
    }
    leaf_word(table, entry, key)
}

/// Returns what the ruleset says about a destination and a question; 0 if it cannot be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_ask(high: u64, low: u64, question: u64) -> u32 {
    let key = key(question);
    let word = LiveTable::current().and_then(|table| match address(high, low, question) {
        Destination::V4(address) => lookup_v4(&table, address, key),
        Destination::V6(high, low) => lookup_v6(&table, high, low, key),
    });
    word.unwrap_or(0)
}

/// The bit of a question that says its addresses are IPv6 ones. Below it is the key.
pub(crate) const V6: u64 = 1 << 17;
/// Bit position of the LAN interface's number in a question, 8 bits long.
const LAN: u32 = 24;
/// Bit position of the VLAN id in a question.
const VLAN: u32 = 32;

/// The same for the client with a source address.
/// Asks everything anew, so that the whole answer is of one ruleset.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_ask_for(
    high: u64,
    low: u64,
    question: u64,
    source_high: u64,
    source_low: u64,
) -> u32 {
    let client = Client {
        source: address(source_high, source_low, question),
        lan: (question >> LAN & 0xff) as u32,
        vlan: (question >> VLAN & 0xfff) as u32,
    };
    let word = LiveTable::current().and_then(|table| {
        let destination = address(high, low, question);
        answer_word(&table, destination, key(question), || Some(client))
    });
    word.unwrap_or(0)
}

#[inline(always)]
fn key(question: u64) -> u32 {
    (question & (V6 - 1)) as u32
}

#[inline(always)]
fn address(high: u64, low: u64, question: u64) -> Destination {
    Destination::from_halves(question & V6 != 0, high, low)
}

/// One published table. The reference holds for the run of the program: the kernel
/// frees a replaced table only after an RCU grace period.
pub(crate) struct LiveTable {
    words: *const u32,
    size: usize,
}

impl LiveTable {
    /// The table in force, if one has been published.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        RULESET.get_value_ptr_mut(0, &0).map(|first| LiveTable {
            words: first.cast_const(),
            size: globals::table_words() as usize,
        })
    }
}

impl Table for LiveTable {
    #[inline(always)]
    fn blur(&self, value: u32) -> u32 {
        value ^ globals::zero()
    }

    #[inline(always)]
    fn words<const N: usize>(&self, index: u32) -> Option<[u32; N]> {
        let index = opaque(index as usize);
        if index >= self.size.saturating_sub(N - 1) {
            return None;
        }
        // SAFETY: the map value behind `words` has `size` words, which the verifier checks at load
        // against the map's real value size, and `index + N` is at most that. `[u32; N]` has the alignment of a word.
        Some(unsafe { *self.words.add(index).cast() })
    }
}
