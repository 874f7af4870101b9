extern crate std;

use std::collections::HashMap;
use std::vec::Vec;

use super::*;
use crate::flows::tests::Table;
use crate::flows::{Facts, Kept, Key, Secret, State, find, keep};
use crate::frame::{Frame, folded};
use crate::network::network;
use crate::packet::plain_v4;

/// Numbers that look like chance, the same in each run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn next_u16(&mut self) -> u16 {
        (self.next() >> 48) as u16
    }

    fn next_u32(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }
}

const SECRET: [u64; 6] = [3, 1, 4, 1, 5, 9];

fn opening(key: &Key, now: u32) -> Facts {
    Facts::new(key.kind(), now, 0).with(0, State::Opening as u32)
}

#[test]
fn a_public_port_leads_back_to_its_client_and_to_nobody_else() {
    let secret = Secret::of(SECRET).sets;
    let table = &Table::new(16 * LEAST_SETS as usize);
    let mut numbers = Numbers(1);
    let mut taken = HashMap::new();
    for at in 0..40_000u64 {
        let remote = 0x3470_0000 + numbers.next_u32() % 40;
        let (remote_port, protocol) = if at % 3 == 0 {
            (3478u16, 0)
        } else {
            (443, Key::TCP)
        };
        let client = 0x0a01_0000 + numbers.next_u32() % 500;
        let port = 1024 + numbers.next_u16() % 60_000;
        let first = u64::from(client) << 32 | u64::from(port) << 16 | u64::from(remote_port);
        let second = u64::from(remote) << 32 | protocol;
        let key = key(first, second, &secret);
        let slot = match keep(&table, &key, opening(&key, 1), 1, &limits(3720, 150)) {
            Kept::New(slot) | Kept::There(slot) => slot,
            other => panic!("{other:?} at {at}"),
        };
        assert_eq!(find(&table, &key).map(|(slot, _)| slot), Some(slot));
        let public = port_of(slot);
        assert!(is_public(public));
        let client_port = u64::from(client) << 16 | u64::from(port);
        let other = taken.insert((remote, remote_port, protocol, public), client_port);
        assert!(
            other.is_none_or(|other| other == client_port),
            "two clients have {public}"
        );
        let (owner, facts) = owner(&table, (remote, remote_port), protocol, public, &secret);
        assert_eq!((owner, facts.is_live()), (client_port, true));
        let answered = find(&table, &key).map(|(_, facts)| facts.state());
        assert_eq!(answered, Some(State::Established as u32));
    }
    for ((remote, remote_port, protocol, public), _) in taken.iter().take(2000) {
        let other = owner(
            &table,
            (*remote ^ 1 << 20, *remote_port),
            *protocol,
            *public,
            &secret,
        );
        assert_eq!(other.0, 0, "another remote gets in");
        let port = owner(
            &table,
            (*remote, remote_port ^ 1),
            *protocol,
            *public,
            &secret,
        );
        assert_eq!(port.0, 0, "another port of the remote gets in");
        let kind = owner(
            &table,
            (*remote, *remote_port),
            protocol ^ Key::TCP,
            *public,
            &secret,
        );
        assert_eq!(kind.0, 0, "the other protocol gets in");
    }
}

#[test]
fn one_remote_fills_its_region_nearly_to_the_last_port() {
    let secret = Secret::of(SECRET).sets;
    let table = &Table::new(2 * LEAST_SETS as usize);
    let mut kept = 0;
    for at in 0..u64::from(PORTS) {
        let first = (0x0a00_0000 + at / 200) << 32 | (2000 + at % 200) << 16 | 443;
        let key = key(first, 0x3470_0001 << 32 | Key::TCP, &secret);
        kept += u32::from(matches!(
            keep(
                &table,
                &key,
                opening(&key, 1).with(0, State::Established as u32),
                1,
                &limits(3720, 150)
            ),
            Kept::New(_)
        ));
    }
    assert!(kept > PORTS * 9 / 10, "{kept} of {PORTS}");
}

#[test]
fn only_a_syn_or_a_datagram_begins_a_mapping() {
    let (tcp, udp) = (u32::try_from(Key::TCP).unwrap(), 0);
    let none = Facts(0);
    let state = |assignment| match assignment {
        Assignment::Note(facts) | Assignment::New(facts) => Some(facts.state()),
        Assignment::Known => None,
        Assignment::Unknown => Some(99),
    };
    let (opening, established, closing) = (
        State::Opening as u32,
        State::Established as u32,
        State::Closing as u32,
    );
    assert_eq!(state(assignment(none, tcp, 1, (false, false), 5)), Some(99));
    assert_eq!(
        state(assignment(none, tcp, 1, (true, false), 5)),
        Some(opening)
    );
    assert_eq!(
        state(assignment(none, udp, 1, (false, false), 5)),
        Some(opening)
    );
    let was = Facts::new(tcp, 5, 0).with(1, opening);
    assert_eq!(state(assignment(was, tcp, 1, (true, false), 5)), None);
    assert_eq!(state(assignment(was, tcp, 1, (false, false), 5)), None);
    let was = Facts::new(tcp, 5, 0).with(1, established);
    assert_eq!(state(assignment(was, tcp, 1, (false, false), 5)), None);
    assert_eq!(
        state(assignment(was, tcp, 1, (false, false), 6)),
        Some(established)
    );
    assert_eq!(
        state(assignment(was, tcp, 2, (false, false), 5)),
        Some(established)
    );
    assert_eq!(
        state(assignment(was, tcp, 1, (false, true), 5)),
        Some(closing)
    );
    let was = Facts::new(tcp, 5, 0).with(1, closing);
    assert_eq!(state(assignment(was, tcp, 1, (false, false), 5)), None);
    assert_eq!(
        state(assignment(was, tcp, 1, (true, false), 6)),
        Some(opening)
    );
    let was = Facts::new(udp, 5, 0).with(1, opening);
    assert_eq!(state(assignment(was, udp, 1, (false, false), 5)), None);
    assert_eq!(
        state(assignment(was, udp, 1, (false, false), 6)),
        Some(opening)
    );
}

