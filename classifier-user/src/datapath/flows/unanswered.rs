//! Flows that have begun and that nobody has answered yet.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use anyhow::Result;
use breakout_common::flows::{Facts, State, answered};
use breakout_common::path::{ORDINARY, PinKey};

use super::{Clock, FlowTable, sys};

/// Number of entries that are looked at.
const MOST: usize = 1024;
/// Greatest age, in ticks.
const NEW: u32 = 2;

/// A flow that has begun lately and is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    slot: u32,
    first: u64,
    second: u64,
    /// The index of its egress.
    pub egress: u8,
    /// True if it is IPv6.
    pub v6: bool,
    /// True if it is TCP, and none of its packets but SYNs have come.
    pub opens_tcp: bool,
    /// The address of its client, in halves.
    pub client: (u64, u64),
    /// The address of its destination.
    pub destination: (u64, u64),
}

/// Flows that have begun lately.
#[derive(Debug, Default)]
pub struct BegunLately {
    /// Some of those that are not answered.
    pub unanswered: Vec<Unanswered>,
    /// The egresses, and whether it is IPv6, with TCP connections that go on behind their SYN. Those have been answered, by whichever way
    /// that came.
    pub going_on: BTreeSet<(u8, bool)>,
}

impl FlowTable {
    /// Goes through all flows for those.
    ///
    /// # Errors
    ///
    /// When the addresses of flows over IPv6 cannot be read.
    pub fn begun_lately(&self) -> Result<BegunLately> {
        let now = Clock::of_kernel().now();
        let mut begun = BegunLately::default();
        for (slot, second) in (0u32..).zip(self.seconds()) {
            let facts = Facts::of(second.load(Ordering::Relaxed));
            let is_flow = facts.is_live() && facts.state() != State::Client as u32;
            if !is_flow || facts.egress() == ORDINARY || facts.silent(now) > NEW {
                continue;
            }
            // The kernel's clock may be a tick ahead.
            let note = self.note(slot).load(Ordering::Relaxed);
            let since = (note & 0xffff_ffff) as u32;
            if now.saturating_sub(since) > NEW {
                continue;
            }
            if facts.is_tcp() && has_gone_on(facts) {
                begun.going_on.insert((facts.egress(), facts.is_v6()));
            } else if answered(note) == 0 && begun.unanswered.len() < MOST && is_open(facts) {
                begun.unanswered.extend(self.unanswered_in(slot)?);
            }
        }
        Ok(begun)
    }

    /// Returns whether a flow has been answered meanwhile; none if it is gone, or goes another way.
    pub fn is_answered(&self, flow: &Unanswered) -> Option<bool> {
        let (first, second) = self.words(flow.slot)?;
        let facts = Facts::of(second);
        let is_same =
            first == flow.first && second >> 32 == flow.second && facts.egress() == flow.egress;
        let note = self.note(flow.slot).load(Ordering::Relaxed);
        is_same.then(|| answered(note) != 0 || facts.is_tcp() && has_gone_on(facts))
    }

    fn unanswered_in(&self, slot: u32) -> Result<Option<Unanswered>> {
        let Some((first, second)) = self.words(slot) else {
            return Ok(None);
        };
        let facts = Facts::of(second);
        let addresses = if facts.is_v6() {
            sys::get::<u32, PinKey>(&self.addresses, &slot)?
        } else {
            None
        };
        let key = self.pin_key(addresses.as_ref(), first, second);
        Ok(key.map(|[a, b, c, d, _]| Unanswered {
            slot,
            first,
            second: second >> 32,
            egress: facts.egress(),
            v6: facts.is_v6(),
            opens_tcp: facts.is_tcp(),
            client: (a, b),
            destination: (c, d),
        }))
    }
}

/// Returns whether more of a TCP connection has come than its SYN and its end.
fn has_gone_on(facts: Facts) -> bool {
    facts.state() == State::Established as u32
}

/// Returns whether it is not known of a flow by its own packets that it is answered.
fn is_open(facts: Facts) -> bool {
    !facts.is_tcp() || facts.state() == State::Opening as u32
}
