//! Check that the gateway's own rules let steered packets through to each egress, and their answers back; and with which source
//! address they leave. Probes are the gateway's own traffic, which the chains for forwarded packets never see.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use breakout_common::table::Transport;
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

use super::packet_way::{Packet, Rules, Stop, Translated};
use super::{Finding, Level};
use crate::config::{Config, Mode};
use crate::links::{Interface, Links};
use crate::private;
use crate::ruleset::Ruleset;

/// A port that a client may have.
const CLIENT_PORT: u16 = 50_004;
/// Most important ports of TCP and of UDP.
const PORTS: [(Transport, &str, u16); 2] =
    [(Transport::Tcp, "tcp", 443), (Transport::Udp, "udp", 3478)];

/// A LAN and an egress, and addresses of one family on both sides.
struct Passage<'a> {
    lan: &'a Interface,
    egress: &'a Interface,
    name: &'a str,
    /// The interface by which the same packet leaves where it is not steered, if there is one.
    ordinary: Option<&'a str>,
}

/// Goes through everybody's rules with a packet of each kind. Says nothing where it depends on what cannot be read.
pub(super) async fn examine(
    links: &Links,
    config: &Config,
    ruleset: &Ruleset,
    rules: &Rules<'_>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mask = config.routing.mark_mask;
    // That of the first egress; rules seldom ask which one it is.
    let mark = mask & mask.wrapping_neg();
    for (name, egress) in &config.egress {
        let Ok(Some(out)) = links.interface(&egress.interface).await else {
            continue;
        };
        for lan in &config.lan {
            let Ok(Some(lan)) = links.interface(&lan.interface).await else {
                continue;
            };
            for v6 in [false, true] {
                let Some(client) = client_of(&lan, v6).filter(|_| has_family(&out, v6)) else {
                    continue;
                };
                let mut stopped = BTreeSet::new();
                let mut source = None;
                for (destination, protocol, port) in destinations(ruleset, v6) {
                    let ordinary = ordinary_egress(destination);
                    let passage = Passage {
                        lan: &lan,
                        egress: &out,
                        name,
                        ordinary: ordinary.as_deref(),
                    };
                    let packet = passage.there(client, destination, protocol, port, mark);
                    let is_routed = egress.mode == Mode::Route;
                    if is_routed {
                        let found = passage.stops(rules, &packet, &mut stopped);
                        let is_lost = found.is_some();
                        findings.extend(found);
                        if is_lost {
                            continue;
                        }
                    }
                    // Of IPv6 the programs translate nothing.
                    if !egress.masquerade || !is_routed && v6 {
                        let foreign = || passage.foreign_source(rules, &packet, is_routed);
                        source = source.or_else(|| Some(foreign()));
                    }
                    if is_routed || !egress.returns && (v6 || !egress.masquerade) {
                        let back = answer_to(&packet, is_routed);
                        findings.extend(passage.stops(rules, &back, &mut stopped));
                    }
                }
                findings.extend(source.flatten());
            }
        }
    }
    findings
}

impl Passage<'_> {
    /// The first packet of a connection.
    fn there(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: &'static str,
        port: u16,
        mark: u32,
    ) -> Packet {
        Packet {
            from: self.lan.name.clone(),
            to: self.egress.name.clone(),
            source,
            destination,
            protocol,
            source_port: CLIENT_PORT,
            port,
            mark,
            state: "new",
            is_answer: false,
        }
    }

    /// The same packet, or answer, by the ordinary egress.
    fn ordinarily(&self, packet: &Packet) -> Option<Packet> {
        let ordinary = self.ordinary?.to_owned();
        let mut other = Packet {
            mark: 0,
            ..packet.clone()
        };
        if packet.is_answer {
            other.from = ordinary;
            other.state = "established";
        } else {
            other.to = ordinary;
        }
        Some(other)
    }

    /// Returns what there is to say of a packet that does not get through, once for each place. What is dropped on the ordinary path as well
    /// is meant so, as where QUIC is not let out.
    fn stops(
        &self,
        rules: &Rules<'_>,
        packet: &Packet,
        stopped: &mut BTreeSet<(Stop, String)>,
    ) -> Option<Finding> {
        let dropped = |packet: &Packet| {
            let fate = rules.fate(packet, "filter", "forward");
            fate.dropped.filter(|_| fate.is_certain)
        };
        let stop = dropped(packet)?;
        let is_meant = self
            .ordinarily(packet)
            .is_some_and(|other| dropped(&other).is_some());
        if is_meant || !stopped.insert((stop.clone(), packet.from.clone())) {
            return None;
        }
        let what = if packet.is_answer {
            "answers to steered"
        } else {
            "steered"
        };
        let (from, to) = (&packet.from, &packet.to);
        let state = if packet.is_answer && packet.state == "established" {
            " ct state established,related"
        } else {
            ""
        };
        // Without an ordinary path nobody knows what is meant.
        let level = match self.ordinary {
            Some(_) => Level::Error,
            None => Level::Warning,
        };
        Some(Finding::new(
            level,
            format!(
                "{what} packets from {from} to {to} are dropped by {stop}, as {} between {} and {}: probes of egress {} do not pass there, so \
                 they are answered all the same",
                packet.protocol.to_uppercase(),
                packet.source,
                packet.destination,
                self.name
            ),
            format!(
                "Let them pass in that firewall's own configuration; or, for now: nft 'insert rule {} iifname \"{from}\" oifname \
                 \"{to}\"{state} accept'",
                stop.chain
            ),
        ))
    }

    /// Returns what there is to say where clients' packets leave with a source that no answer finds back to. Unless they are routed, no rule
    /// translates them.
    fn foreign_source(
        &self,
        rules: &Rules<'_>,
        packet: &Packet,
        is_routed: bool,
    ) -> Option<Finding> {
        let translated = |packet: &Packet| rules.fate(packet, "nat", "postrouting");
        // An address of no interface may be routed here.
        let is_elsewhere =
            |address: &IpAddr| owner_of(*address).is_some_and(|owner| owner != self.egress.name);
        let (out, name) = (&self.egress.name, self.name);
        let fate = translated(packet);
        match fate.translated.as_ref().filter(|_| is_routed) {
            Some(Translated::To(Some(address))) if fate.is_certain && is_elsewhere(address) => {
                Some(Finding::new(
                    Level::Warning,
                    format!(
                        "packets of clients leave by {out} with the source address {address}, which is another interface's: answers may \
                         never come back"
                    ),
                    format!(
                        "Have that rule match what leaves by other interfaces, and set masquerade = true in [egress.{name}]"
                    ),
                ))
            }
            None if (fate.is_certain || !is_routed) && is_private(&packet.source) => {
                // Where the egress has local addresses of IPv6 alone, they may be all that is used behind it.
                let is_public = |net: &IpNet| !is_private(&net.addr());
                let is_v6 = !packet.source.is_ipv4();
                let has_public =
                    |interface: &Interface| of_family(interface, true).any(|net| is_public(&net));
                if is_v6 && (!has_public(self.egress) || !is_routed && has_public(self.lan)) {
                    return None;
                }
                let is_usual = self
                    .ordinarily(packet)
                    .is_some_and(|other| translated(&other).translated.is_some());
                let advice = if packet.source.is_ipv4() || is_routed {
                    format!("Set masquerade = true in [egress.{name}]")
                } else {
                    format!(
                        "Give clients addresses of the egress's provider, or set mode = \"route\" and masquerade = true in [egress.{name}]"
                    )
                };
                // What is redirected meets none of these rules, so that they are there for others proves nothing.
                let (level, unless) = if is_usual && is_routed {
                    (Level::Warning, "")
                } else {
                    (Level::Note, ", unless a router behind it does that")
                };
                Some(Finding::new(
                    level,
                    format!(
                        "clients behind {} have private addresses, such as {}, and no rule here translates what leaves by {out}",
                        packet.from, packet.source
                    ),
                    advice + unless,
                ))
            }
            _ => None,
        }
    }
}

