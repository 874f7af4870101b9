//! The lookup alone: the same loop around nothing, around the ruleset, and around the kernel's LPM_TRIE.
//!
//! Each question depends on the answer before, so that what is measured is how long a packet waits.

use aya_ebpf::bindings::TC_ACT_OK;
use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use breakout_common::table::{Destination, Transport, lookup_v4, lookup_v6};

use crate::globals::zero;
use crate::questions::{address, advance};
use crate::ruleset::LiveTable;

/// Questions asked in one run. The verifier looks at every one of them.
const PER_RUN: u32 = 8;
/// Prefixes that the tries have room for.
const MOST: usize = 1 << 20;
/// Protocol and port of all questions.
const KEY: u32 = Transport::Tcp.key(443);

/// The peer for IPv4: keys in network byte order.
#[btf_map]
static LPM_V4: LpmTrie<[u8; 4], u32, MOST> = LpmTrie::new();

/// The peer for IPv6.
#[btf_map]
static LPM_V6: LpmTrie<[u8; 16], u32, MOST> = LpmTrie::new();

#[inline(always)]
fn chain<const N: usize>(lookup: impl Fn([u32; N]) -> u32) -> i32 {
    let first = advance(PER_RUN);
    let mut answer = 0;
    let mut count = 0;
    while count < PER_RUN {
        // Zero, whatever the answer was.
        let number = first.wrapping_add(count) ^ (answer & zero());
        if let Some(words) = address::<N>(number) {
            answer = lookup(words);
        }
        count += 1;
    }
    // The answer is used, so the last lookup is not left out.
    TC_ACT_OK ^ (answer & zero()).cast_signed()
}

#[inline(always)]
fn v6([a, b, c, d]: [u32; 4]) -> (u64, u64) {
    let half = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    (half(a, b), half(c, d))
}

/// The word that the ruleset has for a destination.
#[inline(always)]
fn ask(destination: Destination) -> u32 {
    let word = LiveTable::current().and_then(|table| match destination {
        Destination::V4(address) => lookup_v4(&table, address, KEY),
        Destination::V6(high, low) => lookup_v6(&table, high, low, KEY),
    });
    word.unwrap_or(0)
}

#[classifier]
pub(crate) fn lookup_none_v4(_: TcContext) -> i32 {
    chain(|[address]| address)
}

#[classifier]
pub(crate) fn lookup_none_v6(_: TcContext) -> i32 {
    chain(|[a, b, c, d]| a ^ b ^ c ^ d)
}

#[classifier]
pub(crate) fn lookup_table_v4(_: TcContext) -> i32 {
    chain(|[address]| ask(Destination::V4(address)))
}

#[classifier]
pub(crate) fn lookup_table_v6(_: TcContext) -> i32 {
    chain(|words| {
        let (high, low) = v6(words);
        ask(Destination::V6(high, low))
    })
}

#[classifier]
pub(crate) fn lookup_lpm_v4(_: TcContext) -> i32 {
    chain(|[address]| {
        let key = Key::new(32, address.to_be_bytes());
        LPM_V4.get(&key).map_or(0, |value| *value)
    })
}

#[classifier]
pub(crate) fn lookup_lpm_v6(_: TcContext) -> i32 {
    chain(|words| {
        let (high, low) = v6(words);
        let mut data = [0; 16];
        data[..8].copy_from_slice(&high.to_be_bytes());
        data[8..].copy_from_slice(&low.to_be_bytes());
        LPM_V6.get(&Key::new(128, data)).map_or(0, |value| *value)
    })
}
