//! Synthetic packets: of each kind that is steered one is put onto each LAN interface, as from a client that does not exist, and caught before
//! it leaves by any. It goes through the programs, routes, rules and translation as clients' packets do, so it shows where those go.
//! Nothing reaches a wire but the gateway's own questions for neighbours.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use breakout_common::synthetic::OF_ONE;
use etherparse::{PacketBuilder, TcpOptionElement};
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::time::sleep;

use super::forward::{destinations, of_family, owner_of};
use super::{Finding, Level};
use crate::config::{Config, XdpAttach, lan_number};
use crate::datapath::{Catcher, Caught};
use crate::explain::{Proto, Query};
use crate::links::conntrack::{self, Connection};
use crate::links::{Interface, Links, Neighbour};
use crate::ruleset::Ruleset;

/// The time that a packet may take through the gateway.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);
/// The time for which the kernel keeps packets for a neighbour that does not answer.
const UNRESOLVED: Duration = Duration::from_secs(4);
/// The port of the client that does not exist.
const CLIENT_PORT: u16 = 61_013;
/// Its MAC address: one that its owner has given himself.
const CLIENT_MAC: [u8; 6] = [0x02, 0x62, 0x6f, 0, 0, 1];
/// The type of service that it asks for: expedited forwarding, as calls do.
const SERVICE: u8 = 46 << 2;
/// The MTU of its link, to which the segments fit that it announces.
const CLIENT_MTU: u16 = 1500;
/// The number of addresses that are tried for one that nobody has.
const CANDIDATES: u32 = 8;

/// Result of all packets.
pub struct Shown {
    /// Number of packets that were sent.
    pub sent: usize,
    /// Findings about their paths.
    pub findings: Vec<Finding>,
}

/// One of the packets.
struct Packet<'a> {
    lan: &'a Interface,
    client: IpAddr,
    destination: IpAddr,
    proto: Proto,
    port: u16,
    /// The egress that the controller steers it to.
    egress: &'a str,
}

/// Questions to the running controller.
pub trait Controller {
    /// The egress to which it steers a packet, if it does.
    fn egress(&mut self, query: Query) -> impl Future<Output = Result<Option<String>>>;

    /// Has it forget the flows of a client: nobody answers them, and the egress is not to blame.
    fn forget(&mut self, client: IpAddr) -> impl Future<Output = Result<()>>;
}

/// Sends packets by all LAN interfaces for which the controller says that they are steered.
///
/// # Errors
///
/// When the kernel or the controller does not answer, or the kernel is older than Linux 6.6.
pub async fn send(
    config: &Config,
    ruleset: &Ruleset,
    controller: &mut impl Controller,
) -> Result<Shown> {
    let links = Links::open()?;
    let (names, own) = interfaces()?;
    let mut nonce = fastrand::u32(..) & OF_ONE;
    let mut catcher = Catcher::attach(names.iter().map(String::as_str))?;
    let mut shown = Shown {
        sent: 0,
        findings: Vec::new(),
    };
    let mut is_one_lost = false;
    for (number, lan) in config.lan.iter().enumerate() {
        // Generic XDP sends past where packets are caught.
        let interface = links.interface(&lan.interface).await?;
        let interface = interface.filter(|interface| interface.running);
        let Some(interface) = interface.filter(|_| lan.xdp == XdpAttach::Native) else {
            continue;
        };
        for v6 in [false, true] {
            let Some(client) = unused(&links, &interface, &own, v6).await? else {
                continue;
            };
            // A controller that is too old to be asked this says so before anything is sent.
            controller.forget(client).await?;
            for (destination, protocol, port) in destinations(ruleset, v6) {
                let proto = if protocol == "tcp" {
                    Proto::Tcp
                } else {
                    Proto::Udp
                };
                let mut query = Query::new(destination, proto, port);
                query.from = Some(client);
                query.lan = u32::from(lan_number(number));
                let Some(egress) = controller.egress(query).await? else {
                    continue;
                };
                let packet = Packet {
                    lan: &interface,
                    client,
                    destination,
                    proto,
                    port,
                    egress: &egress,
                };
                // A packet that comes late is caught, and not taken for the next one.
                nonce = nonce & OF_ONE | nonce.wrapping_add(1) & !OF_ONE;
                let caught = packet.send(&mut catcher, nonce).await;
                let forgotten = conntrack::forget(&[packet.connection()]);
                controller.forget(client).await?;
                forgotten?;
                let caught = match caught {
                    Ok(caught) => caught,
                    Err(error) => {
                        tracing::warn!("{}: {error:#}", interface.name);
                        continue;
                    }
                };
                shown.sent += 1;
                is_one_lost |= caught.is_none();
                let found = packet.judge(&links, config, caught).await?;
                shown.findings.extend(found);
            }
        }
    }
    // What waits for its next hop is caught too if that answers late.
    if is_one_lost {
        sleep(UNRESOLVED).await;
    }
    Ok(shown)
}