/// The answer to a packet. What left past the stack is not known to connection tracking.
fn answer_to(packet: &Packet, is_tracked: bool) -> Packet {
    Packet {
        from: packet.to.clone(),
        to: packet.from.clone(),
        source: packet.destination,
        destination: packet.source,
        source_port: packet.port,
        port: packet.source_port,
        mark: 0,
        state: match (is_tracked, packet.protocol) {
            (true, _) => "established",
            (false, "tcp") => "invalid",
            (false, _) => "new",
        },
        is_answer: true,
        ..packet.clone()
    }
}

/// The interface by which the gateway itself reaches an address: that of the source address which the kernel takes. Nothing is sent.
fn ordinary_egress(destination: IpAddr) -> Option<String> {
    let any: SocketAddr = match destination {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((destination, 443)).ok()?;
    owner_of(socket.local_addr().ok()?.ip())
}

/// The interface that has an address.
pub(super) fn owner_of(wanted: IpAddr) -> Option<String> {
    getifaddrs().ok()?.find_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let own = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
        (own == Some(wanted)).then_some(interface.interface_name)
    })
}

fn is_private(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => private::networks().any(|net| net.contains(address)),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

fn has_family(interface: &Interface, v6: bool) -> bool {
    of_family(interface, v6).next().is_some()
}

pub(super) fn of_family(interface: &Interface, v6: bool) -> impl Iterator<Item = IpNet> + '_ {
    let addresses = interface.addresses.iter().copied();
    addresses.filter(move |net| match net.addr() {
        IpAddr::V4(_) => !v6,
        IpAddr::V6(address) => v6 && !address.is_unicast_link_local(),
    })
}

/// An address that a client on the interface may have.
fn client_of(interface: &Interface, v6: bool) -> Option<IpAddr> {
    of_family(interface, v6).find_map(|net| {
        let mut hosts = net.hosts();
        hosts.find(|host| *host != net.addr() && *host != net.network())
    })
}

/// Destinations of steered traffic: of TCP and of UDP, by the ports that matter most where any set has them.
pub(super) fn destinations(ruleset: &Ruleset, v6: bool) -> Vec<(IpAddr, &'static str, u16)> {
    let steered = || ruleset.rules.iter().filter(|rule| rule.is_steered());
    let find = |transport: Transport, wanted: Option<u16>| {
        steered().find_map(|rule| {
            let mut ports = rule.ports.iter();
            let range = ports.find(|range| {
                range.transport == transport
                    && wanted.is_none_or(|port| (range.first..=range.last).contains(&port))
            })?;
            let mut prefixes = rule.prefixes.iter();
            let net = prefixes.find(|net| matches!(net, IpNet::V6(_)) == v6)?;
            let host = net.hosts().find(|host| *host != net.network());
            Some((host.unwrap_or(net.addr()), wanted.unwrap_or(range.first)))
        })
    };
    let found = PORTS.into_iter().filter_map(|(transport, name, port)| {
        let (address, port) = find(transport, Some(port)).or_else(|| find(transport, None))?;
        Some((address, name, port))
    });
    found.collect()
}
