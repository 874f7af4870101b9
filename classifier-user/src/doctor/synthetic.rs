//! Synthetic packets: of each kind that is steered one is put onto each LAN interface, as from a client that does not exist, and caught before
//! it leaves by any other. It goes through the programs, routes, rules and translation as clients' packets do, so it shows where those go.
//! Nothing reaches a wire but the gateway's own questions for neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::{PacketBuilder, TcpOptionElement};
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::time::sleep;

use super::forward::{destinations, of_family};
use super::{Finding, Level};
use crate::config::{Config, lan_number};
use crate::datapath::{Catcher, Caught};
use crate::explain::{Proto, Query};
use crate::links::conntrack::{self, Connection};
use crate::links::{Interface, Links};
use crate::ruleset::Ruleset;

/// How long a packet may take through the gateway.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);
/// The port of the client that does not exist.
const CLIENT_PORT: u16 = 61_013;
/// Its MAC address: one that its owner has given himself.
const CLIENT_MAC: [u8; 6] = [0x02, 0x62, 0x6f, 0, 0, 1];
/// The type of service that it asks for: expedited forwarding, as calls do.
const SERVICE: u8 = 46 << 2;
/// The MTU of its link, to which the segments fit that it announces.
const CLIENT_MTU: u16 = 1500;
/// How many addresses are tried for one that nobody has.
const CANDIDATES: u32 = 8;

/// What came of all of them.
pub struct Shown {
    /// How many packets were sent.
    pub sent: usize,
    /// What is wrong with their ways.
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

/// What the running controller is asked.
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
    let nonce = fastrand::u32(1..);
    let interfaces = others(config)?;
    let mut catcher = Catcher::attach(nonce, interfaces.iter().map(String::as_str))?;
    let mut shown = Shown {
        sent: 0,
        findings: Vec::new(),
    };
    for (number, lan) in config.lan.iter().enumerate() {
        let Some(lan) = links.interface(&lan.interface).await? else {
            continue;
        };
        for v6 in [false, true] {
            let Some(from) = unused(&links, &lan, v6).await? else {
                continue;
            };
            for (destination, protocol, port) in destinations(ruleset, v6) {
                let proto = if protocol == "tcp" {
                    Proto::Tcp
                } else {
                    Proto::Udp
                };
                let mut query = Query::new(destination, proto, port);
                query.from = Some(from);
                query.lan = u32::from(lan_number(number));
                let Some(egress) = controller.egress(query).await? else {
                    continue;
                };
                let packet = Packet {
                    lan: &lan,
                    client: from,
                    destination,
                    proto,
                    port,
                    egress: &egress,
                };
                catcher.inject(lan.index, &packet.frame(nonce)?)?;
                shown.sent += 1;
                let caught = wait(&mut catcher, v6).await?;
                conntrack::forget(&[packet.connection()])?;
                controller.forget(from).await?;
                shown
                    .findings
                    .extend(packet.judge(&links, config, caught).await?);
            }
        }
    }
    shown
        .findings
        .sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Ok(shown)
}

/// The interfaces that are up and are no LANs.
fn others(config: &Config) -> Result<Vec<String>> {
    let all = getifaddrs().context("cannot list the interfaces")?;
    let is_other = |name: &String| config.lan.iter().all(|lan| lan.interface != *name);
    let up = all.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let mut names: Vec<String> = up
        .map(|interface| interface.interface_name)
        .filter(is_other)
        .collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// An address of the LAN's network that no neighbour has, as far as the gateway knows: one of its last.
async fn unused(links: &Links, lan: &Interface, v6: bool) -> Result<Option<IpAddr>> {
    let Some(net) = of_family(lan, v6).next() else {
        return Ok(None);
    };
    let candidates = (1..=CANDIDATES).filter_map(|back| from_end(&net, back));
    let mut fallback = None;
    for address in candidates.filter(|address| *address != net.addr()) {
        fallback = fallback.or(Some(address));
        if links.neighbour(lan.index, address).await?.mac().is_none() {
            return Ok(Some(address));
        }
    }
    Ok(fallback)
}

/// The address that is so many before the last one of a network.
fn from_end(net: &IpNet, back: u32) -> Option<IpAddr> {
    let address: IpAddr = match net {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.broadcast().to_bits().checked_sub(back)?).into(),
        IpNet::V6(net) => {
            Ipv6Addr::from_bits(net.broadcast().to_bits().checked_sub(back.into())?).into()
        }
    };
    (net.contains(&address) && address != net.network()).then_some(address)
}

/// Waits for the packet that was sent last.
async fn wait(catcher: &mut Catcher, v6: bool) -> Result<Option<Caught>> {
    let sent = Instant::now();
    loop {
        let caught = catcher.caught(v6)?;
        if caught.is_some() || sent.elapsed() > PATIENCE {
            return Ok(caught);
        }
        sleep(LOOK).await;
    }
}

impl Packet<'_> {
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

    /// What connection tracking knows of it, where it has seen it.
    fn connection(&self) -> Connection {
        Connection {
            source: (self.client, CLIENT_PORT),
            destination: (self.destination, self.port),
            protocol: if self.proto == Proto::Tcp { 6 } else { 17 },
            leaves_as: None,
            zone: 0,
        }
    }

    /// What there is to say of how it left.
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
                Level::Error,
                format!("{what} left by no interface"),
                "Something on this gateway drops it: see what else is found; or watch it by: nft monitor trace",
            )]);
        };
        let mut out = None;
        for (name, egress) in &config.egress {
            let interface = links.interface(&egress.interface).await?;
            let interface = interface.filter(|interface| interface.index == caught.interface);
            out = out.or(interface.map(|interface| (name, egress, interface)));
        }
        let Some((name, egress, interface)) = out else {
            let left = nix::net::if_::if_indextoname(caught.interface);
            let left = left.map_or_else(
                |_| "another interface".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            );
            return Ok(vec![Finding::new(
                Level::Error,
                format!("{what} left by {left}"),
                "Look for rules that take its firewall mark or come before Breakout's: ip rule; nft list ruleset",
            )]);
        };
        let mut findings = Vec::new();
        let is_own = interface.has_address(caught.source);
        let is_translated = caught.source != self.client;
        let is_masqueraded =
            egress.masquerade && (self.client.is_ipv4() || egress.is_masqueraded());
        if !is_own && (is_translated || is_masqueraded) {
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
