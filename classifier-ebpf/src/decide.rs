//! From a frame to the decision on it, for both programs.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use breakout_common::classify::rule;
use breakout_common::egress::{EgressWords, is_up};
use breakout_common::fragment::{self, Fragment};
use breakout_common::frame::Frame;
use breakout_common::packet::{Headers, Stop, V6, walk};
use breakout_common::verdict::{Decision, Reason};

use crate::globals;
use crate::maps::{FRAGMENTS, egress};
use crate::path::decide_way;
use crate::reader::Packet;
use crate::ruleset::LiveRuleset;

/// A decision with what carrying it out takes.
pub(crate) struct Decided {
    pub(crate) decision: Decision,
    /// The egress, if the verdict is to steer.
    pub(crate) egress: Option<&'static EgressWords>,
    /// The headers; none for fragments after the first one.
    pub(crate) headers: Option<Headers>,
}

impl Decided {
    #[inline(always)]
    pub(crate) fn pass(reason: Reason) -> Self {
        Decided {
            decision: Decision::pass(reason),
            egress: None,
            headers: None,
        }
    }
}

/// Decides a frame, whatever it is.
#[inline(always)]
pub(crate) fn decide_frame(packet: &Packet) -> Decided {
    let mut walked = Walked::NONE;
    walk_apart(packet, &mut walked);
    let headers = walked.headers;
    match walked.stop {
        Walked::WHOLE => {
            let word = rule(&LiveRuleset, packet, &headers, u32::from(globals::lan()));
            let decision = decide_way(packet, &headers, word);
            if let Some(first) = headers.first_fragment() {
                remember(packet, &first, &decision);
            }
            with_egress(decision, headers.is_v6(), Some(headers))
        }
        Walked::LATER_FRAGMENT => match recall(packet, &walked.later_fragment()) {
            Some(first) => with_egress(first, headers.is_v6(), None),
            None => Decided::pass(Reason::LaterFragment),
        },
        reason => Decided {
            decision: Decision::from_known_word(reason),
            egress: None,
            headers: None,
        },
    }
}

/// What the header walk found, in words all of which are always set.
pub(crate) struct Walked {
    /// The headers; of a later fragment, where it is.
    pub(crate) headers: Headers,
    /// The number of the reason why there are none, or one of the numbers below.
    pub(crate) stop: u32,
}

impl Walked {
    /// There are headers.
    pub(crate) const WHOLE: u32 = 1 << 8;
    const LATER_FRAGMENT: u32 = 1 << 9;

    pub(crate) const NONE: Walked = Walked {
        headers: Headers {
            ip_offset: 0,
            ip_len: 0,
            transport_offset: 0,
            ttl: 0,
            halves: (0, 0),
            key: 0,
            marks: 0,
            fragment_header: 0,
            vlan: 0,
        },
        stop: 0,
    };

    #[inline(always)]
    fn later_fragment(&self) -> Fragment {
        let Headers {
            ip_offset,
            fragment_header,
            ..
        } = self.headers;
        Fragment {
            ip_offset,
            v6_header: self.headers.is_v6().then_some(fragment_header),
        }
    }
}

/// The header walk as a function of its own, whose stack is free again behind it.
#[inline(never)]
pub(crate) fn walk_apart(packet: &Packet, walked: &mut Walked) {
    match walk(packet) {
        Ok(headers) => {
            walked.headers = headers;
            walked.stop = Walked::WHOLE;
        }
        Err(Stop::LaterFragment(later)) => {
            walked.headers.ip_offset = later.ip_offset;
            if let Some(header) = later.v6_header {
                walked.headers.fragment_header = header;
                walked.headers.marks = V6;
            }
            walked.stop = Walked::LATER_FRAGMENT;
        }
        Err(Stop::Reason(reason)) => walked.stop = reason as u32,
    }
}

/// Decides a packet whose headers are [plain](breakout_common::packet::plain_v4). `None` if that takes what is not done here.
#[inline(always)]
pub(crate) fn decide_plain<F: Frame>(frame: &F, headers: &Headers) -> Option<Decided> {
    let word = LiveRuleset.word_for_all(headers.destination(), headers.key)?;
    let decision = decide_way(frame, headers, word);
    Some(with_egress(decision, headers.is_v6(), Some(*headers)))
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
        decided.egress = egress(index).filter(|words| is_up(words, v6));
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
