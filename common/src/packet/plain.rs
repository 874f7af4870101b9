//! The headers that nearly all packets have, found in a few steps.

use super::{Headers, V6};
use crate::ethernet::ETHERNET_LEN;
use crate::frame::Frame;

/// Bytes that a frame must have for [`plain_v4`]: those up to the end of a UDP header.
pub const PLAIN_V4_LEN: usize = 42;
/// The same for [`plain_v6`].
pub const PLAIN_V6_LEN: usize = 62;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The headers of an untagged, unfragmented TCP or UDP packet over IPv4 without options: what [`walk`](super::walk) finds.
/// `None` for all else, and for a packet that `walk` gives no headers of.
#[inline(always)]
pub fn plain_v4<F: Frame + ?Sized>(frame: &F) -> Option<Headers> {
    const IP: u32 = ETHERNET_LEN;
    // The ethertype, version and header length, and the type of service.
    if !matches(frame.read(12)?, [8, 0, 0x45, 0], [0xff, 0xff, 0xff, 0]) || is_other_link(frame)? {
        return None;
    }
    let [_, _, f0, f1] = frame.read::<4>(IP + 4)?;
    // Neither more fragments nor an offset.
    if [f0 & 0x3f, f1] != [0, 0] {
        return None;
    }
    let [ttl, protocol] = frame.read::<2>(IP + 8)?;
    let (transport, shortest) = transport(protocol)?;
    let ip_len = u32::from(u16::from_be_bytes(frame.read(IP + 2)?));
    let destination = u32::from_be_bytes(frame.read(IP + 16)?);
    if ip_len < 20 + shortest || ip_len > frame.len().wrapping_sub(IP) || destination >= 0xe000_0000
    {
        return None;
    }
    let port = u16::from_be_bytes(frame.read(IP + 22)?);
    Some(Headers {
        ip_offset: IP,
        ip_len,
        transport_offset: IP + 20,
        ttl,
        halves: (0, u64::from(destination)),
        key: transport | u32::from(port),
        marks: 0,
        fragment_header: 0,
        vlan: 0,
    })
}

/// The same for IPv6 without extension headers.
#[inline(always)]
pub fn plain_v6<F: Frame + ?Sized>(frame: &F) -> Option<Headers> {
    const IP: u32 = ETHERNET_LEN;
    if !matches(
        frame.read(12)?,
        [0x86, 0xdd, 0x60, 0],
        [0xff, 0xff, 0xf0, 0],
    ) || is_other_link(frame)?
    {
        return None;
    }
    let [protocol, ttl] = frame.read::<2>(IP + 6)?;
    let (transport, shortest) = transport(protocol)?;
    let payload_len = u32::from(u16::from_be_bytes(frame.read(IP + 4)?));
    let halves = (
        u64::from_be_bytes(frame.read(IP + 24)?),
        u64::from_be_bytes(frame.read(IP + 32)?),
    );
    if payload_len < shortest
        || payload_len > frame.len().wrapping_sub(IP + 40)
        || halves.0 >> 56 == 0xff
    {
        return None;
    }
    let port = u16::from_be_bytes(frame.read(IP + 42)?);
    Some(Headers {
        ip_offset: IP,
        ip_len: 40 + payload_len,
        transport_offset: IP + 40,
        ttl,
        halves,
        key: transport | u32::from(port),
        marks: V6,
        fragment_header: 0,
        vlan: 0,
    })
}

/// Returns whether the frame is for a group, or has a VLAN tag beside its bytes.
#[inline(always)]
fn is_other_link<F: Frame + ?Sized>(frame: &F) -> Option<bool> {
    let [first] = frame.read::<1>(0)?;
    Some(first & 1 != 0 || frame.tag_beside() != 0)
}

/// Returns whether four bytes are as they should be, where the mask has ones.
#[inline(always)]
const fn matches(bytes: [u8; 4], wanted: [u8; 4], mask: [u8; 4]) -> bool {
    u32::from_ne_bytes(bytes) & u32::from_ne_bytes(mask) == u32::from_ne_bytes(wanted)
}

/// The upper bits of a key (see [`Transport::key`](crate::table::Transport::key)), and the length of the fixed header.
#[inline(always)]
const fn transport(protocol: u8) -> Option<(u32, u32)> {
    match protocol {
        TCP => Some((0, 20)),
        UDP => Some((1 << 16, 8)),
        _ => None,
    }
}
