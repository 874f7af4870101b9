//! Synthetic packets: how they are known, and what is noted of one that was caught.

/// Under this key stands the number by which the packets are known; no interface has this index.
pub const NONCE: u32 = 0;

/// The bits of that number which all packets of one process have. The others tell them apart.
pub const OF_ONE: u32 = !0xff;

/// Words of what was caught: the packet's number, the type of service (traffic class), four of the source address in network byte order (of IPv4 the
/// first), and the segment size that a SYN announces.
pub const CAUGHT_WORDS: usize = 7;

/// Returns where the number is in a packet over TCP: the sequence number, behind a header that begins at `transport`.
#[inline(always)]
pub const fn tcp_nonce_at(transport: u32) -> u32 {
    transport + 4
}

/// The same over UDP: the first bytes of the datagram.
#[inline(always)]
pub const fn udp_nonce_at(transport: u32) -> u32 {
    transport + 8
}