/// The interfaces that are up, and all addresses of this machine.
fn interfaces() -> Result<(BTreeSet<String>, BTreeSet<IpAddr>)> {
    let mut names = BTreeSet::new();
    let mut own = BTreeSet::new();
    for interface in getifaddrs().context("cannot list the interfaces")? {
        let flags = interface.flags;
        // Labels of addresses stand in the place of names.
        let name = interface.interface_name.split(':').next();
        if flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            names.extend(name.map(str::to_owned));
        }
        let address = interface.address.as_ref();
        let v4 = address.and_then(|address| address.as_sockaddr_in());
        let v6 = address.and_then(|address| address.as_sockaddr_in6());
        own.extend(v4.map(|v4| IpAddr::V4(v4.ip())));
        own.extend(v6.map(|v6| IpAddr::V6(v6.ip())));
    }
    Ok((names, own))
}

/// An address of the LAN's networks that nobody has, as far as the gateway knows: one of the last of the largest network.
async fn unused(
    links: &Links,
    lan: &Interface,
    own: &BTreeSet<IpAddr>,
    v6: bool,
) -> Result<Option<IpAddr>> {
    let mut nets: Vec<IpNet> = of_family(lan, v6).collect();
    nets.sort_by_key(IpNet::prefix_len);
    for net in nets {
        for address in (1..=CANDIDATES).filter_map(|back| from_end(&net, back)) {
            let is_free = || links.neighbour(lan.index, address);
            if !own.contains(&address) && is_free().await? == Neighbour::Unknown {
                return Ok(Some(address));
            }
        }
    }
    Ok(None)
}

/// The address that is so many before the last one of a network, if that has so many hosts.
fn from_end(net: &IpNet, back: u32) -> Option<IpAddr> {
    let address: IpAddr = match net {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.broadcast().to_bits().checked_sub(back)?).into(),
        IpNet::V6(net) => {
            Ipv6Addr::from_bits(net.broadcast().to_bits().checked_sub(back.into())?).into()
        }
    };
    // In smaller networks there are only the two ends of a link.
    let hosts = net.max_prefix_len() - net.prefix_len();
    (hosts > 2 && net.contains(&address) && address != net.network()).then_some(address)
}

