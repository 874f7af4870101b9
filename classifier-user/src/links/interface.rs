//! What is to know of a network interface.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, LinkXdp,
};

use super::{Links, is_errno, own};

/// The kind of VLAN interfaces.
const VLAN: &str = "vlan";

/// A network interface at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address, if it is an Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up and has a carrier.
    pub running: bool,
    /// Whether it leads to one neighbour only, which needs no address (PPP, tunnels).
    pub point_to_point: bool,
    /// Its addresses with their networks.
    pub addresses: Vec<IpNet>,
    /// The other ends of those of its addresses that have one.
    pub peers: Vec<IpNet>,
    /// The kernel's number of the XDP program that is attached, if there is one.
    pub xdp_program: Option<u32>,
}

impl Interface {
    /// Whether an address is directly reachable over it.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let mut networks = self.addresses.iter().chain(&self.peers);
        link_local || networks.any(|net| net.contains(&address))
    }

    /// Whether the interface has an address of the family that reaches beyond the link.
    pub fn has_usable_address(&self, v6: bool) -> bool {
        self.addresses.iter().any(|net| match net.addr() {
            IpAddr::V4(_) => !v6,
            IpAddr::V6(address) => v6 && !address.is_unicast_link_local(),
        })
    }

    /// What stands in the way of XDP redirecting to the interface, if that is known: only network cards and the like
    /// take redirected frames, and the kernel drops them silently elsewhere. To a VLAN interface the kernel itself forwards.
    pub fn no_redirect(&self) -> Option<String> {
        if self.mac.is_none() {
            return Some("no Ethernet".to_owned());
        }
        let kind = self.kind().filter(|kind| kind != VLAN);
        kind.map(|kind| format!("a {kind}"))
    }

    /// Whether the interface takes frames that XDP redirects to it, now. If the kernel does not tell, it is taken to.
    pub fn takes_redirects(&self) -> bool {
        !self.is_vlan() && super::xdp_features::takes_redirects(self.index).unwrap_or(true)
    }

    /// Whether it is a VLAN of another interface, which has no XDP of its own.
    pub fn is_vlan(&self) -> bool {
        self.kind().is_some_and(|kind| kind == VLAN)
    }

    /// The kernel's name for what it is, if it is not simply a network card.
    fn kind(&self) -> Option<String> {
        let event = fs::read_to_string(format!("/sys/class/net/{}/uevent", self.name));
        let event = event.unwrap_or_default();
        let mut kinds = event
            .lines()
            .filter_map(|line| line.strip_prefix("DEVTYPE="));
        kinds.next().map(str::to_owned)
    }

    /// Whether the interface itself has this address.
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
        while let Some(message) = addresses
            .try_next()
            .await
            .with_context(|| format!("cannot list the addresses of {name}"))?
        {
            interface.addresses.extend(own::network(&message));
            interface.peers.extend(own::peer(&message));
        }
        interface.addresses.sort_unstable();
        Ok(Some(interface))
    }
}

fn from_message(name: &str, message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut interface = Interface {
        name: name.to_owned(),
        index: message.header.index,
        mac: None,
        mtu: 0,
        running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        point_to_point: flags.contains(LinkFlags::Pointopoint),
        addresses: Vec::new(),
        peers: Vec::new(),
        xdp_program: None,
    };
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) if ethernet => {
                interface.mac = bytes.as_slice().try_into().ok();
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Xdp(attributes) => {
                let mut numbers = attributes.iter().filter_map(|attribute| match attribute {
                    LinkXdp::ProgId(number) => Some(*number),
                    _ => None,
                });
                interface.xdp_program = numbers.next();
            }
            _ => {}
        }
    }
    interface
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
