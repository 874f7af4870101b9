//! Network interfaces.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};

use super::{Links, is_errno, own};

/// The kind of bonds, which run XDP programs in the drivers of their cards.
const BOND: &str = "bond";

/// A network interface at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address, if it is an Ethernet.
    pub mac: Option<[u8; 6]>,
    /// True if its packets have no link header at all (PPP, tunnels of IP).
    pub is_bare: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// True if it is set up and has a carrier.
    pub running: bool,
    /// True if it leads to one neighbour only, which needs no address (PPP, tunnels).
    pub point_to_point: bool,
    /// Its addresses with their networks.
    pub addresses: Vec<IpNet>,
    /// Those of IPv4 that masquerading would take, in the kernel's order.
    pub primary_v4: Vec<Ipv4Net>,
    /// Of its IPv6 addresses the one that is best to speak from.
    pub speaking_v6: Option<Ipv6Addr>,
    /// The other ends of those of its addresses that have one.
    pub peers: Vec<IpNet>,
    /// The kernel's number of the XDP program that is attached, if there is one.
    pub xdp_program: Option<u32>,
    /// The kernel's name for what it is, if it is neither a network card nor a veth.
    pub kind: Option<String>,
    /// That program runs in the driver.
    pub has_native_program: bool,
    /// It is a veth.
    pub is_veth: bool,
    /// Its root queueing discipline, as `tc` names it.
    pub qdisc: String,
}

/// Queueing disciplines that the kernel gives interfaces by itself; the first to those that were never up.
const DEFAULT_QDISCS: [&str; 6] = ["noop", "noqueue", "mq", "fq", "fq_codel", "pfifo_fast"];

/// Reason why XDP does not redirect to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRedirect {
    /// It is no network card, but this.
    Kind(String),
    /// It has this queueing discipline.
    Qdisc(String),
    /// Its driver takes no redirected frames now.
    Driver,
}

impl NoRedirect {
    /// The reason in words, about the interface with this name.
    pub fn about(&self, interface: &str) -> String {
        match self {
            NoRedirect::Kind(kind) => format!("{interface} is {kind}"),
            NoRedirect::Qdisc(qdisc) => {
                format!("{interface} has the queueing discipline {qdisc}, which XDP would go past")
            }
            NoRedirect::Driver => format!(
                "{interface} takes no redirected frames now, or the kernel does not tell (before Linux 6.3): its driver wants an XDP \
                 program on it (or, on a veth, GRO at the other end)"
            ),
        }
    }
}

