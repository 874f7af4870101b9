//! The way of a packet: by the choices in the path table, and by the pin of its flow.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use breakout_common::classify::flow;
use breakout_common::frame::Frame;
use breakout_common::packet::Headers;
use breakout_common::path::{Flow, Pin, PinEvent, PinKey, Pins, settle, unsteered};
use breakout_common::table::NO_PREFIX;
use breakout_common::verdict::{Decision, Reason};

use crate::globals;
use crate::maps::{PINNED, PINS, paths};
use crate::opaque::opaque;

/// The decision on a packet that the ruleset has answered with a word. A packet to other destinations ends here at once,
/// unless there are pins of flows that were steered before.
#[inline(always)]
pub(crate) fn decide_way<F: Frame>(packet: &F, headers: &Headers, word: u32) -> Decision {
    let is_pinned = globals::pins() != 0;
    if word == NO_PREFIX && !(is_pinned && has_pins_beyond_ruleset()) {
        return Decision::pass(Reason::NoPrefix);
    }
    let Some(flow) = flow(packet, headers, word) else {
        return unsteered(word);
    };
    let facts = flow.facts | if is_pinned { Flow::PINNED } else { 0 };
    let ((source_high, source_low), (high, low)) = (flow.source, flow.destination);
    let word = breakout_settle(source_high, source_low, high, low, facts);
    Decision::from_known_word(word)
}

#[inline(always)]
fn has_pins_beyond_ruleset() -> bool {
    paths().is_some_and(|table| table.pins_beyond_ruleset != 0)
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
    let decision = match paths() {
        Some(table) => settle(&flow, table, &KernelPins),
        None => unsteered((facts & 0x7ff_ffff) as u32),
    };
    decision.to_word()
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
    fn spill(&self, pin: &mut Pin) {
        #[cfg(target_arch = "bpf")]
        // SAFETY: as in `opaque`. Without `nomem` the compiler takes it that the pin may be read and written there, which it is not.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) core::ptr::from_mut(pin) => _, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "bpf"))]
        let _ = pin;
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

    /// By the clock that costs least: the verifier makes one load of it (Linux 5.6).
    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper takes no arguments and has no preconditions.
        let now = unsafe { bpf_jiffies64() };
        (now >> (globals::clock_shift() & 63) & 0xffff_ffff) as u32
    }
}
