//! Redirect mode: which steered packets XDP may forward itself, and what it writes into them.

use crate::egress::{Egress, NextHop};
use crate::frame::FrameMut;
use crate::packet::{FIRST_FRAGMENT, Headers, OPTIONS, TAGGED};
use crate::table::Destination;
use crate::verdict::Reason;

/// The link-layer addresses for a packet that XDP may forward, or why it is left to the kernel.
///
/// The packet's way is decided already; the kernel sends it by the same egress.
#[inline(always)]
pub fn plan(headers: &Headers, egress: &Egress) -> Result<[u8; 6], Reason> {
    let NextHop::Mac(destination_mac) = egress.next_hop(headers.is_v6()) else {
        return Err(Reason::KernelNextHop);
    };
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
    if headers.ip_len > u32::from(egress.mtu) {
        return Err(Reason::KernelMtu);
    }
    Ok(destination_mac)
}

/// Writes the next hop's and the egress's MAC addresses and takes one from the TTL or hop limit.
///
/// All places were read by the header walk of the same frame, so `None` cannot happen for a packet that
/// [`plan`] let through; the caller drops the frame then, as it may be half changed.
#[inline(always)]
pub fn rewrite<F: FrameMut + ?Sized>(
    frame: &mut F,
    headers: &Headers,
    destination_mac: [u8; 6],
    source_mac: [u8; 6],
) -> Option<()> {
    let [d0, d1, d2, d3, d4, d5] = destination_mac;
    let [s0, s1, s2, s3, s4, s5] = source_mac;
    frame.write(0, [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5])?;
    match headers.destination() {
        Destination::V4(_) => {
            // TTL, protocol, checksum: bytes 8 to 11 of the header.
            let [ttl, protocol, c0, c1] = frame.read::<4>(headers.ip_offset + 8)?;
            let [c0, c1] = decremented_checksum(u16::from_be_bytes([c0, c1])).to_be_bytes();
            frame.write(
                headers.ip_offset + 8,
                [ttl.wrapping_sub(1), protocol, c0, c1],
            )
        }
        Destination::V6(..) => {
            let [hop_limit] = frame.read::<1>(headers.ip_offset + 7)?;
            frame.write(headers.ip_offset + 7, [hop_limit.wrapping_sub(1)])
        }
    }
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
    use crate::packet::walk;

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
                rewrite(frame, &headers, [2; 6], [4; 6]).unwrap();
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
        assert_eq!(plan(&headers, &egress), Ok([1; 6]));
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
        assert_eq!(plan(&longest, &egress), Ok([1; 6]));
    }
}