impl Interface {
    /// Returns whether an address is directly reachable over it.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let mut networks = self.addresses.iter().chain(&self.peers);
        link_local || networks.any(|net| net.contains(&address))
    }

    /// Returns whether the interface has an address of the family that reaches beyond the link.
    pub fn has_usable_address(&self, v6: bool) -> bool {
        self.addresses.iter().any(|net| match net.addr() {
            IpAddr::V4(_) => !v6,
            IpAddr::V6(address) => v6 && !address.is_unicast_link_local(),
        })
    }

    /// The addresses by which the gateway speaks there, one of each family; unspecified where it has none.
    pub fn speaking(&self) -> (Ipv4Addr, Ipv6Addr) {
        let mut v4 = self.addresses.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(net.addr()),
            IpNet::V6(_) => None,
        });
        (
            v4.next().unwrap_or(Ipv4Addr::UNSPECIFIED),
            self.speaking_v6.unwrap_or(Ipv6Addr::UNSPECIFIED),
        )
    }

    /// Returns why XDP does not redirect to the interface. Only network cards and the like take redirected frames, and the kernel drops them
    /// silently elsewhere; and XDP goes past queueing disciplines, which somebody has set for a reason.
    pub fn no_redirect(&self) -> Option<NoRedirect> {
        if self.mac.is_none() {
            return Some(NoRedirect::Kind("no Ethernet".to_owned()));
        }
        if let Some(kind) = &self.kind {
            return Some(NoRedirect::Kind(format!("a {kind}")));
        }
        let is_default = self.qdisc.is_empty() || DEFAULT_QDISCS.contains(&self.qdisc.as_str());
        if !is_default {
            return Some(NoRedirect::Qdisc(self.qdisc.clone()));
        }
        // If the kernel does not tell, as before Linux 6.3: most cards take them while they have a program of their own.
        let takes = super::xdp_features::takes_redirects(self.index)
            .unwrap_or(self.is_veth || self.has_native_program);
        (!takes).then_some(NoRedirect::Driver)
    }

    /// Returns whether the kernel tells what its driver takes (Linux 6.3).
    pub fn tells_xdp_features(&self) -> bool {
        super::xdp_features::takes_redirects(self.index).is_some()
    }

    /// Returns whether XDP programs can run in its driver. If the kernel does not tell, those of network cards are taken to have that.
    pub fn has_native_xdp(&self) -> bool {
        let is_card = self.kind.as_ref().is_none_or(|kind| kind == BOND);
        is_card && super::xdp_features::has_native_xdp(self.index).unwrap_or(true)
    }

    /// The longest IP packet that it takes, in bytes.
    pub fn longest_packet(&self) -> u16 {
        u16::try_from(self.mtu).unwrap_or(u16::MAX)
    }

    /// Returns whether the interface itself has this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }
}

impl Links {
    /// The interface with this name, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn interface(&self, name: &str) -> Result<Option<Interface>> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let messages: Vec<_> = match request.execute().try_collect().await {
            Err(error) if is_errno(&error, libc::ENODEV) => return Ok(None),
            other => other.with_context(|| format!("cannot look up {name}"))?,
        };
        let Some(message) = messages.first() else {
            return Ok(None);
        };
        // The kernel finds an interface by its alternative names too, which nftables and others do not know.
        let is_named_so = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(own) if own == name);
        if !message.attributes.iter().any(is_named_so) {
            return Ok(None);
        }
        let mut interface = from_message(name, message);
        let index = interface.index;
        let mut addresses = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        let mut speaking = Vec::new();
        while let Some(message) = addresses
            .try_next()
            .await
            .with_context(|| format!("cannot list the addresses of {name}"))?
        {
            interface.addresses.extend(own::network(&message));
            interface.peers.extend(own::peer(&message));
            interface.primary_v4.extend(own::primary_v4(&message));
            speaking.extend(own::rank_v6(&message));
        }
        interface.speaking_v6 = speaking.into_iter().min().map(|(_, address)| address);
        interface.addresses.sort_unstable();
        Ok(Some(interface))
    }
}

/// Returns what the driver says of itself, if it is more than a network card: `wlan`, `wwan`.
fn device_type(name: &str) -> Option<String> {
    let event = fs::read_to_string(format!("/sys/class/net/{name}/uevent")).ok()?;
    let mut kinds = event
        .lines()
        .filter_map(|line| line.strip_prefix("DEVTYPE="));
    kinds.next().map(str::to_owned)
}

