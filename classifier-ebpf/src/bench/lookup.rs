//! The lookup alone: the same loop around nothing, around the ruleset, and around the kernel's LPM_TRIE.
//!
//! Each question depends on the answer before, so that what is measured is how long a packet waits.

use aya_ebpf::bindings::TC_ACT_OK;
use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use breakout_common::question::{Question, QuestionWords};
use breakout_common::table::{Destination, Lookup};

use crate::globals::zero;
use crate::questions::{advance, question};
use crate::ruleset::LiveRuleset;

/// Questions asked in one run.
const PER_RUN: u32 = 64;
/// Prefixes that the tries have room for.
const MOST: usize = 1 << 20;

/// The peer for IPv4: outcome by prefix, keys in network byte order.
#[btf_map]
static LPM_V4: LpmTrie<[u8; 4], u32, MOST> = LpmTrie::new();

/// The peer for IPv6.
#[btf_map]
static LPM_V6: LpmTrie<[u8; 16], u32, MOST> = LpmTrie::new();

#[inline(always)]
fn chain(lookup: impl Fn(&QuestionWords) -> u64) -> i32 {
    let first = advance(PER_RUN);
    let mut answer = 0;
    let mut count = 0;
    while count < PER_RUN {
        // Zero times whatever the answer was.
        let number = first.wrapping_add(count) ^ ((answer & 0xffff) as u32 & zero());
        if let Some(words) = question(number) {
            answer = lookup(&words);
        }
        count += 1;
    }
    // The answer is used, so the last lookup is not left out.
    TC_ACT_OK ^ ((answer & 0xffff) as u32 & zero()).cast_signed()
}

#[classifier]
pub(crate) fn lookup_none(_: TcContext) -> i32 {
    chain(|words| u64::from(words[2] ^ words[3] ^ words[5] ^ words[1]))
}

#[classifier]
pub(crate) fn lookup_table(_: TcContext) -> i32 {
    chain(|words| {
        let question = Question::from_words(words);
        let answer = LiveRuleset.lookup(question.destination, question.key);
        answer.map_or(0, breakout_common::table::Answer::to_code)
    })
}

#[classifier]
pub(crate) fn lookup_lpm(_: TcContext) -> i32 {
    chain(|words| match Question::from_words(words).destination {
        Destination::V4(address) => {
            let key = Key::new(32, address.to_be_bytes());
            LPM_V4.get(&key).map_or(0, |value| u64::from(*value))
        }
        Destination::V6(high, low) => {
            let mut data = [0; 16];
            data[..8].copy_from_slice(&high.to_be_bytes());
            data[8..].copy_from_slice(&low.to_be_bytes());
            LPM_V6
                .get(&Key::new(128, data))
                .map_or(0, |value| u64::from(*value))
        }
    })
}
