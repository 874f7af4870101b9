//! Whether the gateway's own rules let steered packets through to each egress, and their answers back; and with which source
//! address they leave. Probes are the gateway's own traffic, which the chains for forwarded packets never see.

use std::collections::BTreeSet;
use std::net::IpAddr;

use breakout_common::table::Transport;
use ipnet::IpNet;
use serde_json::Value;

use super::packet_way::{Fate, Packet, Rules, Stop, Translated};
use super::{Finding, Level};
use crate::config::{Config, Mode};
use crate::links::{Interface, Links};
use crate::private;
use crate::ruleset::Ruleset;

/// A port that a client may have.
const CLIENT_PORT: u16 = 50_004;

/// A LAN and an egress, and addresses of one family on both sides.
struct Passage<'a> {
    lan: &'a Interface,
    egress: &'a Interface,
    name: &'a str,
    client: IpAddr,
    destination: IpAddr,
}

/// Goes through everybody's rules with a packet of each kind.
pub(super) async fn examine(
    links: &Links,
    config: &Config,
    ruleset: &Ruleset,
    nft: &Value,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rules = Rules(nft);
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
                    let passage = Passage {
                        lan: &lan,
                        egress: &out,
                        name,
                        client,
                        destination,
                    };
                    let packet = passage.there(protocol, port, mark);
                    if egress.mode == Mode::Route {
                        let fate = rules.fate(&packet, "filter", "forward");
                        if let Some(finding) = passage.stops(&fate, &packet, &mut stopped) {
                            findings.push(finding);
                            continue;
                        }
                        let fate = rules.fate(&packet, "nat", "postrouting");
                        source.get_or_insert((fate, packet.clone()));
                    }
                    let is_tracked = egress.mode == Mode::Route;
                    if is_tracked || !egress.returns {
                        let back = passage.back(&packet, is_tracked);
                        let fate = rules.fate(&back, "filter", "forward");
                        findings.extend(passage.stops(&fate, &back, &mut stopped));
                    }
                }
                if let Some((fate, packet)) = source.filter(|_| !egress.masquerade) {
                    findings.extend(foreign_source(&fate, &packet, name, &out, &rules));
                }
            }
        }
    }
    findings
}

impl Passage<'_> {
    /// The first packet of a connection.
    fn there(&self, protocol: &'static str, port: u16, mark: u32) -> Packet {
        Packet {
            from: self.lan.name.clone(),
            to: self.egress.name.clone(),
            source: self.client,
            destination: self.destination,
            protocol,
            source_port: CLIENT_PORT,
            port,
            mark,
            state: "new",
        }
    }

    /// The answer to it. What left past the stack is not known to connection tracking.
    fn back(&self, packet: &Packet, is_tracked: bool) -> Packet {
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
            ..packet.clone()
        }
    }

    /// What there is to say of a packet that does not get through, once for each place.
    fn stops(
        &self,
        fate: &Fate,
        packet: &Packet,
        stopped: &mut BTreeSet<(Stop, String)>,
    ) -> Option<Finding> {
        let stop = fate.dropped.as_ref()?;
        if !stopped.insert((stop.clone(), packet.from.clone())) {
            return None;
        }
        let is_answer = packet.from == self.egress.name;
        let what = if is_answer {
            "answers to steered"
        } else {
            "steered"
        };
        let level = if fate.is_certain {
            Level::Error
        } else {
            Level::Warning
        };
        let unless = if fate.is_certain {
            ""
        } else {
            ", unless a rule before it that cannot be read from here lets them through"
        };
        let (from, to) = (&packet.from, &packet.to);
        let protocol = packet.protocol.to_uppercase();
        let state = if is_answer && packet.state == "established" {
            " ct state established,related"
        } else {
            ""
        };
        Some(Finding::new(
            level,
            format!(
                "{what} packets from {from} to {to} are dropped by {stop}, as {protocol} between {} and {}{unless}: egress {} looks up to its \
                 probes, and clients get nothing through",
                packet.source, packet.destination, self.name
            ),
            format!(
                "Let them pass before that, as by: nft insert rule {} iifname \"{from}\" oifname \"{to}\"{state} accept",
                stop.chain
            ),
        ))
    }
}

/// What there is to say where clients' packets would leave with a source that no answer finds back to.
fn foreign_source(
    fate: &Fate,
    packet: &Packet,
    name: &str,
    egress: &Interface,
    rules: &Rules<'_>,
) -> Option<Finding> {
    let is_own = |address: &IpAddr| egress.addresses.iter().any(|net| net.addr() == *address);
    // Where the egress has local addresses of IPv6 alone, they may be all that is used behind it.
    let is_global =
        |net: &IpNet| matches!(net.addr(), IpAddr::V6(address) if address.segments()[0] >> 13 == 1);
    let is_public_v6 = packet.source.is_ipv4() || egress.addresses.iter().any(is_global);
    let out = &egress.name;
    let advice = format!(
        "Set masquerade = true in [egress.{name}], or have the rule match what leaves by {out}"
    );
    match &fate.translated {
        Some(Translated::To(Some(address))) if !is_own(address) => Some(Finding::new(
            Level::Warning,
            format!(
                "packets of clients leave by {out} with the source address {address}, which {out} does not have: answers may never come back"
            ),
            advice,
        )),
        None if fate.is_certain
            && is_private(&packet.source)
            && rules.translate_anything(packet)
            && is_public_v6 =>
        {
            Some(Finding::new(
                Level::Warning,
                format!(
                    "packets of clients behind {} leave by {out} with their private addresses, such as {}: rules here translate what leaves \
                     otherwise, and nothing translates these",
                    packet.from, packet.source
                ),
                advice,
            ))
        }
        _ => None,
    }
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

fn of_family(interface: &Interface, v6: bool) -> impl Iterator<Item = IpNet> + '_ {
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

/// A destination of steered traffic for each protocol.
fn destinations(ruleset: &Ruleset, v6: bool) -> Vec<(IpAddr, &'static str, u16)> {
    let mut found = Vec::new();
    for (transport, name) in [(Transport::Tcp, "tcp"), (Transport::Udp, "udp")] {
        let steered = ruleset.rules.iter().filter(|rule| rule.is_steered());
        found.extend({
            let mut steered = steered;
            steered.find_map(|rule| {
                let ports = rule
                    .ports
                    .iter()
                    .find(|range| range.transport == transport)?;
                let is_v6 = |net: &&IpNet| matches!(net, IpNet::V6(_)) == v6;
                let net = rule.prefixes.iter().find(is_v6)?;
                let host = net.hosts().find(|host| *host != net.network())?;
                Some((host, name, ports.first))
            })
        });
    }
    found
}
