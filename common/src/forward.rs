//! Redirect mode: which steered packets the programs forward themselves, and what they write into them.

use crate::classify::source;
use crate::egress::{EgressWords, LinkHeader, link_header, mtu};
use crate::frame::{Frame, FrameMut};
use crate::network::{FRAGMENT, Network};
use crate::packet::{Headers, OPTIONS, TAGGED, V6};
use crate::table::Destination;
use crate::verdict::Reason;

/// The shortest Ethernet frame without its check sequence (IEEE 802.3). Shorter packets have padding behind them.
const SHORTEST_FRAME: u32 = 60;
/// The flag of a TCP header (RFC 9293, section 3.1).
const SYN: u8 = 1 << 1;

/// The link header of a packet that XDP forwards. `None` if it is left to TC: what is not plain, has to be answered or changed, or
/// has no known next hop. `is_own` says whether an address is one of the gateway's.
///
/// The packet's way is decided already.
#[inline(always)]
pub fn plan<F: Frame + ?Sized>(
    frame: &F,
    headers: &Headers,
    egress: &EgressWords,
    is_own: impl FnOnce(Destination) -> bool,
) -> Option<LinkHeader> {
    let header = link_header(egress, headers.is_v6())?;
    if headers.marks & !V6 != 0
        || headers.ttl <= 1
        || headers.ip_len > mtu(egress)
        || !is_whole(frame, headers)
        || opens(frame, headers)?
    {
        return None;
    }
    is_forwarded(headers.is_v6(), source(frame, headers)?, is_own).then_some(header)
}

/// Tells whether a packet opens a TCP connection: TC looks at the segment size that it announces.
#[inline(always)]
fn opens<F: Frame + ?Sized>(frame: &F, headers: &Headers) -> Option<bool> {
    if headers.key >> 16 != 0 {
        return Some(false);
    }
    let [flags] = frame.read::<1>(headers.transport_offset.wrapping_add(13))?;
    Some(flags & SYN != 0)
}

/// Checks that TC may forward a packet, past the kernel's stack; otherwise says why not. `longest` is the length of the longest IP packet that leaves,
/// in bytes: of one that the kernel has merged of several, the longest of those.
#[inline(always)]
pub fn check<F: Frame + ?Sized>(
    frame: &F,
    network: &Network,
    longest: u32,
    egress: &EgressWords,
    is_own: impl FnOnce(Destination) -> bool,
) -> Result<(), Reason> {
    let is_v6 = network.is_v6();
    // Only the kernel knows of which VLANs and sessions the gateway is a part.
    if network.marks & TAGGED != 0 {
        return Err(Reason::Tagged);
    }
    if network.ttl <= 1 {
        return Err(Reason::KernelTtl);
    }
    // Routers check it (RFC 1812, section 5.2.2). With options the next one does.
    if network.marks & OPTIONS == 0 && !has_right_sum(frame, network.offset, is_v6) {
        return Err(Reason::KernelDamaged);
    }
    if !is_forwarded(is_v6, network.source, is_own) {
        return Err(Reason::KernelSource);
    }
    match longest > mtu(egress) {
        true => Err(Reason::TooBig),
        false => Ok(()),
    }
}

/// The reason that stands for how a steered packet differs from most.
#[inline(always)]
pub const fn kind(network: &Network) -> Reason {
    if network.marks & FRAGMENT != 0 {
        Reason::TcFragment
    } else if network.marks & OPTIONS != 0 {
        Reason::TcOptions
    } else {
        Reason::Steered
    }
}

/// Tells whether the kernel would forward what comes from an address.
#[inline(always)]
fn is_forwarded(
    v6: bool,
    (high, low): (u64, u64),
    is_own: impl FnOnce(Destination) -> bool,
) -> bool {
    // Of its own addresses the kernel knows only those of IPv4 for wrong.
    is_clients(v6, high, low) && (v6 || !is_own(Destination::from_halves(false, high, low)))
}

