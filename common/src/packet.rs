//! The header walk: from the first byte of an Ethernet frame to the destination port.
//!
//! Follows up to two VLAN tags (IEEE 802.1Q and 802.1ad), a PPPoE session header (RFC 2516), IPv4 with
//! options (RFC 791), and IPv6 with up to [`MAX_EXTENSION_HEADERS`] extension headers (RFC 8200). It is
//! total: every input gives either [`Headers`] or the reason why it cannot be decided.

mod plain;

use crate::ethernet::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, ethernet};
use crate::fragment::Fragment;
use crate::frame::{Frame, MAX_OFFSET};
use crate::table::{Destination, Transport};
use crate::verdict::Reason;

pub use plain::{PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};

/// IPv6 extension headers that are followed before the walk gives up.
pub const MAX_EXTENSION_HEADERS: u32 = 8;

const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Headers that the walk found in a TCP or UDP packet.
///
/// Small numbers stand where booleans and enums would: those keep the kernel's verifier from seeing that the ways through
/// the walk have come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Offset of the IP header from the start of the frame, in bytes.
    pub ip_offset: u32,
    /// Length of the IP packet including its header, in bytes.
    pub ip_len: u32,
    /// Offset of the TCP or UDP header from the start of the frame, in bytes.
    pub transport_offset: u32,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// Destination, as [`Destination::from_halves`] takes it: of an enum the compiler would leave a part
    /// undefined, which the verifier does not let be moved about.
    pub halves: (u64, u64),
    /// Protocol and destination port, see [`Transport::key`].
    pub key: u32,
    /// [`OPTIONS`], [`TAGGED`], [`FIRST_FRAGMENT`] and [`V6`].
    pub marks: u32,
    /// Offset of the IPv6 fragment header in bytes; 0 if there is none.
    pub fragment_header: u32,
    /// VLAN id of the outermost tag; 0 if there is none, or a priority tag only.
    pub vlan: u32,
}

/// There are IPv4 options or IPv6 extension headers.
pub const OPTIONS: u32 = 1;
/// The frame carries VLAN tags or PPPoE in its bytes.
pub const TAGGED: u32 = 1 << 1;
/// This is the first of several fragments.
pub const FIRST_FRAGMENT: u32 = 1 << 2;
/// It is IPv6.
pub const V6: u32 = 1 << 3;

impl Headers {
    /// Returns whether it is IPv6.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.marks & V6 != 0
    }

    /// Returns where the packet is going.
    #[inline(always)]
    pub const fn destination(&self) -> Destination {
        Destination::from_halves(self.is_v6(), self.halves.0, self.halves.1)
    }

    /// If this is the first of several fragments, where its identification is.
    #[inline(always)]
    pub const fn first_fragment(&self) -> Option<Fragment> {
        if self.marks & FIRST_FRAGMENT == 0 {
            return None;
        }
        Some(Fragment {
            ip_offset: self.ip_offset,
            v6_header: if self.is_v6() {
                Some(self.fragment_header)
            } else {
                None
            },
        })
    }
}

/// Reason why the walk did not get to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The packet passes, for this reason.
    Reason(Reason),
    /// A fragment after the first one, which goes the way of the first.
    LaterFragment(Fragment),
}

impl From<Reason> for Stop {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Stop::Reason(reason)
    }
}

impl Stop {
    /// The reason for the packet to pass, where nothing is known of a first fragment.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Stop::Reason(reason) => reason,
            Stop::LaterFragment(_) => Reason::LaterFragment,
        }
    }
}

/// Walks the headers of an Ethernet frame.
#[inline(always)]
pub fn walk<F: Frame + ?Sized>(frame: &F) -> Result<Headers, Stop> {
    let first_octet = frame.read::<1>(0).ok_or(Reason::Truncated)?;
    let mut ethernet = ethernet(frame)?;
    ethernet.ip_offset = frame.blur(ethernet.ip_offset);
    ethernet.vlan = frame.blur(ethernet.vlan);
    if first_octet[0] & 1 != 0 {
        return Err(Reason::GroupAddress.into());
    }
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, &ethernet),
        ETHERTYPE_IPV6 => ipv6(frame, &ethernet),
        _ => Err(Reason::NotIp.into()),
    }
}

#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, ethernet: &Ethernet) -> Result<Headers, Stop> {
    let ip_offset = ethernet.ip_offset;
    let ip = frame.read::<20>(ip_offset).ok_or(Reason::Truncated)?;
    let header_len = u32::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Reason::Malformed.into());
    }
    let available = frame.len().wrapping_sub(ip_offset);
    let ip_len = match u32::from(u16::from_be_bytes([ip[2], ip[3]])) {
        // An aggregate longer than 64 KiB (BIG TCP, Linux 6.3) has no length of its own.
        0 if available > 0xffff => available,
        len => len,
    };
    if ip_len < header_len {
        return Err(Reason::Malformed.into());
    }
    if ip_len > available {
        return Err(Reason::Truncated.into());
    }
    let destination = u32::from_be_bytes([ip[16], ip[17], ip[18], ip[19]]);
    // 224.0.0.0/4 is multicast, 240.0.0.0/4 is reserved and ends with the broadcast address.
    if destination >= 0xe000_0000 {
        return Err(Reason::GroupAddress.into());
    }
    let fragment = u16::from_be_bytes([ip[6], ip[7]]);
    let position = Fragment {
        ip_offset,
        v6_header: None,
    };
    if fragment & 0x1fff != 0 {
        return Err(Stop::LaterFragment(position));
    }
    let transport = Transport::from_protocol(ip[9]).ok_or(Reason::OtherProtocol)?;
    let key = key(
        frame,
        transport,
        ip_offset + header_len,
        ip_len - header_len,
    )?;
    let mut marks = tagged(ip_offset);
    if header_len != IPV4_LEN {
        marks |= OPTIONS;
    }
    if fragment & 0x2000 != 0 {
        marks |= FIRST_FRAGMENT;
    }
    Ok(Headers {
        ip_offset,
        ip_len,
        transport_offset: ip_offset + header_len,
        ttl: ip[8],
        halves: (0, u64::from(destination)),
        key: frame.blur(key),
        marks: frame.blur(marks),
        fragment_header: frame.blur(0),
        vlan: ethernet.vlan,
    })
}