/// A packet over IPv4 with right checksums.
fn packet(numbers: &mut Numbers, protocol: u8, payload: usize) -> Vec<u8> {
    let header = if protocol == 6 { 20 } else { 8 };
    let mut frame = std::vec![0u8; 14 + 20 + header + payload];
    for byte in &mut frame[26..] {
        [*byte, _] = numbers.next_u16().to_be_bytes();
    }
    frame[30] &= 0x7f;
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    let len = u16::try_from(frame.len() - 14).unwrap();
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, protocol]);
    let sum = frame.as_slice().sum_of_20(14).unwrap();
    frame[24..26].copy_from_slice(&(!sum).to_ne_bytes());
    let at = 34 + if protocol == 6 { 16 } else { 6 };
    frame[at..at + 2].fill(0);
    let sum = transport_sum(&frame);
    frame[at..at + 2].copy_from_slice(&(!sum).to_ne_bytes());
    frame
}

/// The ones' complement sum over pseudo header and transport: 0xffff if the checksum is right.
fn transport_sum(frame: &[u8]) -> u16 {
    let behind = &frame[34..];
    let len = u16::try_from(behind.len()).unwrap();
    let pseudo = [&frame[26..34], &[0, frame[23]], &len.to_be_bytes()[..]];
    let mut sum = 0;
    for part in pseudo.into_iter().chain([behind]) {
        for pair in part.chunks(2) {
            let pair = [pair[0], pair.get(1).copied().unwrap_or(0)];
            sum += u64::from(u16::from_ne_bytes(pair));
        }
    }
    folded(sum)
}

#[test]
fn a_packet_comes_back_as_it_was_with_right_checksums_on_the_way() {
    let mut numbers = Numbers(7);
    for at in 0..20_000 {
        let protocol = if at % 2 == 0 { 6 } else { 17 };
        let payload = usize::from(numbers.next_u16() % 60);
        let before = packet(&mut numbers, protocol, payload);
        assert_eq!(transport_sum(&before), 0xffff);
        let mut frame = before.clone();
        let (address, port) = (numbers.next_u32(), numbers.next_u16());
        let of_destination = at % 4 < 2;
        let headers = plain_v4(&frame[..]).unwrap();
        let turn = |frame: &mut Vec<u8>, address, port| {
            translate(
                frame.as_mut_slice(),
                &headers,
                of_destination,
                address,
                port,
            )
            .unwrap();
        };
        turn(&mut frame, address, port);
        assert_eq!(
            frame.as_slice().sum_of_20(14),
            Some(0xffff),
            "IPv4 header of {frame:x?}"
        );
        assert_eq!(transport_sum(&frame), 0xffff, "{frame:x?}");
        let (address_at, port_at) = if of_destination { (30, 36) } else { (26, 34) };
        let address = u32::from_ne_bytes(before.as_slice().read(address_at).unwrap());
        let port = u16::from_ne_bytes(before.as_slice().read(port_at).unwrap());
        turn(&mut frame, address, port);
        assert_eq!(frame, before);
    }
}

#[test]
fn an_error_is_read_back_to_the_packet_that_it_quotes() {
    let mut numbers = Numbers(9);
    let quoted_packet = packet(&mut numbers, 17, 4);
    let mut frame = std::vec![0u8; 14 + 20 + 8];
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&64u16.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 1]);
    frame[34] = 3;
    frame.extend_from_slice(&quoted_packet[14..42]);
    let read = |frame: &[u8]| quoted(frame, &network(frame).unwrap());
    let found = read(&frame).unwrap();
    let word = |at: usize| u16::from_be_bytes([quoted_packet[at], quoted_packet[at + 1]]);
    assert_eq!((found.ip, found.transport, found.is_tcp), (42, 62, false));
    assert_eq!(found.port, word(34));
    let remote = u32::from_be_bytes(quoted_packet.as_slice().read(30).unwrap());
    assert_eq!(found.remote, (remote, word(36)));
    for kind in [0, 8, 5, 13] {
        frame[34] = kind;
        assert_eq!(read(&frame), None, "type {kind} is no error");
    }
    frame[34] = 11;
    assert!(read(&frame).is_some());
    frame[49] = 1;
    assert_eq!(read(&frame), None, "a later fragment is quoted");
}

#[test]
fn a_datagram_without_a_checksum_gets_none() {
    let mut frame = packet(&mut Numbers(3), 17, 5);
    frame[40..42].fill(0);
    let headers = plain_v4(&frame[..]).unwrap();
    translate(frame.as_mut_slice(), &headers, false, 0x0102_0304, 5).unwrap();
    assert_eq!(frame[40..42], [0, 0]);
    assert_eq!(frame.as_slice().sum_of_20(14), Some(0xffff));
}
