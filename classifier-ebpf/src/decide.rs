//! From a frame to the decision on it, for both programs.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use breakout_common::classify::{rule, source};
use breakout_common::egress::{EgressWords, is_up};
use breakout_common::fragment::{self, Fragment};
use breakout_common::frame::Frame;
use breakout_common::icmp::about;
use breakout_common::network::network;
use breakout_common::packet::{Headers, Stop, V6, walk};
use breakout_common::path::{Flow, ORDINARY, PathTable, place};
use breakout_common::table::{Destination, OWN, Outcome, Transport, is_covered, may_be_own};
use breakout_common::verdict::{Decision, Reason};

use crate::clock;
use crate::flows;
use crate::globals;
use crate::maps::{FRAGMENTS, egress, paths};
use crate::opaque::opaque;
use crate::path::decide_way;
use crate::reader::Packet;
use crate::ruleset::{LiveTable, LookupApart, V6 as IN_V6, breakout_ask};

/// A decision with the egress, if it is to steer.
pub(crate) type Decided = (Decision, Option<&'static EgressWords>);

/// Decides a frame, whatever it is. Leaves in `walked` what it found.
#[inline(always)]
pub(crate) fn decide_frame(packet: &Packet, walked: &mut Walked) -> Decided {
    walk_apart(
        packet.start(),
        packet.end(),
        packet.len(),
        packet.tag_beside(),
        walked,
    );
    if walked.stop == Reason::OtherProtocol as u32 && globals::pins() != 0 {
        about_apart(
            packet.start(),
            packet.end(),
            packet.len(),
            packet.tag_beside(),
            walked,
        );
    }
    let headers = &walked.headers;
    match walked.stop {
        Walked::WHOLE | Walked::ABOUT => {
            let word = rule(&LookupApart, packet, headers, u32::from(globals::lan()));
            let paths = paths();
            if walked.stop == Walked::ABOUT {
                let decision = way_of_flow(packet, headers, walked.ports, word);
                return with_egress(decision, headers.is_v6(), paths);
            }
            let decision = decide_way::<_, false>(packet, headers, word, paths);
            if let Some(first) = headers.first_fragment() {
                remember(
                    packet.start(),
                    packet.end(),
                    first.to_word(),
                    decision.to_word(),
                );
            }
            with_egress(decision, headers.is_v6(), paths)
        }
        Walked::LATER_FRAGMENT => {
            let first = recall(
                packet.start(),
                packet.end(),
                walked.later_fragment().to_word(),
            );
            with_egress(Decision::from_known_word(first), headers.is_v6(), paths())
        }
        reason => (Decision::from_known_word(reason), None),
    }
}

/// Result of the header walk, in words all of which are always set.
pub(crate) struct Walked {
    /// The headers; of a later fragment, where it is.
    pub(crate) headers: Headers,
    /// The number of the reason why there are none, or one of the numbers below.
    pub(crate) stop: u32,
    /// The ports of the flow that an ICMP error is about.
    pub(crate) ports: u64,
}

impl Walked {
    /// There are headers.
    pub(crate) const WHOLE: u32 = 1 << 8;
    const LATER_FRAGMENT: u32 = 1 << 9;
    /// It is an ICMP error, and the headers are those of the [flow that it is about](breakout_common::icmp::About).
    const ABOUT: u32 = 1 << 10;

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
        ports: 0,
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
pub(crate) fn walk_apart(start: usize, end: usize, len: u32, tag: u32, walked: &mut Walked) {
    match walk(&Packet::new(start, end, len).with_tag(tag)) {
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

/// Reads what an ICMP error is about. A function of its own, as above.
#[inline(never)]
fn about_apart(start: usize, end: usize, len: u32, tag: u32, walked: &mut Walked) {
    let packet = Packet::new(start, end, len).with_tag(tag);
    if let Some(network) = network(&packet)
        && let Some(about) = about(&packet, &network)
    {
        walked.headers = about.headers;
        walked.ports = about.ports;
        walked.stop = Walked::ABOUT;
    }
}

/// The decision on an ICMP error: by the egress of the flow that it is about, if that is known to leave by one.
#[inline(always)]
fn way_of_flow(packet: &Packet, headers: &Headers, ports: u64, word: u32) -> Decision {
    // Flows of hard rules go by no pin.
    const HELD: u32 = Outcome::BYPASS | Outcome::SHADOW | Outcome::HARD;
    let Some(paths) = paths() else {
        return Decision::pass(Reason::OtherProtocol);
    };
    // Bounded anew where it is used: the compiler knows its bounds, old verifiers do not.
    let place = opaque(place(headers.is_v6(), word & Outcome::MEDIA != 0));
    let (high, low) = headers.halves;
    let mut kind = if headers.is_v6() { Flow::V6 } else { 0 };
    if headers.key & Transport::Udp.key(0) == 0 {
        kind |= Flow::TCP;
    }
    if word & HELD == 0
        && let Some((client_high, client_low)) = source(packet, headers)
        && let Some(pin) = flows::get(
            [client_high, client_low, high, low, ports | kind],
            clock::now(),
        )
        && pin.egress() != ORDINARY
        && paths.works(pin.egress(), place)
    {
        return Decision::steer(pin.egress(), pin.set());
    }
    Decision::pass(Reason::OtherProtocol)
}

/// Decides a packet whose headers are [plain](breakout_common::packet::plain_v4).
#[inline(always)]
pub(crate) fn decide_plain<F: Frame>(frame: &F, headers: &Headers) -> Decided {
    let word = match LiveTable::current() {
        // Nor was it steered to before, as far as flows may still live.
        Some(table) if !is_covered(&table, headers.destination()) => {
            return (Decision::pass(Reason::NoPrefix), None);
        }
        Some(table) => rule(&table, frame, headers, u32::from(globals::lan())),
        None => 0,
    };
    let paths = paths();
    let decision = decide_way::<_, true>(frame, headers, word, paths);
    with_egress(decision, headers.is_v6(), paths)
}

/// Adds the egress; one without a way out has the packet pass.
#[inline(always)]
fn with_egress(decision: Decision, v6: bool, paths: Option<&'static PathTable>) -> Decided {
    let Some(index) = decision.egress() else {
        return (decision, None);
    };
    let egress = paths.and_then(|paths| egress(paths, index));
    match egress.filter(|words| is_up(words, v6)) {
        Some(words) => (decision, Some(words)),
        None => (decision.but_pass(Reason::EgressDown), None),
    }
}

/// Returns whether an address is one of the gateway's own.
#[inline(always)]
pub(crate) fn is_own(address: Destination) -> bool {
    let (high, low) = address.to_halves();
    match LiveTable::current() {
        Some(table) if may_be_own(&table, low) => {
            let family = if address.is_v6() { IN_V6 } else { 0 };
            breakout_ask(high, low, family) == OWN
        }
        Some(_) => false,
        None => true,
    }
}

/// Notes the way of a steered first fragment, and forgets that of an earlier packet with the same identification. Takes the
/// fragment and the decision as words.
#[inline(never)]
fn remember(start: usize, end: usize, first: u64, decision: u32) {
    let first = Fragment::from_word(first);
    let Some(key) = fragment::key(&Packet::new(start, end, 0), &first) else {
        return;
    };
    let decision = Decision::from_known_word(decision);
    // A full map or a lost race costs this packet's later fragments the local link, nothing more.
    if let (Some(egress), Some(set)) = (decision.egress(), decision.set()) {
        let _ = FRAGMENTS.insert(key, fragment::remember(egress, set, now()), 0);
    } else {
        let _ = FRAGMENTS.remove(key);
    }
}

/// The decision on a later fragment, as a word.
#[inline(never)]
fn recall(start: usize, end: usize, later: u64) -> u32 {
    let later = Fragment::from_word(later);
    let known = fragment::key(&Packet::new(start, end, 0), &later).and_then(|key| {
        // SAFETY: the memory is plain integers and is copied at once; if the kernel reuses the entry meanwhile, the copy
        // is of another steered packet, whose way is as valid as any.
        let memory = unsafe { FRAGMENTS.get(key) }.copied()?;
        fragment::recall(&memory, now())
    });
    let decision = known.unwrap_or(Decision::pass(Reason::LaterFragment));
    decision.to_word()
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no arguments and has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