#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, ethernet: &Ethernet) -> Result<Headers, Stop> {
    let ip_offset = ethernet.ip_offset;
    let ip = frame.read::<40>(ip_offset).ok_or(Reason::Truncated)?;
    if ip[0] >> 4 != 6 {
        return Err(Reason::Malformed.into());
    }
    let available = frame.len().wrapping_sub(ip_offset);
    let ip_len = match u32::from(u16::from_be_bytes([ip[4], ip[5]])) {
        // A jumbogram (RFC 2675), which inside Linux is how BIG TCP aggregates look.
        0 if available > IPV6_LEN + 0xffff => available,
        len => IPV6_LEN + len,
    };
    if ip_len > available {
        return Err(Reason::Truncated.into());
    }
    if ip[24] == 0xff {
        return Err(Reason::GroupAddress.into());
    }
    let end = ip_offset + ip_len;
    let upper = extension_headers(frame, ip[6], ip_offset, end)?;
    let transport = Transport::from_protocol(upper.protocol).ok_or(Reason::OtherProtocol)?;
    let key = key(
        frame,
        transport,
        upper.offset,
        end.wrapping_sub(upper.offset),
    )?;
    let mut marks = V6 | tagged(ip_offset);
    if upper.offset != ip_offset + IPV6_LEN {
        marks |= OPTIONS;
    }
    if upper.first_fragment != 0 {
        marks |= FIRST_FRAGMENT;
    }
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
        transport_offset: upper.offset,
        ttl: ip[7],
        halves: (half(24), half(32)),
        key: frame.blur(key),
        marks: frame.blur(marks),
        fragment_header: upper.first_fragment,
        vlan: ethernet.vlan,
    })
}

/// Header to which the chain of extension headers leads.
struct Upper {
    protocol: u8,
    offset: u32,
    /// Offset of the fragment header of a first fragment; 0 if there is none.
    first_fragment: u32,
}

#[inline(always)]
fn extension_headers<F: Frame + ?Sized>(
    frame: &F,
    next_header: u8,
    ip_offset: u32,
    end: u32,
) -> Result<Upper, Stop> {
    let mut upper = Upper {
        protocol: next_header,
        offset: ip_offset + IPV6_LEN,
        first_fragment: 0,
    };
    // RFC 8200, section 4.1: hop-by-hop options only directly behind the IPv6 header.
    let mut next = |first: bool| match upper.protocol {
        HOP_BY_HOP if !first => Err(Reason::Malformed.into()),
        protocol if is_extension(protocol) => follow(frame, ip_offset, &mut upper).map(|()| true),
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
        return Err(Reason::ExtensionHeaders.into());
    }
    if upper.offset > end {
        return Err(Reason::Malformed.into());
    }
    Ok(upper)
}

/// Steps over one extension header.
#[inline(always)]
fn follow<F: Frame + ?Sized>(frame: &F, ip_offset: u32, upper: &mut Upper) -> Result<(), Stop> {
    if upper.offset > MAX_OFFSET {
        return Err(Reason::ExtensionHeaders.into());
    }
    let header = frame.read::<4>(upper.offset).ok_or(Reason::Truncated)?;
    let length = match upper.protocol {
        FRAGMENT => {
            let field = u16::from_be_bytes([header[2], header[3]]);
            let position = Fragment {
                ip_offset,
                v6_header: Some(upper.offset),
            };
            if field & 0xfff8 != 0 {
                return Err(Stop::LaterFragment(position));
            }
            if field & 1 != 0 {
                upper.first_fragment = upper.offset;
            }
            8
        }
        // RFC 4302, section 2.2: in 4-byte units, minus two.
        AUTHENTICATION => (u32::from(header[1]) + 2) * 4,
        _ => (u32::from(header[1]) + 1) * 8,
    };
    upper.protocol = header[0];
    upper.offset = frame.blur(upper.offset.wrapping_add(length));
    upper.first_fragment = frame.blur(upper.first_fragment);
    Ok(())
}

#[inline(always)]
const fn tagged(ip_offset: u32) -> u32 {
    if ip_offset == ETHERNET_LEN { 0 } else { TAGGED }
}

/// Protocol and destination port, if the transport's fixed header fits into the `available` bytes of the IP packet.
#[inline(always)]
fn key<F: Frame + ?Sized>(
    frame: &F,
    transport: Transport,
    offset: u32,
    available: u32,
) -> Result<u32, Reason> {
    let fixed_header = match transport {
        Transport::Tcp => 20,
        Transport::Udp => 8,
    };
    if available < fixed_header {
        return Err(Reason::Truncated);
    }
    let ports = frame.read::<4>(offset).ok_or(Reason::Truncated)?;
    Ok(transport.key(u16::from_be_bytes([ports[2], ports[3]])))
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
