//! The IP header alone: what a router looks at, whatever is behind it.

use crate::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, ethernet};
use crate::frame::Frame;
use crate::packet::{OPTIONS, TAGGED, V6};

/// The protocol number of TCP.
pub const TCP: u32 = 6;
/// The protocol number of UDP.
pub const UDP: u32 = 17;
/// The IPv6 header that says that the packet is a fragment (RFC 8200, section 4.5).
const FRAGMENT_HEADER: u32 = 44;

/// The length of an IPv4 header without options in bytes.
const IPV4_LEN: u32 = 20;
/// The length of an IPv6 header in bytes.
const IPV6_LEN: u32 = 40;

/// The IP header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Offset from the start of the frame, in bytes.
    pub offset: u32,
    /// Length in bytes, with options and without extension headers, but for the one that [`JUMBO`] packets have.
    pub header: u32,
    /// The length of the packet in bytes, with the header; for [`JUMBO`] packets that of the header.
    pub len: u32,
    /// TTL or hop limit as received.
    pub ttl: u32,
    /// The protocol number, or that of the first extension header.
    pub protocol: u32,
    /// [`OPTIONS`], [`TAGGED`], [`FRAGMENT`], [`JUMBO`] and [`V6`].
    pub marks: u32,
    /// Source, as [`Destination::from_halves`](crate::table::Destination::from_halves) takes it.
    pub source: (u64, u64),
    /// Destination.
    pub destination: (u64, u64),
}

/// It is a fragment, the first one or another.
pub const FRAGMENT: u32 = 1 << 4;
/// It has no length of its own: merged packets of more than 64 KiB together (BIG TCP, Linux 5.19 and 6.3).
pub const JUMBO: u32 = 1 << 5;
/// The header of hop-by-hop options, which has the length of such packets over IPv6 (RFC 2675).
const HOP_BY_HOP: u32 = 0;
/// Its length then.
const HOP_BY_HOP_LEN: u32 = 8;

impl Network {
    /// Returns whether it is IPv6.
    #[inline(always)]
    pub const fn is_v6(&self) -> bool {
        self.marks & V6 != 0
    }

    /// Returns where the TCP or UDP header begins, if that follows at once and is in this packet.
    #[inline(always)]
    pub const fn transport(&self) -> Option<u32> {
        if self.marks & FRAGMENT != 0 || !matches!(self.protocol, TCP | UDP) {
            return None;
        }
        Some(self.offset + self.header)
    }
}

/// Reads the IP header of an Ethernet frame. `None` if there is none that is whole.
#[inline(always)]
pub fn network<F: Frame + ?Sized>(frame: &F) -> Option<Network> {
    let Ethernet {
        ethertype,
        ip_offset,
        vlan,
    } = ethernet(frame).ok()?;
    let offset = frame.blur(ip_offset);
    // A priority tag that stands beside the bytes is of no VLAN.
    let is_tagged = offset != crate::ethernet::ETHERNET_LEN || vlan != 0;
    at(frame, ethertype, offset, if is_tagged { TAGGED } else { 0 })
}

/// Reads the IPv4 header of a packet without a link header, as it comes from a link with only one station at its other end. `None` if
/// there is none that is whole.
#[inline(always)]
pub fn bare_v4<F: Frame + ?Sized>(frame: &F) -> Option<Network> {
    let [version] = frame.read::<1>(0)?;
    match version >> 4 {
        4 => at(frame, ETHERTYPE_IPV4, frame.blur(0), 0),
        _ => None,
    }
}

/// Reads the IP header at this place.
#[inline(always)]
fn at<F: Frame + ?Sized>(
    frame: &F,
    ethertype: u16,
    offset: u32,
    mut marks: u32,
) -> Option<Network> {
    match ethertype {
        ETHERTYPE_IPV4 => {
            let [version, _, l0, l1] = frame.read::<4>(offset)?;
            let [f0, f1, ttl, protocol] = frame.read::<4>(offset + 6)?;
            let header = u32::from(version & 0x0f) * 4;
            if header < IPV4_LEN {
                return None;
            }
            marks |= if header > 20 { OPTIONS } else { 0 };
            marks |= if [l0, l1] == [0, 0] { JUMBO } else { 0 };
            // More fragments, or an offset.
            marks |= if [f0 & 0x3f, f1] == [0, 0] {
                0
            } else {
                FRAGMENT
            };
            let address = |at: u32| {
                let address = u32::from_be_bytes(frame.read(at)?);
                Some((u64::from(frame.blur(0)), u64::from(address)))
            };
            Some(Network {
                offset,
                header: frame.blur(header),
                len: u32::from(u16::from_be_bytes([l0, l1])),
                ttl: u32::from(ttl),
                protocol: u32::from(protocol),
                marks: frame.blur(marks),
                source: address(offset + 12)?,
                destination: address(offset + 16)?,
            })
        }
        ETHERTYPE_IPV6 => {
            let [l0, l1, protocol, ttl] = frame.read::<4>(offset + 4)?;
            let (mut protocol, mut header) = (u32::from(protocol), IPV6_LEN);
            marks |= V6;
            if [l0, l1] == [0, 0] {
                marks |= JUMBO;
                if protocol == HOP_BY_HOP {
                    let [next] = frame.read::<1>(offset + IPV6_LEN)?;
                    protocol = u32::from(next);
                    header += HOP_BY_HOP_LEN;
                }
            }
            marks |= match protocol {
                TCP | UDP => 0,
                FRAGMENT_HEADER => FRAGMENT,
                _ => OPTIONS,
            };
            let half = |at: u32| Some(u64::from_be_bytes(frame.read(at)?));
            Some(Network {
                offset,
                header: frame.blur(header),
                len: frame.blur(IPV6_LEN + u32::from(u16::from_be_bytes([l0, l1]))),
                ttl: u32::from(ttl),
                protocol: frame.blur(protocol),
                marks: frame.blur(marks),
                source: (half(offset + 8)?, half(offset + 16)?),
                destination: (half(offset + 24)?, half(offset + 32)?),
            })
        }
        _ => None,
    }
}
