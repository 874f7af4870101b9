//! Redirect mode: which steered packets the programs forward themselves, and what they write into them.

use crate::classify::source;
use crate::egress::{EgressWords, LinkHeader, link_header, mtu};
use crate::ethernet::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::frame::{Frame, FrameMut};
use crate::packet::{FIRST_FRAGMENT, Headers, OPTIONS, TAGGED};
use crate::table::Destination;
use crate::verdict::Reason;

/// The shortest Ethernet frame without its check sequence (IEEE 802.3). Shorter packets have padding behind them.
const SHORTEST_FRAME: u32 = 60;

/// The link header of a packet that XDP may forward, or why it does not. `is_own` says whether an address is one of the gateway's.
///
/// The packet's way is decided already; what XDP does not forward leaves by the same egress, if it leaves at all.
#[inline(always)]
pub fn plan<F: Frame + ?Sized>(
    frame: &F,
    headers: &Headers,
    egress: &EgressWords,
    is_own: impl FnOnce(Destination) -> bool,
) -> Result<LinkHeader, Reason> {
    let Some(link_header) = link_header(egress, headers.is_v6()) else {
        return Err(Reason::KernelNextHop);
    };
    check(frame, headers, headers.ip_len, egress, is_own)?;
    Ok(link_header)
}

/// Whether a packet may be forwarded as it is, past the kernel's stack. `longest` is the length of the longest IP packet that leaves,
/// in bytes: of one that the kernel has merged of several, the longest of those.
#[inline(always)]
pub fn check<F: Frame + ?Sized>(
    frame: &F,
    headers: &Headers,
    longest: u32,
    egress: &EgressWords,
    is_own: impl FnOnce(Destination) -> bool,
) -> Result<(), Reason> {
    if headers.marks & TAGGED != 0 {
        return Err(Reason::KernelTagged);
    }
    if headers.marks & FIRST_FRAGMENT != 0 {
        return Err(Reason::KernelFragment);
    }
    if headers.marks & OPTIONS != 0 {
        return Err(Reason::KernelOptions);
    }
    if headers.ttl <= 1 {
        return Err(Reason::KernelTtl);
    }
    if longest > mtu(egress) {
        return Err(Reason::KernelMtu);
    }
    if !is_whole(frame, headers) {
        return Err(Reason::KernelDamaged);
    }
    match source(frame, headers) {
        Some((high, low)) if is_clients(headers.is_v6(), high, low) => {
            if is_own(Destination::from_halves(headers.is_v6(), high, low)) {
                return Err(Reason::KernelSource);
            }
        }
        _ => return Err(Reason::KernelSource),
    }
    Ok(())
}

/// Why a packet is left to the kernel that is steered and not plain.
#[inline(always)]
pub fn not_plain<F: Frame + ?Sized>(frame: &F) -> Reason {
    let Some([e0, e1]) = frame.read::<2>(12).filter(|_| frame.tag_beside() == 0) else {
        return Reason::KernelTagged;
    };
    let is_fragment = match u16::from_be_bytes([e0, e1]) {
        ETHERTYPE_IPV4 => frame
            .read::<2>(ETHERNET_LEN + 6)
            .is_some_and(|[f0, f1]| [f0 & 0x3f, f1] != [0, 0]),
        ETHERTYPE_IPV6 => frame.read::<1>(ETHERNET_LEN + 6) == Some([44]),
        _ => return Reason::KernelTagged,
    };
    match is_fragment {
        true => Reason::KernelFragment,
        false => Reason::KernelOptions,
    }
}

/// Whether the IPv4 header without options has the right checksum (RFC 1812, section 5.2.2), and nothing but padding stands
/// behind the packet, which the kernel would cut off.
#[inline(always)]
pub fn is_whole<F: Frame + ?Sized>(frame: &F, headers: &Headers) -> bool {
    let len = frame.len();
    if len > SHORTEST_FRAME && len > headers.ip_offset + headers.ip_len {
        return false;
    }
    headers.is_v6() || frame.sum_of_20(headers.ip_offset) == Some(0xffff)
}

