//! The answer to a packet that is longer than its egress takes: "fragmentation needed" (RFC 1191) or "packet too big"
//! (RFC 4443, section 3.2).
//!
//! It quotes the IP header and [`QUOTED`] bytes behind it. A packet that the kernel has merged, or that came from a virtual machine,
//! has no TCP or UDP checksum yet: the kernel or the card sums up from the transport header to the end, and writes the result into
//! the checksum's place, in the middle of the quote. So that place gets the one number that this leaves as it is.

use crate::ethernet::ETHERNET_LEN;
use crate::frame::{Frame, folded};
use crate::network::{Network, TCP};

/// Bytes behind the IP header that are quoted: those that have the TCP checksum.
pub const QUOTED: u32 = 20;
/// Bytes before the quote: Ethernet, IPv4 and ICMP headers.
pub const V4_LEN: usize = 14 + 20 + 8;
/// The same for IPv6.
pub const V6_LEN: usize = 14 + 40 + 8;

/// The source of the answer where the interface has no IPv4 address (RFC 7600, section 4.8).
const DUMMY: [u8; 4] = [192, 0, 0, 8];

/// Change to write into the quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Offset from the start of the IP header, in bytes.
    pub offset: u32,
    /// The two bytes.
    pub bytes: [u8; 2],
}

/// Returns what stands before the quote of an IPv4 packet without options, and what to change in that. `from` is the address that the LAN
/// interface has, or unspecified.
///
/// `None` if the frame is not what `network` was read from.
#[inline(always)]
pub fn v4<F: Frame + ?Sized>(
    frame: &F,
    network: &Network,
    mtu: u32,
    from: [u8; 4],
) -> Option<([u8; V4_LEN], Option<Patch>)> {
    let from = if u32::from_ne_bytes(from) == 0 {
        DUMMY
    } else {
        from
    };
    let mut bytes = [0; V4_LEN];
    link_header(frame, &mut bytes, [0x08, 0x00])?;
    // Type of service: internetwork control, as the kernel's own. Not fragmented.
    let len = be16(20 + 8 + network.header + QUOTED);
    put(&mut bytes, 14, [0x45, 0xc0, len[0], len[1], 0, 0, 0x40, 0]);
    put(&mut bytes, 22, [64, 1]);
    put(&mut bytes, 26, from);
    put(&mut bytes, 30, frame.read::<4>(network.offset + 12)?);
    let header = bytes.as_slice().sum_of_20(14)?;
    put(&mut bytes, 24, (!header).to_ne_bytes());
    put(&mut bytes, 34, [3, 4]);
    put(&mut bytes, 40, be16(mtu));
    let (patch, quoted) = quoted(frame, network)?;
    // The quoted header's own checksum makes its sum zero, and it has been found right.
    let sum = u64::from(quoted)
        + u64::from(u16::from_ne_bytes([3, 4]))
        + u64::from(u16::from_ne_bytes(be16(mtu)));
    put(&mut bytes, 36, (!folded(sum)).to_ne_bytes());
    Some((bytes, patch))
}

/// The same for IPv6. There is no answer without an address.
#[inline(always)]
pub fn v6<F: Frame + ?Sized>(
    frame: &F,
    network: &Network,
    mtu: u32,
    from: [u8; 16],
) -> Option<([u8; V6_LEN], Option<Patch>)> {
    if u128::from_ne_bytes(from) == 0 {
        return None;
    }
    let mut bytes = [0; V6_LEN];
    link_header(frame, &mut bytes, [0x86, 0xdd])?;
    let len = be16(8 + network.header + QUOTED);
    put(&mut bytes, 14, [0x60, 0, 0, 0, len[0], len[1], 58, 64]);
    put(&mut bytes, 22, from);
    put(&mut bytes, 38, frame.read::<8>(network.offset + 8)?);
    put(&mut bytes, 46, frame.read::<8>(network.offset + 16)?);
    put(&mut bytes, 54, [2, 0]);
    put(&mut bytes, 60, be16(mtu));
    let (patch, quoted) = quoted(frame, network)?;
    let mut header = u64::from(frame.sum_of_20(network.offset)?)
        + u64::from(frame.sum_of_20(network.offset + 20)?);
    if network.header > 40 {
        let [low, high] = [40, 44].map(|at| frame.read(network.offset + at));
        header += u64::from(u32::from_ne_bytes(low?)) + u64::from(u32::from_ne_bytes(high?));
    }
    // The pseudo header (RFC 8200, section 8.1) and the message.
    let addresses = u64::from(bytes.as_slice().sum_of_20(22)?)
        + u64::from(folded(
            u64::from(u32::from_ne_bytes(bytes.as_slice().read(42)?))
                + u64::from(u32::from_ne_bytes(bytes.as_slice().read(46)?))
                + u64::from(u32::from_ne_bytes(bytes.as_slice().read(50)?)),
        ));
    let sum = u64::from(quoted)
        + header
        + addresses
        + u64::from(u16::from_ne_bytes(len))
        + u64::from(u16::from_ne_bytes([0, 58]))
        + u64::from(u16::from_ne_bytes([2, 0]))
        + u64::from(u16::from_ne_bytes(be16(mtu)));
    put(&mut bytes, 56, (!folded(sum)).to_ne_bytes());
    Some((bytes, patch))
}

/// The answer goes back to where the frame came from.
#[inline(always)]
fn link_header<F: Frame + ?Sized>(frame: &F, bytes: &mut [u8], ethertype: [u8; 2]) -> Option<()> {
    put(bytes, 0, frame.read::<6>(6)?);
    put(bytes, 6, frame.read::<6>(0)?);
    put(bytes, 12, ethertype);
    Some(())
}

/// The ones' complement sum of the quoted bytes behind the IP header, once the patch is applied.
#[inline(always)]
fn quoted<F: Frame + ?Sized>(frame: &F, network: &Network) -> Option<(Option<Patch>, u16)> {
    let behind = network.offset + network.header;
    let sum = frame.sum_of_20(behind)?;
    let Some(transport) = network.transport() else {
        return Some((None, sum));
    };
    let place = if network.protocol == TCP { 16 } else { 6 };
    let checksum = u16::from_ne_bytes(frame.read(transport + place)?);
    let without = folded(u64::from(sum) + u64::from(!checksum));
    let fixed = fixed_point(without);
    let patch = Patch {
        offset: network.header + place,
        bytes: fixed.to_ne_bytes(),
    };
    Some((Some(patch), folded(u64::from(without) + u64::from(fixed))))
}

/// The number that is the checksum of itself and of what sums up to `sum`: twice it, in ones' complement, is minus `sum`.
#[inline(always)]
const fn fixed_point(sum: u16) -> u16 {
    let negative = !sum as u32;
    // Zero stands for "no checksum" in UDP, and 0xffff is as much.
    let half = (if negative.is_multiple_of(2) {
        negative
    } else {
        negative + 0xffff
    }) / 2;
    if half == 0 {
        0xffff
    } else {
        (half & 0xffff) as u16
    }
}

#[inline(always)]
const fn be16(value: u32) -> [u8; 2] {
    ((value & 0xffff) as u16).to_be_bytes()
}

#[inline(always)]
fn put<const N: usize>(bytes: &mut [u8], at: usize, what: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = what;
    }
}

const _: () = assert!(ETHERNET_LEN == 14);

#[cfg(test)]
mod tests;
