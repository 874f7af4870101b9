//! Traffic for laboratories: flows of which it is known what becomes of them, for traffic generators.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use breakout_common::condition::Client;
use breakout_common::table::Transport;
use etherparse::PacketBuilder;
use fastrand::Rng;
use ipnet::IpNet;

use crate::list::PortRange;
use crate::policy::Action;
use crate::ruleset::{Rule, Ruleset};

/// Composition of a capture.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Packets in all.
    pub packets: u64,
    /// Flows in all; each has packets in turn.
    pub flows: u32,
    /// The share of the flows that are steered, 0 to 1.
    pub steered: f64,
    /// The share of the flows that are IPv6, 0 to 1.
    pub ipv6: f64,
    /// Length of each frame in bytes, without the checksum at its end.
    pub size: usize,
    /// Packets a second, by the capture's clock.
    pub rate: u32,
    /// The clients' networks, for IPv4 and IPv6.
    pub clients: Vec<IpNet>,
    /// The sender's MAC address.
    pub source_mac: [u8; 6],
    /// The gateway's MAC address.
    pub gateway_mac: [u8; 6],
    /// The same number makes the same capture.
    pub seed: u64,
}

/// Counts of what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Flows that the ruleset steers, and those that it does not.
    pub flows: [u32; 2],
    /// Their packets.
    pub packets: [u64; 2],
}

/// The shortest frame: Ethernet, IPv6 and TCP, which is 74 bytes.
pub const SHORTEST: usize = 74;
/// The longest frame, with an MTU of 1500.
pub const LONGEST: usize = 1514;

/// Attempts to find a destination of the wanted kind.
const TRIES: usize = 10_000;

/// A client, and where it sends.
#[derive(Clone, Copy, Debug)]
struct Flow {
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    port: u16,
    transport: Transport,
    steered: bool,
}

/// Writes a capture (pcap, Ethernet) of the packets that clients send. TCP flows begin with a SYN; nothing is answered.
///
/// # Errors
///
/// When the ruleset has nothing of what is wanted, or it cannot be written.
pub fn capture(ruleset: &Ruleset, mix: &Mix, to: &mut impl Write) -> Result<Written> {
    let mut rng = Rng::with_seed(mix.seed);
    let mut written = Written::default();
    let mut flows = Vec::with_capacity(mix.flows as usize);
    for number in 0..mix.flows {
        // Spread evenly, so that a part of the capture has the same mix.
        let is_one_of = |share: f64| {
            (f64::from(number + 1) * share).floor() > (f64::from(number) * share).floor()
        };
        let v6 = rng.f64() < mix.ipv6;
        let flow = flow(ruleset, mix, v6, is_one_of(mix.steered), &mut rng)?;
        written.flows[usize::from(!flow.steered)] += 1;
        flows.push(flow);
    }
    // tcpdump's header: microseconds, Ethernet.
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 0x4_0000, 1u32] {
        to.write_all(&word.to_le_bytes())?;
    }
    for number in 0..mix.packets {
        let index = usize::try_from(number % u64::from(mix.flows))?;
        let flow = flows[index];
        let frame = frame(&flow, mix, number / u64::from(mix.flows))?;
        let micros = number * 1_000_000 / u64::from(mix.rate);
        let length = u32::try_from(frame.len())?;
        let seconds = u32::try_from(micros / 1_000_000)?;
        for word in [seconds, u32::try_from(micros % 1_000_000)?, length, length] {
            to.write_all(&word.to_le_bytes())?;
        }
        to.write_all(&frame)?;
        written.packets[usize::from(!flow.steered)] += 1;
    }
    to.flush()?;
    Ok(written)
}

