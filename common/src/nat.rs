//! Address and port translation (NAPT, RFC 2663) of flows over IPv4 that leave by an egress in redirect mode.
//!
//! The table of mappings has the layout of the [table of flows](crate::flows), but a flow's two sets lie in one *region* of [`PORTS`]
//! entries, which its remote address, port and protocol choose. The entry's number in the region is the public port, so the flows of one
//! remote have different ports without anyone looking for a free one, and whose a reply is follows from its own header by one load.
//! Mappings are by address and port (RFC 4787, section 4.1), and the same on every egress.

mod assign;
mod change;
mod mapping;
mod message;

pub use assign::{Assignment, TCP_IDLE, UDP_IDLE, assignment, idle, limits};
pub use change::{Change, Rewritten, adjusted, difference, rewritten, translate};
pub use mapping::{key, owner, port_of};
pub use message::{Quoted, quoted};

/// Ports of a region.
pub const PORTS: u32 = 1 << PORT_BITS;
const PORT_BITS: u32 = 14;
/// The first public port. The range ends below 32768, where the ports of the gateway's own sockets begin
/// (`net.ipv4.ip_local_port_range`).
pub const FIRST_PORT: u16 = 16384;
/// The last public port.
pub const LAST_PORT: u16 = FIRST_PORT + (1 << PORT_BITS) - 1;
/// The fewest sets that a table has: those of one region.
pub const LEAST_SETS: u32 = PORTS / crate::flows::PER_SET;

/// Returns whether a port is one that clients' flows get.
#[inline(always)]
pub const fn is_public(port: u16) -> bool {
    port >> PORT_BITS == FIRST_PORT >> PORT_BITS
}

#[cfg(test)]
mod tests;
