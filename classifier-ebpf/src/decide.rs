//! From a frame to the decision on it, for both programs.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use breakout_common::classify::rule;
use breakout_common::egress::{EGRESS_WORDS, Egress, NextHop};
use breakout_common::fragment::{self, Fragment};
use breakout_common::packet::{Headers, Stop, walk};
use breakout_common::verdict::{Decision, Reason};

use crate::globals;
use crate::maps::{FRAGMENTS, egress};
use crate::path::decide_way;
use crate::reader::Packet;
use crate::ruleset::LiveRuleset;

/// A decision with what carrying it out takes.
pub(crate) struct Decided {
    pub(crate) decision: Decision,
    /// The words of the egress, if the verdict is to steer; see [`Egress::from_words`].
    pub(crate) egress: Option<&'static [u32; EGRESS_WORDS]>,
    /// The headers; none for fragments after the first one.
    pub(crate) headers: Option<Headers>,
}

impl Decided {
    #[inline(always)]
    fn pass(reason: Reason) -> Self {
        Decided {
            decision: Decision::pass(reason),
            egress: None,
            headers: None,
        }
    }
}

/// Decides a frame.
#[inline(always)]
pub(crate) fn decide_frame(packet: &Packet) -> Result<Decided, Stop> {
    match walk(packet) {
        Ok(headers) => {
            let word = rule(&LiveRuleset, packet, &headers, u32::from(globals::lan()));
            let decision = decide_way(packet, &headers, word);
            if let Some(first) = headers.first_fragment() {
                remember(packet, &first, &decision);
            }
            Ok(with_egress(decision, headers.is_v6(), Some(headers)))
        }
        Err(Stop::LaterFragment(later)) => Ok(match recall(packet, &later) {
            Some(first) => with_egress(first, later.v6_header.is_some(), None),
            None => Decided::pass(Reason::LaterFragment),
        }),
        Err(stop) => Err(stop),
    }
}

/// Adds the egress; one without a way out has the packet pass.
#[inline(always)]
fn with_egress(decision: Decision, v6: bool, headers: Option<Headers>) -> Decided {
    let mut decided = Decided {
        decision,
        egress: None,
        headers,
    };
    if let Some(index) = decision.egress() {
        let is_up = |words: &&_| Egress::from_words(words).next_hop(v6) != NextHop::None;
        decided.egress = egress(index).filter(is_up);
        if decided.egress.is_none() {
            decided.decision = decision.but_pass(Reason::EgressDown);
        }
    }
    decided
}

/// Notes the way of a steered first fragment, and forgets that of an earlier packet with the same identification.
#[inline(always)]
fn remember(packet: &Packet, first: &Fragment, decision: &Decision) {
    let Some(key) = fragment::key(packet, first) else {
        return;
    };
    // A full map or a lost race costs this packet's later fragments the local link, nothing more.
    if let (Some(egress), Some(set)) = (decision.egress(), decision.set()) {
        let _ = FRAGMENTS.insert(key, fragment::remember(egress, set, now()), 0);
    } else {
        let _ = FRAGMENTS.remove(key);
    }
}

#[inline(always)]
fn recall(packet: &Packet, later: &Fragment) -> Option<Decision> {
    let key = fragment::key(packet, later)?;
    // SAFETY: the memory is plain integers and is copied at once; if the kernel reuses the entry meanwhile, the copy
    // is of another steered packet, whose way is as valid as any.
    let memory = unsafe { FRAGMENTS.get(key) }.copied()?;
    fragment::recall(&memory, now())
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no arguments and has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
