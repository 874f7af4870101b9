//! The layout of the per-CPU counters.

/// Packets and bytes, in that order: one counter's value in a per-CPU array map.
///
/// A GSO packet counts as the packets it will be on the wire; bytes are the frame's length as the kernel
/// holds it.
pub type Counter = [u64; 2];

/// Entries of the counter map indexed by [`Reason`](crate::verdict::Reason).
pub const REASON_SLOTS: usize = 32;

/// Entries of the counter map indexed by endpoint set slot: the most endpoint sets one ruleset may have.
pub const SET_SLOTS: usize = 4096;
