//! The way of a packet: by the choices in the path table, and by the pin of its flow.

use breakout_common::classify::flow;
use breakout_common::flows::{Facts, State, predict};
use breakout_common::frame::Frame;
use breakout_common::packet::Headers;
use breakout_common::path::{Flow, ORDINARY, PathTable, Pin, PinEvent, Pins, unsteered, weigh};
use breakout_common::table::{NO_PREFIX, Outcome};
use breakout_common::verdict::{Decision, Reason};

use crate::clock::now;
use crate::flows::{self, KernelSets};
use crate::globals;
use crate::maps::{PINNED, paths};
use crate::opaque::opaque;

/// The decision on a packet that the ruleset has answered with a word. A packet to other destinations ends here at once,
/// unless there are pins of flows that were steered before. That of a plain packet may be known without asking further.
#[inline(always)]
pub(crate) fn decide_way<F: Frame, const IS_PLAIN: bool>(
    packet: &F,
    headers: &Headers,
    word: u32,
    paths: Option<&PathTable>,
) -> Decision {
    let is_pinned = globals::pins() != 0;
    let has_pins_beyond = paths.is_some_and(|paths| paths.pins_beyond_ruleset != 0);
    if word == NO_PREFIX && !(is_pinned && has_pins_beyond) {
        return Decision::pass(Reason::NoPrefix);
    }
    let Some(flow) = flow(packet, headers, word) else {
        return unsteered(word);
    };
    let facts = flow.facts | if is_pinned { Flow::PINNED } else { 0 };
    let flow = Flow { facts, ..flow };
    if let (true, Some(paths)) = (IS_PLAIN, paths) {
        let egress = known_way(&flow, paths);
        if egress != ORDINARY {
            return flow.steered(egress);
        }
    }
    let ((source_high, source_low), (high, low)) = (flow.source, flow.destination);
    let settled = breakout_settle(source_high, source_low, high, low, facts);
    let decision = Decision::from_known_word((settled & 0xffff_ffff) as u32);
    if settled & KEPT != 0 {
        let set = u64::from(decision.set().unwrap_or(0));
        let facts = facts & PIN_FACTS | set | settled >> 32 & WAY;
        breakout_keep_flow(source_high, source_low, high, low, facts);
        if settled & SHARED != 0 {
            let client = u64::from(flow.preference()) << 32 | facts & 0xffff_ffff;
            breakout_share(source_high, source_low, client);
        }
    }
    decision
}

/// Fields that [`breakout_settle`] returns above the decision, where [`breakout_keep_flow`] takes it: above the slot of an endpoint
/// set the egress and the state of the pin, whether the flow is new, and in the bits of [`EPOCH`] the lowest bits of the
/// epoch. In the place of the slot it says whether the pin is kept and shared.
const EGRESS: u32 = 16;
const STATE: u32 = 21;
const SINCE_NOW: u64 = 1 << 24;
const EPOCH: [(u32, u64); 2] = [(25, 0b11), (29, 0b111)];
const KEPT: u64 = 1 << 32;
const SHARED: u64 = 1 << 33;
const WAY: u64 = 0x1ff << EGRESS | EPOCH[0].1 << EPOCH[0].0 | EPOCH[1].1 << EPOCH[1].0;
/// Bits of a flow's facts that go with that.
const PIN_FACTS: u64 = 0xffff_ffff << 32 | Flow::V6 | Flow::TCP;
const _: () = assert!(PIN_FACTS & WAY == 0 && (KEPT | SHARED) & WAY << 32 == 0);

/// The way of a flow for which nothing has changed; see [`predict`]. [`ORDINARY`] where that is not known: of an option the
/// compiler would leave a part undefined.
#[inline(always)]
fn known_way(flow: &Flow, paths: &PathTable) -> u8 {
    if !flow.is_settled() {
        return ORDINARY;
    }
    let (key, now) = (flows::key(flow.key()), KernelPins.now());
    let way = predict(flow, &key, &KernelSets, paths, now, |egress| {
        u8::try_from(opaque(usize::from(egress))).unwrap_or(ORDINARY)
    })
    .unwrap_or(ORDINARY);
    if way != ORDINARY {
        return way;
    }
    let most = flow.may_be_silent(paths);
    if most == 0 {
        return ORDINARY;
    }
    // In each tick its first packet comes here.
    let second = key.second() | u64::from(key.kind());
    let facts = flows::breakout_renew(key.first(), second, now, paths.epoch, most);
    if facts == 0 {
        ORDINARY
    } else {
        Facts(facts).egress()
    }
}

