//! Tests of what may be forwarded, and of what is written into it.

use super::*;
use crate::egress::{Egress, NextHop, link_header_of};
use crate::network::network;
use crate::packet::{FIRST_FRAGMENT, walk};

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

fn egress() -> Egress {
    Egress {
        redirect: true,
        mtu: 1500,
        v4: NextHop::Mac([1; 6]),
        ..Egress::default()
    }
}

#[test]
fn xdp_forwards_what_is_plain_and_nothing_else() {
    let bytes = udp(64, 0);
    let frame: &[u8] = &bytes;
    let headers = walk(frame).unwrap();
    let plan =
        |headers: &Headers, egress: &Egress| plan(frame, headers, &egress.to_words(), |_| false);
    assert_eq!(plan(&headers, &egress()), Some(HEADER));
    let longest = Headers {
        ip_len: 1500,
        ..headers
    };
    assert_eq!(plan(&longest, &egress()), Some(HEADER));
    let unknown = Egress {
        v4: NextHop::Kernel,
        ..egress()
    };
    assert_eq!(plan(&headers, &unknown), None);
    let others = [
        Headers { ttl: 1, ..headers },
        Headers {
            ip_len: 1501,
            ..headers
        },
        Headers {
            marks: FIRST_FRAGMENT,
            ..headers
        },
        Headers {
            marks: OPTIONS,
            ..headers
        },
        Headers {
            marks: TAGGED,
            ..headers
        },
    ];
    for headers in others {
        assert_eq!(plan(&headers, &egress()), None, "{headers:?}");
    }
}

#[test]
fn xdp_leaves_what_opens_a_connection() {
    let mut bytes = [0; 54];
    bytes[..42].copy_from_slice(&udp(64, 0));
    bytes[17] = 40;
    bytes[23] = 6;
    bytes[24..26].fill(0);
    let sum = checksum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    for (flags, expected) in [(0x02, None), (0x12, None), (0x10, Some(HEADER))] {
        bytes[47] = flags;
        let headers = walk(&bytes[..]).unwrap();
        let planned = plan(&bytes[..], &headers, &egress().to_words(), |_| false);
        assert_eq!(planned, expected, "{flags:#x}");
    }
}

/// Returns what TC does with a frame: the reason why it leaves it, or that under which it counts it.
fn checked(bytes: &[u8], longest: Option<u32>, is_own: bool) -> Reason {
    let network = network(bytes).unwrap();
    let longest = longest.unwrap_or(network.len);
    let checked = check(bytes, &network, longest, &egress().to_words(), |_| is_own);
    checked.map_or_else(|reason| reason, |()| kind(&network))
}

#[test]
fn tc_sends_all_kinds_of_packets() {
    let plain = udp(64, 0);
    let changed = |place: usize, byte: u8| {
        let mut frame = plain;
        frame[place] = byte;
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        checked(&frame, None, false)
    };
    assert_eq!(changed(22, 64), Reason::Steered);
    assert_eq!(changed(22, 1), Reason::KernelTtl);
    assert_eq!(changed(14, 0x46), Reason::TcOptions);
    assert_eq!(changed(20, 0x20), Reason::TcFragment);
    assert_eq!(changed(21, 1), Reason::TcFragment);
    assert_eq!(changed(20, 0x40), Reason::Steered);
    let tagged = [&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat();
    assert_eq!(checked(&tagged, None, false), Reason::Tagged);
    let session = [0x88, 0x64, 0x11, 0, 0, 7, 0, 30, 0, 0x21];
    let session = [&plain[..12], &session[..], &plain[14..]].concat();
    assert_eq!(checked(&session, None, false), Reason::Tagged);
    assert_eq!(checked(&plain, Some(1500), false), Reason::Steered);
    assert_eq!(checked(&plain, Some(1501), false), Reason::TooBig);
    assert_eq!(checked(&plain, Some(1501), true), Reason::KernelSource);
}

#[test]
fn fragments_over_ipv6_are_told_by_their_header() {
    let mut frame = [0; 62];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[19] = 8;
    frame[21] = 64;
    frame[22..24].copy_from_slice(&[0xfd, 0]);
    for (header, expected) in [
        (17, Reason::Steered),
        (6, Reason::Steered),
        (44, Reason::TcFragment),
        (60, Reason::TcOptions),
        (0, Reason::TcOptions),
    ] {
        frame[20] = header;
        assert_eq!(checked(&frame, None, false), expected, "{header}");
    }
}

#[test]
fn what_the_kernel_would_not_forward_is_not_forwarded() {
    let planned = |bytes: &[u8], is_own: bool| {
        let headers = walk(bytes).unwrap();
        let header = plan(bytes, &headers, &egress().to_words(), |_| is_own);
        (header.is_some(), checked(bytes, None, is_own))
    };
    let bytes = udp(64, 7);
    assert_eq!(planned(&bytes, false), (true, Reason::Steered));
    assert_eq!(planned(&bytes, true), (false, Reason::KernelSource));
    for byte in [14 + 1, 14 + 5, 14 + 10, 14 + 15] {
        let mut damaged = bytes;
        damaged[byte] ^= 1;
        let expected = (false, Reason::KernelDamaged);
        assert_eq!(planned(&damaged, false), expected, "{byte}");
    }
    for (length, by_xdp) in [(60, true), (61, false)] {
        let mut bytes = bytes.to_vec();
        bytes.resize(length, 0);
        assert_eq!(planned(&bytes, false), (by_xdp, Reason::Steered));
    }
    for (source, is_clients) in [
        ([0, 0, 0, 0], false),
        ([0, 1, 2, 3], true),
        ([10, 0, 0, 1], true),
        ([127, 0, 0, 1], false),
        ([223, 255, 255, 255], true),
        ([224, 0, 0, 1], false),
        ([240, 0, 0, 1], true),
        ([255, 255, 255, 254], true),
        ([255, 255, 255, 255], false),
    ] {
        let mut bytes = bytes;
        bytes[26..30].copy_from_slice(&source);
        bytes[24..26].fill(0);
        let sum = checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(planned(&bytes, false).0, is_clients, "{source:?}");
    }
    for (source, expected) in [
        ("::", false),
        ("::1", false),
        ("::ffff:10.0.0.1", true),
        ("64:ff9b::1", true),
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
