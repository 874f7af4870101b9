//! The clock by which flows are silent.

use aya_ebpf::helpers::generated::bpf_jiffies64;

use crate::globals;

/// The time in ticks, as [`Pins::now`](breakout_common::path::Pins::now) has it. By the clock that costs least: the verifier makes one
/// load of it (Linux 5.6).
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: the helper takes no arguments and has no preconditions.
    let now = unsafe { bpf_jiffies64() };
    (now >> (globals::clock_shift() & 63) & 0xffff_ffff) as u32
}
