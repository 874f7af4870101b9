//! Headers before the IP header: Ethernet, VLAN tags and PPPoE.

use crate::frame::Frame;
use crate::verdict::Reason;

/// The type of frames that carry IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_PPPOE_SESSION: u16 = 0x8864;
const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;
/// The length of an Ethernet header without tags, in bytes.
pub const ETHERNET_LEN: u32 = 14;

/// Offset of the IP header of an Ethernet frame, if it has one.
pub fn ip_offset<F: Frame + ?Sized>(frame: &F) -> Option<u32> {
    match ethernet(frame) {
        Ok(Ethernet {
            ethertype: ETHERTYPE_IPV4 | ETHERTYPE_IPV6,
            ip_offset,
            ..
        }) => Some(ip_offset),
        _ => None,
    }
}

/// Headers before the IP header.
pub(crate) struct Ethernet {
    /// The ethertype of what the tags enclose.
    pub(crate) ethertype: u16,
    /// Offset of the IP header.
    pub(crate) ip_offset: u32,
    /// See [`Headers::vlan`](crate::packet::Headers::vlan).
    pub(crate) vlan: u32,
}

#[inline(always)]
pub(crate) fn ethernet<F: Frame + ?Sized>(frame: &F) -> Result<Ethernet, Reason> {
    let mut ethertype = be16(frame, 12)?;
    let mut offset = ETHERNET_LEN;
    let mut tag = frame.tag_beside();
    if is_vlan(ethertype) {
        if tag == 0 {
            tag = u32::from(be16(frame, offset)?);
        }
        ethertype = be16(frame, offset + 2)?;
        offset += 4;
        if is_vlan(ethertype) {
            ethertype = be16(frame, offset + 2)?;
            offset += 4;
            if is_vlan(ethertype) || frame.tag_beside() != 0 {
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
    Ok(Ethernet {
        ethertype,
        ip_offset: offset,
        vlan: tag & 0xfff,
    })
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
