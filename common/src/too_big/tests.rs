//! Answers as a client reads them, whoever sums up what.

extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::network::network;

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// A packet of a family and protocol, with anything behind the IP header.
fn packet(is_v6: bool, protocol: u8, behind: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    // Hop-by-hop options stand for a packet without a length of its own.
    let len = if is_v6 && protocol == 0 {
        0
    } else {
        u16::try_from(behind.len()).unwrap()
    };
    if is_v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0x26; 16]);
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + len).to_be_bytes());
        frame.extend([
            0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 2, 52, 113, 0, 1,
        ]);
        let sum = checksum(&frame[14..34]).to_be_bytes();
        frame[24..26].copy_from_slice(&sum);
    }
    frame.extend(behind);
    if is_v6 && protocol == 0 {
        frame[54] = 6;
    }
    frame
}

/// The answer to a packet, as it leaves; `offloads` has the transport checksum in the quote made as the kernel makes it.
fn answer(frame: &[u8], is_v6: bool, offloads: bool) -> Vec<u8> {
    let ip = network(frame).unwrap();
    let (mut bytes, patch) = if is_v6 {
        let (head, patch) = v6(frame, &ip, 1400, [0xfd; 16]).unwrap();
        (head.to_vec(), patch)
    } else {
        let (head, patch) = v4(frame, &ip, 1400, [10, 1, 0, 1]).unwrap();
        (head.to_vec(), patch)
    };
    let head = bytes.len();
    bytes.extend(&frame[14..(14 + ip.header + QUOTED) as usize]);
    if let Some(Patch {
        offset,
        bytes: patch,
    }) = patch
    {
        let place = head + offset as usize;
        bytes[place..place + 2].copy_from_slice(&patch);
        if offloads {
            let sum = match checksum(&bytes[head + ip.header as usize..]) {
                0 => 0xffff,
                sum => sum,
            };
            bytes[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        }
    }
    bytes
}

proptest! {
    #[test]
    fn every_checksum_of_an_answer_is_right(
        is_v6: bool,
        protocol in prop::sample::select(vec![6u8, 17, 50, 0]),
        behind in prop::collection::vec(any::<u8>(), 28..64),
        offloads: bool,
    ) {
        let bytes = answer(&packet(is_v6, protocol, &behind), is_v6, offloads);
        if is_v6 {
            let len = u8::try_from(bytes.len() - 54).unwrap();
            let mut summed = bytes[22..54].to_vec();
            summed.extend([0, 0, 0, len, 0, 0, 0, 58]);
            summed.extend(&bytes[54..]);
            prop_assert_eq!(checksum(&summed), 0);
            prop_assert_eq!(usize::from(bytes[19]), bytes.len() - 54);
            prop_assert_eq!(&bytes[54..62], &[2, 0, bytes[56], bytes[57], 0, 0, 0x05, 0x78]);
        } else {
            prop_assert_eq!(checksum(&bytes[14..34]), 0);
            prop_assert_eq!(checksum(&bytes[34..]), 0);
            prop_assert_eq!(usize::from(bytes[17]), bytes.len() - 14);
            prop_assert_eq!(&bytes[34..42], &[3, 4, bytes[36], bytes[37], 0, 0, 0x05, 0x78]);
        }
    }
}

#[test]
fn a_sum_of_nothing_has_a_fixed_point_too() {
    for sum in [0, 1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        let fixed = fixed_point(sum);
        let whole = folded(u64::from(sum) + u64::from(fixed));
        let made = if !whole == 0 { 0xffff } else { !whole };
        assert_eq!(made, fixed, "{sum:#x}");
    }
}

#[test]
fn an_answer_comes_from_an_address_of_the_gateway() {
    let frame = packet(false, 17, &[0; 40]);
    let ip = network(&frame[..]).unwrap();
    let source = |from| v4(&frame[..], &ip, 1400, from).unwrap().0[26..30].to_vec();
    assert_eq!(source([10, 1, 0, 1]), [10, 1, 0, 1]);
    assert_eq!(source([0; 4]), [192, 0, 0, 8]);
    let frame = packet(true, 17, &[0; 40]);
    let ip = network(&frame[..]).unwrap();
    assert_eq!(v6(&frame[..], &ip, 1400, [0; 16]), None);
}
