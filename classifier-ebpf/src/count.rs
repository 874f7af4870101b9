//! The counters: per CPU, so that counting takes no lock.

use breakout_common::counters::Counter;
use breakout_common::verdict::Decision;

use crate::maps::{REASONS, SETS};

/// Counts `packets` packets of `bytes` bytes together under the decision's reason and endpoint set.
#[inline(always)]
pub(crate) fn count(decision: &Decision, packets: u64, bytes: u64) {
    add(
        REASONS.get_ptr_mut(decision.reason_number()),
        packets,
        bytes,
    );
    if let Some(set) = decision.set() {
        add(SETS.get_ptr_mut(u32::from(set)), packets, bytes);
    }
}

#[inline(always)]
pub(crate) fn add(counter: Option<*mut Counter>, packets: u64, bytes: u64) {
    if let Some(counter) = counter {
        // SAFETY: the pointer is to this CPU's slot of a per-CPU array. XDP and TC run in softirq with
        // migration off, so nothing else writes the slot meanwhile.
        let [all_packets, all_bytes] = unsafe { &mut *counter };
        *all_packets = all_packets.wrapping_add(packets);
        *all_bytes = all_bytes.wrapping_add(bytes);
    }
}