/// [`weigh`] in a function of its own, which the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_settle(
    source_high: u64,
    source_low: u64,
    high: u64,
    low: u64,
    facts: u64,
) -> u64 {
    let flow = Flow {
        source: (source_high, source_low),
        destination: (high, low),
        facts,
    };
    let Some(table) = paths() else {
        let word = (facts & 0xffff_ffff) as u32 & Outcome::ALL;
        return u64::from(unsteered(word).to_word());
    };
    let settled = weigh(&flow, table, &KernelPins);
    let mut word = u64::from(settled.decision.to_word());
    if settled.is_kept {
        let pin = settled.pin;
        let way = u64::from(pin.egress() & 31) << EGRESS | u64::from(pin.state & 7) << STATE;
        let epoch = u64::from(pin.epoch);
        let epoch = (epoch & EPOCH[0].1) << EPOCH[0].0 | (epoch >> 2 & EPOCH[1].1) << EPOCH[1].0;
        word |= KEPT | (way | epoch) << 32;
        word |= if pin.since == pin.seen {
            SINCE_NOW << 32
        } else {
            0
        };
        word |= if settled.is_shared { SHARED } else { 0 };
    }
    word
}

/// The pin that has come out of [`breakout_settle`].
#[inline(always)]
fn pin_of(facts: u64) -> Pin {
    let now = KernelPins.now();
    let set = (facts & 0xffff) as u16;
    let egress = (facts >> EGRESS & 31) as u8;
    // That of the table by which it was weighed, which may have been replaced meanwhile.
    let lowest = facts >> EPOCH[0].0 & EPOCH[0].1 | (facts >> EPOCH[1].0 & EPOCH[1].1) << 2;
    let current = paths().map_or(0, |table| table.epoch);
    let behind = current.wrapping_sub((lowest & 31) as u32) & 31;
    Pin {
        seen: now,
        since: if facts & SINCE_NOW != 0 { now } else { 0 },
        epoch: current.wrapping_sub(behind),
        way: Pin::way_of(egress, set),
        state: (facts >> STATE & 7) as u32,
    }
}

/// Keeps the pin of a flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_keep_flow(
    source_high: u64,
    source_low: u64,
    high: u64,
    low: u64,
    facts: u64,
) -> u32 {
    let flow = Flow {
        source: (source_high, source_low),
        destination: (high, low),
        facts,
    };
    let is_kept = flows::put(flow.key(), &pin_of(facts));
    if !is_kept {
        KernelPins.count(PinEvent::Failed);
    }
    u32::from(is_kept)
}

/// Keeps it for the other media flows of its client. The preference stands above the facts.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_share(source_high: u64, source_low: u64, facts: u64) -> u32 {
    let key = Flow::client_key_of((source_high, source_low), facts >> 32, facts);
    let pin = Pin {
        state: State::Client as u32,
        ..pin_of(facts)
    };
    let is_kept = flows::put(key, &pin);
    if !is_kept {
        KernelPins.count(PinEvent::Failed);
    }
    u32::from(is_kept)
}

/// The pins in the kernel's map.
struct KernelPins;

impl Pins for KernelPins {
    #[inline(always)]
    fn flow(&self, flow: &Flow) -> Option<Pin> {
        flows::get(flow.key(), self.now())
    }

    #[inline(always)]
    fn client(&self, flow: &Flow) -> Option<Pin> {
        flows::get(flow.client_key(), self.now())
    }

    #[inline(always)]
    fn blur(&self, value: usize) -> usize {
        opaque(value)
    }

    #[inline(always)]
    fn count(&self, event: PinEvent) {
        if let Some(count) = PINNED.get_ptr_mut(event as u32) {
            // SAFETY: the pointer is to this CPU's slot; see `count`.
            unsafe { *count = (*count).wrapping_add(1) };
        }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        now()
    }
}
