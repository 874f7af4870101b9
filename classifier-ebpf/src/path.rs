//! The way of a packet: by the choices in the path table, and by the pin of its flow.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use breakout_common::classify::{Ruling, flow};
use breakout_common::packet::Headers;
use breakout_common::path::{Flow, PathTable, Pin, PinEvent, PinKey, Pins, Way, settle};
use breakout_common::verdict::Decision;

use crate::globals;
use crate::maps::{PINNED, PINS, paths};
use crate::reader::Packet;

/// The decision on a packet that the ruleset has been asked about. A packet that is not steered costs nothing here, unless
/// there are pins of flows that were steered before.
#[inline(always)]
pub(crate) fn decide_way(packet: &Packet, headers: &Headers, ruling: &Ruling) -> Decision {
    let Some(table) = paths() else {
        return ruling.pass();
    };
    let is_pinned = globals::pins() != 0;
    match ruling.preference() {
        Some(preference) if !is_pinned && !table.is_spread(preference) => {
            return ruling.by_choice(table, headers.is_v6(), 0);
        }
        None if !is_pinned => return ruling.pass(),
        None if ruling.facts() & Flow::HELD == 0 && !is_looked_up(table, ruling) => {
            return ruling.pass();
        }
        _ => {}
    }
    let Some(flow) = flow(packet, headers, ruling) else {
        return ruling.pass();
    };
    let facts = flow.facts | if is_pinned { Flow::PINNED } else { 0 };
    let way = breakout_settle(
        flow.source.0,
        flow.source.1,
        flow.destination.0,
        flow.destination.1,
        facts,
    );
    ruling.by_way(Way(way))
}

/// Whether a packet that no rule steers may be of a flow that was steered before.
#[inline(always)]
fn is_looked_up(table: &PathTable, ruling: &Ruling) -> bool {
    table.pins_beyond_ruleset != 0 && ruling.may_be_pinned()
}

/// [`settle`] in a function of its own, which the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_settle(
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
    match paths() {
        Some(table) => settle(&flow, table, &KernelPins, seconds()).0,
        None => Way::chosen(breakout_common::path::ORDINARY, 0).0,
    }
}

/// The pins in the kernel's map.
struct KernelPins;

impl Pins for KernelPins {
    #[inline(always)]
    fn get(&self, key: &PinKey) -> Option<Pin> {
        // SAFETY: a pin is plain integers and is copied at once. If the kernel reuses the entry meanwhile, or another CPU
        // writes it, the copy may mix two pins; each of their egresses is looked at before it is used.
        unsafe { PINS.get(key) }.copied()
    }

    #[inline(always)]
    fn put(&self, key: &PinKey, pin: &Pin) -> bool {
        PINS.insert(key, pin, 0).is_ok()
    }

    #[inline(always)]
    fn count(&self, event: PinEvent) {
        if let Some(count) = PINNED.get_ptr_mut(event as u32) {
            // SAFETY: the pointer is to this CPU's slot; see `count`.
            unsafe { *count = (*count).wrapping_add(1) };
        }
    }
}

/// Seconds since boot, also those in which the machine slept.
#[inline(always)]
fn seconds() -> u32 {
    // SAFETY: the helper takes no arguments and has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    (now / 1_000_000_000) as u32
}