/// Tells whether more than padding stands behind a packet that ends there. The kernel would cut it off.
#[inline(always)]
pub fn has_tail<F: Frame + ?Sized>(frame: &F, end: u32) -> bool {
    frame.len() > SHORTEST_FRAME && frame.len() > end
}

/// Returns whether an IPv4 header without options has the right checksum.
#[inline(always)]
pub fn has_right_sum<F: Frame + ?Sized>(frame: &F, offset: u32, v6: bool) -> bool {
    v6 || frame.sum_of_20(offset) == Some(0xffff)
}

/// Returns whether the IPv4 header without options has the right checksum (RFC 1812, section 5.2.2), and nothing but padding stands
/// behind the packet, which the kernel would cut off.
#[inline(always)]
pub fn is_whole<F: Frame + ?Sized>(frame: &F, headers: &Headers) -> bool {
    !has_tail(frame, headers.ip_offset + headers.ip_len)
        && has_right_sum(frame, headers.ip_offset, headers.is_v6())
}

/// Returns whether an address can be a client's. From those that cannot the kernel forwards nothing (`ip_route_input_slow`, `ip6_rcv_core`,
/// `ip6_forward`).
#[inline(always)]
pub const fn is_clients(v6: bool, high: u64, low: u64) -> bool {
    if v6 {
        // Neither a group, nor of the link (fe80::/10), nor :: or ::1.
        high >> 56 != 0xff && high >> 54 != 0xfe80 >> 6 && (high != 0 || low > 1)
    } else {
        // Neither 0.0.0.0, nor of 127.0.0.0/8, nor a group, nor everybody.
        let low = low & 0xffff_ffff;
        low != 0 && low >> 24 != 127 && low >> 28 != 0xe && low != 0xffff_ffff
    }
}

/// Writes the link header and takes one from the TTL or hop limit.
///
/// All places were read by the header walk of the same frame, so `None` cannot happen for a packet that
/// [`plan`] let through; the caller drops the frame then, as it may be half changed.
#[inline(always)]
pub fn rewrite<F: FrameMut + ?Sized>(
    frame: &mut F,
    headers: &Headers,
    link_header: LinkHeader,
) -> Option<()> {
    let [first, second, third] = link_header.map(u32::to_ne_bytes);
    frame.write(0, first)?;
    frame.write(4, second)?;
    frame.write(8, third)?;
    let (offset, bytes) = aged(frame, headers.ip_offset, headers.is_v6())?;
    frame.write(offset, bytes)
}

/// The four bytes in which the TTL or hop limit stands, with one less, and for IPv4 the checksum that goes with that. Returns where
/// in the frame they belong. `ip` is where the IP header is.
#[inline(always)]
pub fn aged<F: Frame + ?Sized>(frame: &F, ip: u32, v6: bool) -> Option<(u32, [u8; 4])> {
    if v6 {
        // Payload length, next header, hop limit.
        let offset = ip + 4;
        let [l0, l1, next_header, hop_limit] = frame.read::<4>(offset)?;
        return Some((offset, [l0, l1, next_header, hop_limit.wrapping_sub(1)]));
    }
    // TTL, protocol, checksum.
    let offset = ip + 8;
    let [ttl, protocol, c0, c1] = frame.read::<4>(offset)?;
    let [c0, c1] = decremented_checksum(u16::from_be_bytes([c0, c1])).to_be_bytes();
    Some((offset, [ttl.wrapping_sub(1), protocol, c0, c1]))
}

/// The IPv4 header checksum after the TTL, the high byte of its word, went down by one (RFC 1624).
#[inline(always)]
const fn decremented_checksum(checksum: u16) -> u16 {
    let (sum, carry) = checksum.overflowing_add(0x0100);
    // An end-around carry; and 0xffff, which is zero, becomes the zero that checksums are written with.
    sum.wrapping_add((carry || sum == 0xffff) as u16)
}

#[cfg(test)]
mod tests;