fn flow(ruleset: &Ruleset, mix: &Mix, v6: bool, steered: bool, rng: &mut Rng) -> Result<Flow> {
    let is_family = |net: &&IpNet| matches!(net, IpNet::V6(_)) == v6;
    let family = if v6 { "IPv6" } else { "IPv4" };
    let clients: Vec<&IpNet> = mix.clients.iter().filter(is_family).collect();
    ensure!(
        !clients.is_empty(),
        "no {family} network of clients is given; see --clients and --ipv6"
    );
    let rules: Vec<&Rule> = ruleset
        .rules
        .iter()
        .filter(|rule| rule.is_steered())
        .collect();
    for _ in 0..TRIES {
        let source = host(clients[rng.usize(..clients.len())], rng);
        let (destination, ports) = if steered {
            let Some(rule) = rules.get(rng.usize(..rules.len().max(1))) else {
                break;
            };
            let prefixes: Vec<&IpNet> = rule.prefixes.iter().filter(is_family).collect();
            if prefixes.is_empty() || rule.ports.is_empty() {
                continue;
            }
            let ports = rule.ports[rng.usize(..rule.ports.len())];
            (host(prefixes[rng.usize(..prefixes.len())], rng), ports)
        } else {
            (elsewhere(ruleset, v6, rng), web(rng))
        };
        let port = rng.u16(ports.first..=ports.last);
        let transport = ports.transport;
        let client = Client {
            source: source.into(),
            lan: 0,
            vlan: 0,
        };
        let found = ruleset.find(destination, transport, port, &client);
        let choice = found.and_then(|found| found.choice);
        let is_steered = choice
            .is_some_and(|choice| matches!(choice.action, Action::Steer(_)) && !choice.shadow);
        if is_steered == steered {
            return Ok(Flow {
                source,
                source_port: rng.u16(32_768..=60_999),
                destination,
                port,
                transport,
                steered,
            });
        }
    }
    let what = if steered {
        "steered"
    } else {
        "left on the ordinary path"
    };
    anyhow::bail!("the ruleset has no {family} flow that is {what}")
}

/// A destination that is no client's: half of them in endpoint sets, whose other ports and sets are not steered.
fn elsewhere(ruleset: &Ruleset, v6: bool, rng: &mut Rng) -> IpAddr {
    let all: Vec<&IpNet> = ruleset
        .rules
        .iter()
        .flat_map(|rule| &rule.prefixes)
        .filter(|net| matches!(net, IpNet::V6(_)) == v6)
        .collect();
    if rng.bool() && !all.is_empty() {
        return host(all[rng.usize(..all.len())], rng);
    }
    if v6 {
        // 2000::/3, what is in use of the address space (IANA).
        let bits = rng.u128(..) >> 3 | 1 << 125;
        return Ipv6Addr::from_bits(bits).into();
    }
    loop {
        let address = Ipv4Addr::from_bits(rng.u32(0x0100_0000..0xe000_0000));
        let is_special = address.is_private() || address.is_loopback() || address.is_link_local();
        if !is_special {
            return address.into();
        }
    }
}

/// Returns what most traffic is: HTTPS, QUIC, mail, DNS.
fn web(rng: &mut Rng) -> PortRange {
    let (transport, port) = [
        (Transport::Tcp, 443),
        (Transport::Tcp, 80),
        (Transport::Udp, 443),
        (Transport::Tcp, 993),
        (Transport::Udp, 53),
    ][rng.usize(..5)];
    PortRange {
        transport,
        first: port,
        last: port,
    }
}

/// Some address of a network.
fn host(net: &IpNet, rng: &mut Rng) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            Ipv4Addr::from_bits(net.network().to_bits() | rng.u32(..) & net.hostmask().to_bits())
                .into()
        }
        IpNet::V6(net) => {
            Ipv6Addr::from_bits(net.network().to_bits() | rng.u128(..) & net.hostmask().to_bits())
                .into()
        }
    }
}

/// The packet of a flow with this number, with right checksums.
fn frame(flow: &Flow, mix: &Mix, number: u64) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(mix.source_mac, mix.gateway_mac);
    let ip = match (flow.source, flow.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => anyhow::bail!("a flow has one address family"),
    };
    let mut frame = Vec::with_capacity(mix.size);
    let payload = |headers: usize| vec![0u8; mix.size.saturating_sub(headers)];
    match flow.transport {
        Transport::Udp => {
            let packet = ip.udp(flow.source_port, flow.port);
            let payload = payload(packet.size(0));
            packet.write(&mut frame, &payload)
        }
        Transport::Tcp => {
            let is_first = number == 0;
            // Ethernet, IP and TCP.
            let headers = if flow.source.is_ipv4() { 54 } else { 74 };
            let bytes = mix.size.saturating_sub(headers) as u64;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "sequence numbers wrap around"
            )]
            let sequence = if is_first {
                0
            } else {
                (1 + (number - 1) * bytes) as u32
            };
            let packet = ip.tcp(flow.source_port, flow.port, sequence, 65_535);
            let packet = if is_first {
                packet.syn()
            } else {
                packet.ack(1).psh()
            };
            let payload = payload(packet.size(0));
            packet.write(&mut frame, if is_first { &[] } else { &payload })
        }
    }
    .context("cannot build a packet")?;
    Ok(frame)
}

#[cfg(test)]
mod tests;
