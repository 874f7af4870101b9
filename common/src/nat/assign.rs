//! Assignment of public ports to flows.

use crate::flows::{Facts, Limits, State};

/// For how many seconds of silence a mapping of TCP lives (RFC 5382, REQ-5).
pub const TCP_IDLE: u64 = 2 * 3600 + 4 * 60;
/// The same for UDP (RFC 4787, REQ-5). An established flow of either that was silent for less makes no room for others.
pub const UDP_IDLE: u64 = 300;

/// Returns what may be given up for a new flow, by those times in ticks.
#[inline(always)]
pub const fn limits(tcp_idle: u32, udp_idle: u32) -> Limits {
    Limits {
        tcp_idle,
        udp_idle,
        media_hold: 0,
        tcp_established: udp_idle,
        udp_established: udp_idle,
        only_free: false,
    }
}

/// For how many of those ticks a flow may be silent. A TCP connection that opens or closes lives no longer than UDP (RFC 5382, REQ-5).
#[inline(always)]
pub const fn idle(facts: Facts, limits: &Limits) -> u32 {
    if facts.is_tcp() && facts.state() == State::Established as u32 {
        limits.tcp_idle
    } else {
        limits.udp_idle
    }
}

/// Step by which a packet gets its public port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// It has it: the flow's slot is known, and nothing is to be noted.
    Known,
    /// It has it, and this is to be noted of the flow.
    Note(Facts),
    /// The flow has none yet, and gets one with this known of it.
    New(Facts),
    /// The flow began without a mapping, so its peer would not know it by one.
    Unknown,
}

/// Decides by what is known of the mapping, zero if there is none. `kind` is its key's, `egress` the way of the packet; `opens` and
/// `closes` are what it says as TCP.
#[inline(always)]
pub const fn assignment(
    was: Facts,
    kind: u32,
    egress: u8,
    (opens, closes): (bool, bool),
    now: u32,
) -> Assignment {
    let is_tcp = Facts(kind).is_tcp();
    if !was.is_live() && is_tcp && !opens {
        return Assignment::Unknown;
    }
    let state = if closes {
        State::Closing as u32
    } else if !was.is_live() || opens {
        State::Opening as u32
    } else {
        // It is the peer that establishes a flow, by its answer; see `owner`.
        was.state()
    };
    let is = Facts::new(kind, now, 0).with(egress, state);
    if !was.is_live() {
        Assignment::New(is)
    } else if is.0 == was.0 {
        Assignment::Known
    } else {
        Assignment::Note(is)
    }
}
