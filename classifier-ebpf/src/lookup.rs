//! The ruleset in force, asked.

use breakout_common::table::{Answer, Destination, Lookup, lookup_v4, lookup_v6};

use crate::maps::LiveTable;

/// The ruleset in force at the time of each question.
///
/// Each question is a call of a function of its own: the kernel's verifier looks at those once, and not again for every
/// way through the header walk that leads to them (global functions, Linux 5.6).
pub(crate) struct LiveRuleset;

impl Lookup for LiveRuleset {
    #[inline(always)]
    fn lookup(&self, destination: Destination, key: u32) -> Option<Answer> {
        let code = match destination {
            Destination::V4(address) => breakout_lookup_v4(address, key),
            Destination::V6(high, low) => breakout_lookup_v6(high, low, key),
        };
        Answer::from_code(code)
    }
}

/// [`lookup_v4`] in the table in force; zero if there is no answer.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_lookup_v4(address: u32, key: u32) -> u64 {
    let answer = LiveTable::current().and_then(|table| lookup_v4(&table, address, key));
    answer.map_or(0, Answer::to_code)
}

/// [`lookup_v6`] in the table in force; zero if there is no answer.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_lookup_v6(high: u64, low: u64, key: u32) -> u64 {
    let answer = LiveTable::current().and_then(|table| lookup_v6(&table, high, low, key));
    answer.map_or(0, Answer::to_code)
}
