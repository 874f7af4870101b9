//! An office's gateway in the emulator: one LAN, one egress, the built-in list.

use std::net::Ipv6Addr;

use anyhow::{Result, ensure};
use breakout::datapath::object;
use breakout::explain::{Proto, Query, frame};
use breakout::list::{Instance, embedded};
use breakout::ruleset::compile;
use breakout_common::constants::Constants;
use breakout_common::egress::{Egress, NextHop};

use super::Emulator;
use crate::rulesets::by_default;
use crate::testrun::{UP, one_way};
use crate::wire::checksum;

/// The MAC address of the LAN interface: frames of [`frame`] are sent there.
const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The flag ACK of a TCP header (RFC 9293, section 3.1).
const ACK: u8 = 0x10;

/// A kind of packet, by one of them.
pub struct Packet {
    /// What it is an example of.
    pub what: &'static str,
    destination: &'static str,
    proto: Proto,
}

/// The kinds of packets whose cost is told.
pub const PACKETS: [Packet; 6] = [
    Packet {
        what: "IPv4, not steered",
        destination: "9.9.9.9",
        proto: Proto::Tcp,
    },
    Packet {
        what: "IPv6, not steered",
        destination: "2001:db8::1",
        proto: Proto::Tcp,
    },
    Packet {
        what: "IPv4, steered",
        destination: "52.98.0.1",
        proto: Proto::Tcp,
    },
    Packet {
        what: "IPv6, steered",
        destination: "2603:1006::1",
        proto: Proto::Tcp,
    },
    Packet {
        what: "UDP over IPv4, steered",
        destination: "52.98.0.1",
        proto: Proto::Udp,
    },
    Packet {
        what: "UDP over IPv6, steered",
        destination: "2603:1006::1",
        proto: Proto::Udp,
    },
];

/// How many instructions a program executes for a packet of a flow that it knows: `breakout_xdp` with an egress in redirect mode, or
/// `breakout_tc` with one in route mode.
///
/// # Errors
///
/// When the object cannot be emulated, or does with the packet what the gateway would not.
pub fn executed(program: &str, packet: &Packet) -> Result<u64> {
    let redirects = program.ends_with("_xdp");
    let frame = to_gateway(packet.destination, packet.proto, 443)?;
    let mut emulator = gateway(redirects)?;
    // The first packet finds its way, the second one shows that the flow goes on.
    emulator.run(program, &frame)?;
    emulator.run(program, &frame)?;
    let run = emulator.run(program, &frame)?;
    let is_steered = packet.what.ends_with(", steered");
    let expected = match (redirects, is_steered) {
        (true, true) => XDP_REDIRECT,
        (true, false) => XDP_PASS,
        (false, _) => TC_ACT_UNSPEC,
    };
    ensure!(
        run.code == expected,
        "{}: {program} returned {}",
        packet.what,
        run.code
    );
    ensure!(
        (run.frame != frame) == (redirects && is_steered),
        "{}: {program} changed the wrong frames",
        packet.what
    );
    Ok(run.executed)
}

/// How many instructions `breakout_note` executes for the answer to such a packet.
///
/// # Errors
///
/// As [`executed`].
pub fn executed_for_answer(packet: &Packet) -> Result<u64> {
    let frame = to_gateway(packet.destination, packet.proto, 443)?;
    let mut emulator = gateway(false)?;
    emulator.run("breakout_tc", &frame)?;
    let answer = reversed(&frame);
    emulator.run("breakout_note", &answer)?;
    let run = emulator.run("breakout_note", &answer)?;
    ensure!(
        run.code == TC_ACT_UNSPEC && run.frame == answer,
        "{}: breakout_note returned {}",
        packet.what,
        run.code
    );
    Ok(run.executed)
}

/// The same frame with addresses and ports the other way round.
fn reversed(frame: &[u8]) -> Vec<u8> {
    let mut answer = frame.to_vec();
    let (addresses, length) = if frame[12..14] == [8, 0] {
        (26, 4)
    } else {
        (22, 16)
    };
    let (source, destination) = (addresses, addresses + length);
    for (from, to, count) in [
        (source, destination, length),
        (destination + length, destination + length + 2, 2),
    ] {
        let (first, second) = answer.split_at_mut(to);
        first[from..from + count].swap_with_slice(&mut second[..count]);
    }
    answer
}

const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const TC_ACT_UNSPEC: u32 = u32::MAX;

/// The programs of a gateway that keeps flows on their way.
fn gateway(redirect: bool) -> Result<Emulator> {
    let hop = NextHop::Mac([2, 0, 0, 0, 0, 2]);
    let egress = Egress {
        redirect,
        mtu: 1500,
        source_mac: [2, 0, 0, 0, 0, 3],
        v4: hop,
        v6: hop,
        ..UP
    };
    let image = compile(&by_default(&embedded(Instance::Worldwide))?)?;
    let constants = Constants {
        table_words: u32::try_from(image.words().len())?,
        lan_mac: LAN_MAC,
        tc_counts: 1,
        pins: 1,
        clock_shift: 8,
        ..Constants::UNSET
    };
    Emulator::new(
        object()?,
        &constants.to_bytes(),
        &[
            ("RULESET", image.words()),
            ("PATHS", &one_way(egress).words()),
        ],
    )
}

/// The frame of a packet to a destination, as a client sends it to the gateway; of TCP, one in the midst of a connection.
fn to_gateway(destination: &str, proto: Proto, port: u16) -> Result<Vec<u8>> {
    let query = Query::new(destination.parse()?, proto, port);
    let mut frame = frame(query);
    frame[..6].copy_from_slice(&LAN_MAC);
    let transport = if query.destination.is_ipv4() {
        frame[26..30].copy_from_slice(&[10, 1, 0, 2]);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum);
        34
    } else {
        frame[22..38].copy_from_slice(&Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2).octets());
        54
    };
    if proto == Proto::Tcp {
        frame[transport + 13] = ACK;
    } else {
        frame[transport + 5] = 8;
    }
    Ok(frame)
}
