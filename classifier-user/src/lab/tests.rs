use std::collections::BTreeSet;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::*;
use crate::list::{Instance, embedded};
use crate::policy::Policy;
use crate::replay::{Capture, Replay};
use crate::ruleset::{Slots, compile};
use crate::timestamp::Timestamp;

fn ruleset() -> Ruleset {
    let list = embedded(Instance::Worldwide);
    Ruleset::new(
        &list.sets,
        &Policy::optimize(0),
        &mut Slots::default(),
        Timestamp::default(),
    )
    .unwrap()
}

fn mix() -> Mix {
    Mix {
        packets: 5000,
        flows: 500,
        steered: 0.3,
        ipv6: 0.4,
        size: 200,
        rate: 10_000,
        clients: vec![
            "10.1.0.0/24".parse().unwrap(),
            "fd00:1::/64".parse().unwrap(),
        ],
        source_mac: [2, 0, 0, 0, 0, 1],
        gateway_mac: [2, 0, 0, 0, 0, 2],
        seed: 7,
    }
}

#[test]
fn what_is_said_to_be_steered_is_steered_by_the_data_paths_own_function() {
    let ruleset = ruleset();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mix.pcap");
    let mut bytes = Vec::new();
    let written = capture(&ruleset, &mix(), &mut bytes).unwrap();
    assert_eq!(
        written,
        Written {
            flows: [150, 350],
            packets: [1500, 3500]
        }
    );
    std::fs::write(&path, &bytes).unwrap();
    let mut replay = Replay::pure(&ruleset, compile(&ruleset).unwrap());
    let mut read = Capture::open(&path).unwrap();
    let (mut steered, mut all) = (0, 0);
    while let Some(captured) = read.packet().unwrap() {
        all += 1;
        steered += u64::from(
            replay
                .packet(&captured)
                .unwrap()
                .decision
                .reason()
                .is_steer(),
        );
    }
    assert_eq!((all, steered), (5000, 1500));
    // The same seed makes the same capture, another one another.
    let mut again = Vec::new();
    capture(&ruleset, &mix(), &mut again).unwrap();
    assert_eq!(again, bytes);
    again.clear();
    capture(&ruleset, &Mix { seed: 8, ..mix() }, &mut again).unwrap();
    assert_ne!(again, bytes);
}

#[test]
fn packets_are_whole_and_their_checksums_are_right() {
    let mut bytes = Vec::new();
    capture(&ruleset(), &mix(), &mut bytes).unwrap();
    let mut rest = &bytes[24..];
    let (mut kinds, mut v6) = (BTreeSet::new(), 0);
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let frame = &rest[16..16 + length];
        rest = &rest[16 + length..];
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let transport = packet.transport.unwrap();
        match (packet.net.unwrap(), &transport) {
            (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
                let header = tcp.to_header();
                let sum = header
                    .calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())
                    .unwrap();
                assert_eq!(sum, header.checksum);
                kinds.insert(if header.syn { "SYN" } else { "data" });
                assert!(header.syn || length == 200);
            }
            (NetSlice::Ipv6(_), _) => v6 += 1,
            (NetSlice::Ipv4(_), TransportSlice::Udp(_)) => {
                kinds.insert("UDP");
                assert_eq!(length, 200);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kinds.len(), 3);
    assert!((1500..2500).contains(&v6), "{v6} of 5000 packets are IPv6");
}

#[test]
fn what_cannot_be_had_is_an_error() {
    let nothing = Ruleset {
        rules: Vec::new(),
        ..ruleset()
    };
    let error = capture(&nothing, &mix(), &mut Vec::new()).unwrap_err();
    assert!(
        error.to_string().contains("flow that is steered"),
        "{error}"
    );
    let v4_only = Mix {
        clients: vec!["10.1.0.0/24".parse().unwrap()],
        ..mix()
    };
    let error = capture(&ruleset(), &v4_only, &mut Vec::new()).unwrap_err();
    assert!(
        error.to_string().contains("no IPv6 network of clients"),
        "{error}"
    );
}
