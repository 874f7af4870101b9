//! The header walk: from the first byte of an Ethernet frame to the destination port.
//!
//! Follows up to two VLAN tags (IEEE 802.1Q and 802.1ad), a PPPoE session header (RFC 2516), IPv4 with
//! options (RFC 791), and IPv6 with up to [`MAX_EXTENSION_HEADERS`] extension headers (RFC 8200). It is
//! total: every input gives either [`Headers`] or the reason why it cannot be decided.

use crate::frame::{Frame, MAX_OFFSET};
use crate::table::{Destination, Transport};
use crate::verdict::Reason;

/// IPv6 extension headers that are followed before the walk gives up.
pub const MAX_EXTENSION_HEADERS: u32 = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_PPPOE_SESSION: u16 = 0x8864;
const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;

const ETHERNET_LEN: u32 = 14;
const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// What the walk found in a TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Offset of the IP header from the start of the frame, in bytes.
    pub ip_offset: u32,
    /// Length of the IP packet including its header, in bytes.
    pub ip_len: u32,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// Whether this is the first of several fragments.
    pub first_fragment: bool,
    /// Whether there are IPv4 options or IPv6 extension headers.
    pub options: bool,
    /// Whether the frame carries VLAN tags or PPPoE in its bytes.
    pub tagged: bool,
    /// Where the packet is going.
    pub destination: Destination,
    /// TCP or UDP.
    pub transport: Transport,
    /// The destination port.
    pub port: u16,
}

/// Walks the headers of an Ethernet frame.
#[inline(always)]
pub fn walk<F: Frame + ?Sized>(frame: &F) -> Result<Headers, Reason> {
    let first_octet = frame.read::<1>(0).ok_or(Reason::Truncated)?;
    let (ethertype, ip_offset) = ethernet(frame)?;
    if first_octet[0] & 1 != 0 {
        return Err(Reason::GroupAddress);
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, ip_offset),
        ETHERTYPE_IPV6 => ipv6(frame, ip_offset),
        _ => Err(Reason::NotIp),
    }
}

/// The ethertype of what the tags enclose, and where that starts.
#[inline(always)]
fn ethernet<F: Frame + ?Sized>(frame: &F) -> Result<(u16, u32), Reason> {
    let mut ethertype = be16(frame, 12)?;
    let mut offset = ETHERNET_LEN;
    if is_vlan(ethertype) {
        ethertype = be16(frame, offset + 2)?;
        offset += 4;
        if is_vlan(ethertype) {
            ethertype = be16(frame, offset + 2)?;
            offset += 4;
            if is_vlan(ethertype) {
                return Err(Reason::VlanDepth);
            }
        }
    }
    if ethertype == ETHERTYPE_PPPOE_SESSION {
        let header = frame.read::<8>(offset).ok_or(Reason::Truncated)?;
        // Version 1, type 1, code 0 (session data): RFC 2516, section 4.
        if header[0] != 0x11 || header[1] != 0 {
            return Err(Reason::Malformed);
        }
        ethertype = match u16::from_be_bytes([header[6], header[7]]) {
            PPP_IPV4 => ETHERTYPE_IPV4,
            PPP_IPV6 => ETHERTYPE_IPV6,
            _ => return Err(Reason::NotIp),
        };
        offset += 8;
    }
    Ok((ethertype, offset))
}

#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, ip_offset: u32) -> Result<Headers, Reason> {
    let ip = frame.read::<20>(ip_offset).ok_or(Reason::Truncated)?;
    let header_len = u32::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Reason::Malformed);
    }
    let available = frame.len().wrapping_sub(ip_offset);
    let ip_len = match u32::from(u16::from_be_bytes([ip[2], ip[3]])) {
        // An aggregate longer than 64 KiB (BIG TCP, Linux 6.3) has no length of its own.
        0 if available > 0xffff => available,
        len => len,
    };
    if ip_len < header_len {
        return Err(Reason::Malformed);
    }
    if ip_len > available {
        return Err(Reason::Truncated);
    }
    let destination = u32::from_be_bytes([ip[16], ip[17], ip[18], ip[19]]);
    // 224.0.0.0/4 is multicast, 240.0.0.0/4 is reserved and ends with the broadcast address.
    if destination >= 0xe000_0000 {
        return Err(Reason::GroupAddress);
    }
    let fragment = u16::from_be_bytes([ip[6], ip[7]]);
    if fragment & 0x1fff != 0 {
        return Err(Reason::LaterFragment);
    }
    let transport = Transport::from_protocol(ip[9]).ok_or(Reason::OtherProtocol)?;
    let port = port(
        frame,
        transport,
        ip_offset + header_len,
        ip_len - header_len,
    )?;
    Ok(Headers {
        ip_offset,
        ip_len,
        ttl: ip[8],
        first_fragment: fragment & 0x2000 != 0,
        options: header_len != IPV4_LEN,
        tagged: ip_offset != ETHERNET_LEN,
        destination: Destination::V4(destination),
        transport,
        port,
    })
}