impl Packet<'_> {
    /// Sends it and waits until it is caught.
    async fn send(&self, catcher: &mut Catcher, nonce: u32) -> Result<Option<Caught>> {
        catcher.inject(self.lan.index, nonce, &self.frame(nonce)?)?;
        let sent = Instant::now();
        loop {
            let caught = catcher.caught(self.client.is_ipv6())?;
            if caught.is_some() || sent.elapsed() > PATIENCE {
                return Ok(caught);
            }
            sleep(LOOK).await;
        }
    }

    fn frame(&self, nonce: u32) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, self.lan.mac.unwrap_or_default());
        let ip = match (self.client, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = etherparse::Ipv4Header {
                    source: source.octets(),
                    destination: destination.octets(),
                    time_to_live: 64,
                    dont_fragment: true,
                    ..etherparse::Ipv4Header::default()
                };
                header.dscp = etherparse::IpDscp::try_new(SERVICE >> 2)?;
                ethernet.ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = etherparse::Ipv6Header {
                    traffic_class: SERVICE,
                    source: source.octets(),
                    destination: destination.octets(),
                    hop_limit: 64,
                    ..etherparse::Ipv6Header::default()
                };
                ethernet.ip(etherparse::IpHeaders::Ipv6(header, Default::default()))
            }
            _ => anyhow::bail!("a packet has one address family"),
        };
        let mut frame = Vec::new();
        match self.proto {
            Proto::Tcp => ip
                .tcp(CLIENT_PORT, self.port, nonce, 65_535)
                .syn()
                .options(&[TcpOptionElement::MaximumSegmentSize(
                    CLIENT_MTU - self.headers(),
                )])?
                .write(&mut frame, &[]),
            Proto::Udp => ip
                .udp(CLIENT_PORT, self.port)
                .write(&mut frame, &nonce.to_be_bytes()),
        }?;
        Ok(frame)
    }

    /// The length of its headers over TCP, without options, in bytes.
    fn headers(&self) -> u16 {
        if self.client.is_ipv4() { 40 } else { 60 }
    }

    /// Returns what connection tracking knows of it, where it has seen it.
    fn connection(&self) -> Connection {
        Connection {
            source: (self.client, CLIENT_PORT),
            destination: (self.destination, self.port),
            protocol: if self.proto == Proto::Tcp { 6 } else { 17 },
            leaves_as: None,
            zone: 0,
        }
    }

    /// Returns what there is to say of how it left.
    async fn judge(
        &self,
        links: &Links,
        config: &Config,
        caught: Option<Caught>,
    ) -> Result<Vec<Finding>> {
        let what = format!(
            "a synthetic {} packet from {} to {} port {}, which is steered to {},",
            match self.proto {
                Proto::Tcp => "TCP",
                Proto::Udp => "UDP",
            },
            self.lan.name,
            self.destination,
            self.port,
            self.egress
        );
        let Some(caught) = caught else {
            return Ok(vec![Finding::new(
                Level::Warning,
                format!("{what} left by no interface"),
                "Something on this gateway drops it, unless rules admit only clients that they know: see what else is found, ip xfrm policy, and \
                 nft monitor trace",
            )]);
        };
        let left = nix::net::if_::if_indextoname(caught.interface);
        let left = left.map_or_else(
            |_| "another interface".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        let mut egresses = config.egress.iter();
        let egress = egresses.find(|(_, egress)| egress.interface == left);
        let interface = links.interface(&left).await?;
        let (Some((name, egress)), Some(interface)) = (egress, interface) else {
            return Ok(vec![Finding::new(
                Level::Error,
                format!("{what} left by {left}"),
                "Look for rules that take its firewall mark or come before Breakout's: ip rule; nft list ruleset",
            )]);
        };
        let mut findings = Vec::new();
        // An address of no interface may be routed here.
        let owner = owner_of(caught.source);
        let is_elsewhere = owner.is_some_and(|owner| owner != interface.name);
        let is_masqueraded =
            egress.masquerade && (self.client.is_ipv4() || egress.is_masqueraded());
        if is_elsewhere || is_masqueraded && caught.source == self.client {
            findings.push(Finding::new(
                Level::Error,
                format!("{what} left by {} with the source address {}, which is not that interface's", interface.name, caught.source),
                format!("Look for rules that translate it: nft list ruleset; or set masquerade = true in [egress.{name}]"),
            ));
        }
        if caught.service & !3 != SERVICE {
            findings.push(Finding::new(
                Level::Note,
                format!(
                    "{what} left with DSCP {} in the place of {}",
                    caught.service >> 2,
                    SERVICE >> 2
                ),
                "Look for rules that set it, if that is not meant: nft list ruleset",
            ));
        }
        if u32::from(caught.segment_size) + u32::from(self.headers()) > interface.mtu {
            findings.push(Finding::new(
                Level::Warning,
                format!("{what} announces segments of {} bytes, which do not fit into the MTU of {} ({})", caught.segment_size, interface.name, interface.mtu),
                "Set the MTU of the LAN and of its clients no higher, or reload Breakout if it has just changed: it holds segments to it",
            ));
        }
        Ok(findings)
    }
}
