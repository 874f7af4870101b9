//! Changes to a packet whose source or destination is translated, and to its checksums (RFC 1624).

use crate::frame::{Frame, FrameMut, folded};
use crate::network::{FRAGMENT, Network, TCP, UDP};
use crate::packet::Headers;

/// An address and a port that take the place of others, as they stand in a packet, in words of the machine's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The address before, and now.
    pub address: (u32, u32),
    /// The port before, and now.
    pub port: (u16, u16),
}

/// Offsets at which a packet is changed, in bytes from the start of the frame; 0 stands for "not at all".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The address.
    pub address: u32,
    /// The checksum of the IPv4 header.
    pub header_sum: u32,
    /// The port; none in fragments but the first.
    pub port: u32,
    /// The checksum of TCP or UDP.
    pub sum: u32,
    /// True if that is UDP's, where 0 says that there is none.
    pub is_udp: bool,
}

/// Returns where the source of an IPv4 packet stands, or with `of_destination` its destination. `None` if it is neither TCP nor UDP.
#[inline(always)]
pub fn rewritten<F: Frame + ?Sized>(
    frame: &F,
    network: &Network,
    of_destination: bool,
) -> Option<Rewritten> {
    let ip = network.offset;
    let is_later = network.marks & FRAGMENT != 0 && {
        let [f0, f1] = frame.read::<2>(ip + 6)?;
        [f0 & 0x1f, f1] != [0, 0]
    };
    let transport = frame.blur(ip + network.header);
    let (address, port) = if of_destination {
        (ip + 16, transport + 2)
    } else {
        (ip + 12, transport)
    };
    let sum = match network.protocol {
        TCP => transport + 16,
        UDP => transport + 6,
        _ => return None,
    };
    Some(Rewritten {
        address,
        header_sum: ip + 10,
        port: if is_later { 0 } else { port },
        sum: if is_later { 0 } else { sum },
        is_udp: network.protocol == UDP,
    })
}

/// Returns what a change of an address adds to a ones' complement sum, and a change of address and port.
#[inline(always)]
pub const fn difference(change: &Change) -> (u16, u16) {
    let ((from, to), (port, now)) = (change.address, change.port);
    let address = folded(!from as u64 + to as u64);
    let both = folded(address as u64 + !port as u64 + now as u64);
    (address, both)
}

/// A checksum once what it covers has changed by a difference.
#[inline(always)]
pub const fn adjusted(checksum: u16, difference: u16) -> u16 {
    !folded(!checksum as u64 + difference as u64)
}

/// Translates the source of a whole packet over IPv4 without options, or with `of_destination` its destination, in place. `None` if the
/// frame is not what the walk saw; it may be half changed then.
#[inline(always)]
pub fn translate<F: FrameMut + ?Sized>(
    frame: &mut F,
    headers: &Headers,
    of_destination: bool,
    address: u32,
    port: u16,
) -> Option<()> {
    let (ip, transport) = (headers.ip_offset, headers.transport_offset);
    let is_udp = headers.key >> 16 != 0;
    let (address_at, port_at) = if of_destination {
        (ip + 16, transport + 2)
    } else {
        (ip + 12, transport)
    };
    let sum_at = transport + if is_udp { 6 } else { 16 };
    let change = Change {
        address: (u32::from_ne_bytes(frame.read(address_at)?), address),
        port: (u16::from_ne_bytes(frame.read(port_at)?), port),
    };
    let (header, both) = difference(&change);
    frame.write(address_at, address.to_ne_bytes())?;
    frame.write(port_at, port.to_ne_bytes())?;
    let sum = u16::from_ne_bytes(frame.read(ip + 10)?);
    frame.write(ip + 10, adjusted(sum, header).to_ne_bytes())?;
    let sum = u16::from_ne_bytes(frame.read(sum_at)?);
    if is_udp && sum == 0 {
        return Some(());
    }
    let sum = adjusted(sum, both);
    // A sum of zero is written with ones (RFC 768).
    let sum = if is_udp && sum == 0 { 0xffff } else { sum };
    frame.write(sum_at, sum.to_ne_bytes())
}