#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, ip_offset: u32) -> Result<Headers, Reason> {
    let ip = frame.read::<40>(ip_offset).ok_or(Reason::Truncated)?;
    if ip[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let available = frame.len().wrapping_sub(ip_offset);
    let ip_len = match u32::from(u16::from_be_bytes([ip[4], ip[5]])) {
        // A jumbogram (RFC 2675), which inside Linux is how BIG TCP aggregates look.
        0 if available > IPV6_LEN + 0xffff => available,
        len => IPV6_LEN + len,
    };
    if ip_len > available {
        return Err(Reason::Truncated);
    }
    if ip[24] == 0xff {
        return Err(Reason::GroupAddress);
    }
    let end = ip_offset + ip_len;
    let upper = extension_headers(frame, ip[6], ip_offset + IPV6_LEN, end)?;
    let transport = Transport::from_protocol(upper.protocol).ok_or(Reason::OtherProtocol)?;
    let port = port(
        frame,
        transport,
        upper.offset,
        end.wrapping_sub(upper.offset),
    )?;
    let half = |at: usize| {
        u64::from_be_bytes([
            ip[at],
            ip[at + 1],
            ip[at + 2],
            ip[at + 3],
            ip[at + 4],
            ip[at + 5],
            ip[at + 6],
            ip[at + 7],
        ])
    };
    Ok(Headers {
        ip_offset,
        ip_len,
        ttl: ip[7],
        first_fragment: upper.first_fragment,
        options: upper.offset != ip_offset + IPV6_LEN,
        tagged: ip_offset != ETHERNET_LEN,
        destination: Destination::V6(half(24), half(32)),
        transport,
        port,
    })
}

/// Where the chain of extension headers leads.
struct Upper {
    protocol: u8,
    offset: u32,
    first_fragment: bool,
}

#[inline(always)]
fn extension_headers<F: Frame + ?Sized>(
    frame: &F,
    next_header: u8,
    start: u32,
    end: u32,
) -> Result<Upper, Reason> {
    let mut upper = Upper {
        protocol: next_header,
        offset: start,
        first_fragment: false,
    };
    // RFC 8200, section 4.1: hop-by-hop options only directly behind the IPv6 header.
    let mut next = |first: bool| match upper.protocol {
        HOP_BY_HOP if !first => Err(Reason::Malformed),
        protocol if is_extension(protocol) => follow(frame, &mut upper).map(|()| true),
        _ => Ok(false),
    };
    // MAX_EXTENSION_HEADERS times, written out: verifiers before Linux 6.8 refuse a loop that is entered by falling
    // into it, and the compiler lays a loop out as it likes.
    let _all_followed = next(true)?
        && next(false)?
        && next(false)?
        && next(false)?
        && next(false)?
        && next(false)?
        && next(false)?
        && next(false)?;
    if is_extension(upper.protocol) || upper.offset > MAX_OFFSET {
        return Err(Reason::ExtensionHeaders);
    }
    if upper.offset > end {
        return Err(Reason::Malformed);
    }
    Ok(upper)
}

/// Steps over one extension header.
#[inline(always)]
fn follow<F: Frame + ?Sized>(frame: &F, upper: &mut Upper) -> Result<(), Reason> {
    if upper.offset > MAX_OFFSET {
        return Err(Reason::ExtensionHeaders);
    }
    let header = frame.read::<4>(upper.offset).ok_or(Reason::Truncated)?;
    let length = match upper.protocol {
        FRAGMENT => {
            let field = u16::from_be_bytes([header[2], header[3]]);
            if field & 0xfff8 != 0 {
                return Err(Reason::LaterFragment);
            }
            upper.first_fragment |= field & 1 != 0;
            8
        }
        // RFC 4302, section 2.2: in 4-byte units, minus two.
        AUTHENTICATION => (u32::from(header[1]) + 2) * 4,
        _ => (u32::from(header[1]) + 1) * 8,
    };
    upper.protocol = header[0];
    upper.offset += length;
    Ok(())
}

/// The destination port, if the transport's fixed header fits into the `available` bytes of the IP packet.
#[inline(always)]
fn port<F: Frame + ?Sized>(
    frame: &F,
    transport: Transport,
    offset: u32,
    available: u32,
) -> Result<u16, Reason> {
    let fixed_header = match transport {
        Transport::Tcp => 20,
        Transport::Udp => 8,
    };
    if available < fixed_header {
        return Err(Reason::Truncated);
    }
    let ports = frame.read::<4>(offset).ok_or(Reason::Truncated)?;
    Ok(u16::from_be_bytes([ports[2], ports[3]]))
}

#[inline(always)]
fn be16<F: Frame + ?Sized>(frame: &F, offset: u32) -> Result<u16, Reason> {
    frame
        .read::<2>(offset)
        .map(u16::from_be_bytes)
        .ok_or(Reason::Truncated)
}

#[inline(always)]
const fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ)
}

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}

#[cfg(test)]
mod tests;