fn from_message(name: &str, message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut interface = Interface {
        name: name.to_owned(),
        index: message.header.index,
        mac: None,
        is_bare: is_bare(message.header.link_layer_type),
        mtu: 0,
        running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        point_to_point: flags.contains(LinkFlags::Pointopoint),
        addresses: Vec::new(),
        primary_v4: Vec::new(),
        speaking_v6: None,
        peers: Vec::new(),
        xdp_program: None,
        kind: device_type(name),
        has_native_program: false,
        is_veth: false,
        qdisc: String::new(),
    };
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) if ethernet => {
                interface.mac = bytes.as_slice().try_into().ok();
            }
            // GRE without a remote end has the outer headers as its link header.
            LinkAttribute::Broadcast(remote) if is_gre(message.header.link_layer_type) => {
                interface.is_bare &= remote.iter().any(|byte| *byte != 0);
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::LinkInfo(about) => {
                let mut kinds = about.iter().filter_map(|about| match about {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
                match kinds.next() {
                    Some(InfoKind::Veth) => interface.is_veth = true,
                    Some(kind) => {
                        // Their packets come in with the link header of what enclosed them.
                        let encloses =
                            matches!(kind, InfoKind::Xfrm | InfoKind::Vti | InfoKind::Vti6);
                        interface.is_bare &= !encloses;
                        interface.kind = Some(kind.to_string());
                    }
                    None => {}
                }
            }
            LinkAttribute::Qdisc(name) => interface.qdisc.clone_from(name),
            LinkAttribute::Xdp(attributes) => {
                let mut numbers = attributes.iter().filter_map(|attribute| match attribute {
                    LinkXdp::ProgId(number) => Some(*number),
                    _ => None,
                });
                interface.xdp_program = numbers.next();
                interface.has_native_program =
                    attributes.contains(&LinkXdp::Attached(XdpAttached::Driver));
            }
            _ => {}
        }
    }
    interface
}

fn is_gre(link_layer: LinkLayerType) -> bool {
    matches!(link_layer, LinkLayerType::Ipgre | LinkLayerType::Ip6gre)
}

/// Returns whether packets of a device of this type begin with the IP header (`dev_is_mac_header_xmit`, and PPP).
fn is_bare(link_layer: LinkLayerType) -> bool {
    matches!(
        link_layer,
        LinkLayerType::None
            | LinkLayerType::Ppp
            | LinkLayerType::Rawip
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
    )
}

/// The inode of this thread's network namespace, which identifies it.
///
/// # Errors
///
/// When /proc is not mounted.
pub fn network_namespace() -> Result<u64> {
    let metadata = fs::metadata("/proc/thread-self/ns/net")
        .context("cannot identify the network namespace; is /proc mounted?")?;
    Ok(metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cards_without_a_shaper_take_redirected_frames() {
        let interface = |attribute: LinkAttribute| {
            let mut message = LinkMessage::default();
            message.header.link_layer_type = LinkLayerType::Ether;
            message.attributes = vec![LinkAttribute::Address(vec![2; 6]), attribute];
            from_message("none", &message)
        };
        let kind = |kind| interface(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        let qdisc = |name: &str| Interface {
            is_veth: true,
            ..interface(LinkAttribute::Qdisc(name.to_owned()))
        };
        assert_eq!(kind(InfoKind::Veth).no_redirect(), None);
        for (made, what) in [
            (InfoKind::Vlan, "a vlan"),
            (InfoKind::Bridge, "a bridge"),
            (InfoKind::Bond, "a bond"),
            (InfoKind::Wireguard, "a wireguard"),
        ] {
            let expected = NoRedirect::Kind(what.to_owned());
            assert_eq!(kind(made).no_redirect(), Some(expected));
        }
        for name in DEFAULT_QDISCS {
            assert_eq!(qdisc(name).no_redirect(), None, "{name}");
        }
        for name in ["cake", "htb", "tbf", "netem"] {
            let expected = NoRedirect::Qdisc(name.to_owned());
            assert_eq!(qdisc(name).no_redirect(), Some(expected));
        }
        // There is no interface with the number 0, so the kernel does not tell what it takes.
        let mut card = qdisc("mq");
        card.is_veth = false;
        assert_eq!(card.no_redirect(), Some(NoRedirect::Driver));
        card.has_native_program = true;
        assert_eq!(card.no_redirect(), None);
        let mut tunnel = qdisc("noqueue");
        tunnel.mac = None;
        let expected = NoRedirect::Kind("no Ethernet".to_owned());
        assert_eq!(tunnel.no_redirect(), Some(expected));
        assert!(kind(InfoKind::Bond).has_native_xdp() && !kind(InfoKind::Vlan).has_native_xdp());
    }
}