/// Whether an address can be a client's. Of those that cannot the kernel drops most (`ip_route_input_slow`, `ip6_forward`).
#[inline(always)]
pub const fn is_clients(v6: bool, high: u64, low: u64) -> bool {
    if v6 {
        // 2000::/3 (RFC 4291, section 2.4) and fc00::/7 (RFC 4193).
        high >> 61 == 1 || high >> 57 == 0xfc >> 1
    } else {
        // Not 0.0.0.0/8, 127.0.0.0/8, nor what is above 223.255.255.255.
        let first = low >> 24 & 0xff;
        first != 0 && first != 127 && first < 224
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
    let (offset, bytes) = aged(frame, headers)?;
    frame.write(offset, bytes)
}

/// The four bytes in which the TTL or hop limit stands, with one less, and for IPv4 the checksum that goes with that. Returns where
/// in the frame they belong.
#[inline(always)]
pub fn aged<F: Frame + ?Sized>(frame: &F, headers: &Headers) -> Option<(u32, [u8; 4])> {
    if headers.is_v6() {
        // Payload length, next header, hop limit.
        let offset = headers.ip_offset + 4;
        let [l0, l1, next_header, hop_limit] = frame.read::<4>(offset)?;
        return Some((offset, [l0, l1, next_header, hop_limit.wrapping_sub(1)]));
    }
    // TTL, protocol, checksum.
    let offset = headers.ip_offset + 8;
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
mod tests {
    use super::*;
    use crate::egress::{Egress, NextHop, link_header_of};
    use crate::packet::walk;

    const HEADER: LinkHeader = link_header_of([1; 6], [0; 6]);

    fn checksum(header: &[u8]) -> u16 {
        let mut sum: u32 = header
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn udp(ttl: u8, identification: u16) -> [u8; 42] {
        let mut frame = [0u8; 42];
        frame[12..14].copy_from_slice(&[0x08, 0]);
        frame[14..24].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, ttl, 17]);
        frame[18..20].copy_from_slice(&identification.to_be_bytes());
        frame[26..30].copy_from_slice(&[10, 1, 0, 2]);
        frame[30..34].copy_from_slice(&[52, 113, 0, 1]);
        frame[36..40].copy_from_slice(&[0x0d, 0x96, 0, 8]);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn the_checksum_stays_right_for_every_ttl_and_sum() {
        for ttl in 2..=255u8 {
            for identification in (0..=u16::MAX).step_by(257) {
                let mut bytes = udp(ttl, identification);
                let frame: &mut [u8] = &mut bytes;
                let headers = walk(frame).unwrap();
                rewrite(frame, &headers, link_header_of([2; 6], [4; 6])).unwrap();
                assert_eq!(frame[22], ttl - 1);
                assert_eq!(checksum(&frame[14..34]), 0, "ttl {ttl} id {identification}");
                assert_eq!(frame[..12], [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4]);
            }
        }
    }

    #[test]
    fn what_xdp_cannot_forward_is_left_to_the_kernel() {
        let bytes = udp(64, 0);
        let frame: &[u8] = &bytes;
        assert_eq!(frame.len(), 42);
        let headers = walk(frame).unwrap();
        let egress = Egress {
            redirect: true,
            mtu: 1500,
            v4: NextHop::Mac([1; 6]),
            ..Egress::default()
        };
        let plan = |headers: &Headers, egress: &Egress| {
            plan(frame, headers, &egress.to_words(), |_| false)
        };
        assert_eq!(plan(&headers, &egress), Ok(HEADER));
        let kernel = Egress {
            v4: NextHop::Kernel,
            ..egress
        };
        assert_eq!(plan(&headers, &kernel), Err(Reason::KernelNextHop));
        let cases = [
            (Headers { ttl: 1, ..headers }, Reason::KernelTtl),
            (
                Headers {
                    ip_len: 1501,
                    ..headers
                },
                Reason::KernelMtu,
            ),
            (
                Headers {
                    marks: FIRST_FRAGMENT,
                    ..headers
                },
                Reason::KernelFragment,
            ),
            (
                Headers {
                    marks: OPTIONS,
                    ..headers
                },
                Reason::KernelOptions,
            ),
            (
                Headers {
                    marks: TAGGED,
                    ..headers
                },
                Reason::KernelTagged,
            ),
        ];
        for (headers, reason) in cases {
            assert_eq!(plan(&headers, &egress), Err(reason));
        }
        let longest = Headers {
            ip_len: 1500,
            ..headers
        };
        assert_eq!(plan(&longest, &egress), Ok(HEADER));
    }

    #[test]
    fn why_a_packet_is_not_plain() {
        let plain = udp(64, 0);
        let changed = |place: usize, byte: u8| {
            let mut frame = plain;
            frame[place] = byte;
            not_plain(&frame[..])
        };
        assert_eq!(changed(14, 0x46), Reason::KernelOptions);
        assert_eq!(changed(20, 0x20), Reason::KernelFragment);
        assert_eq!(changed(21, 1), Reason::KernelFragment);
        assert_eq!(changed(20, 0x40), Reason::KernelOptions);
        assert_eq!(changed(12, 0x81), Reason::KernelTagged);
        let mut v6 = plain;
        v6[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(not_plain(&v6[..]), Reason::KernelOptions);
        v6[20] = 44;
        assert_eq!(not_plain(&v6[..]), Reason::KernelFragment);
    }

    #[test]
    fn what_the_kernel_would_not_forward_as_it_is_is_left_to_it() {
        let egress = Egress {
            redirect: true,
            mtu: 1500,
            v4: NextHop::Mac([1; 6]),
            ..Egress::default()
        };
        let planned = |bytes: &[u8], is_own: bool| {
            let headers = walk(bytes).unwrap();
            plan(bytes, &headers, &egress.to_words(), |_| is_own)
        };
        let bytes = udp(64, 7);
        assert_eq!(planned(&bytes, false), Ok(HEADER));
        assert_eq!(planned(&bytes, true), Err(Reason::KernelSource));
        for byte in [14 + 1, 14 + 5, 14 + 10, 14 + 15] {
            let mut damaged = bytes;
            damaged[byte] ^= 1;
            assert_eq!(
                planned(&damaged, false),
                Err(Reason::KernelDamaged),
                "{byte}"
            );
        }
        let with_tail = |length: usize| {
            let mut bytes = bytes.to_vec();
            bytes.resize(length, 0);
            planned(&bytes, false)
        };
        assert_eq!(with_tail(60), Ok(HEADER));
        assert_eq!(with_tail(61), Err(Reason::KernelDamaged));
        for (source, is_clients) in [
            ([0, 1, 2, 3], false),
            ([10, 0, 0, 1], true),
            ([127, 0, 0, 1], false),
            ([223, 255, 255, 255], true),
            ([224, 0, 0, 1], false),
            ([255, 255, 255, 255], false),
        ] {
            let mut bytes = bytes;
            bytes[26..30].copy_from_slice(&source);
            bytes[24..26].fill(0);
            let sum = checksum(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(planned(&bytes, false).is_ok(), is_clients, "{source:?}");
        }
        for (source, expected) in [
            ("::", false),
            ("::1", false),
            ("::ffff:10.0.0.1", false),
            ("64:ff9b::1", false),
            ("2001:db8::1", true),
            ("fd00:1::2", true),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            let source: core::net::IpAddr = source.parse().unwrap();
            let (high, low) = Destination::from(source).to_halves();
            assert_eq!(is_clients(true, high, low), expected, "{source}");
        }
    }
}
