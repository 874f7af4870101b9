//! The addresses of the gateway itself, which no list may steer away from it.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};

use super::Links;

impl Links {
    /// All addresses of this network namespace and the broadcast addresses of its IPv4 networks, sorted.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn own_addresses(&self) -> Result<Vec<IpAddr>> {
        let messages = self.address_messages().await?;
        let mut own: Vec<IpAddr> = Vec::new();
        for message in &messages {
            own.extend(network(message).map(|net| net.addr()));
            own.extend(broadcasts(message));
        }
        own.sort_unstable();
        own.dedup();
        Ok(own)
    }

    /// All networks that this network namespace has an address in, sorted.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn own_networks(&self) -> Result<Vec<IpNet>> {
        let messages = self.address_messages().await?;
        let networks = messages.iter().filter_map(network);
        let mut networks: Vec<IpNet> = networks.map(|net| net.trunc()).collect();
        networks.sort_unstable();
        networks.dedup();
        Ok(networks)
    }

    /// Of all IPv6 addresses the one that is best to speak from.
    pub(super) async fn speaking_v6(&self) -> Result<Option<Ipv6Addr>> {
        let messages = self.address_messages().await?;
        let best = messages.iter().filter_map(rank_v6).min();
        Ok(best.map(|(_, address)| address))
    }

    async fn address_messages(&self) -> Result<Vec<AddressMessage>> {
        let messages = self.handle.address().get().execute();
        let messages = messages.try_collect().await;
        messages.context("cannot list this machine's addresses")
    }
}

/// The IPv6 address in a message, if it can be used: before others those that reach furthest, and of these before others those that
/// stay (RFC 6724, section 5, has more).
pub(super) fn rank_v6(message: &AddressMessage) -> Option<([bool; 3], Ipv6Addr)> {
    let flags = message.header.flags;
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let address = match network(message)? {
        IpNet::V6(net) if !flags.intersects(unusable) => net.addr(),
        _ => return None,
    };
    let passing = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Secondary;
    let rank = [
        address.is_unicast_link_local(),
        flags.intersects(passing),
        address.is_unique_local(),
    ];
    (!address.is_loopback()).then_some((rank, address))
}

/// The IPv4 address in a message, if masquerading would take it: of those of its network the first one, and not for the link or the host
/// alone (`inet_select_addr`).
pub(super) fn primary_v4(message: &AddressMessage) -> Option<Ipv4Net> {
    let is_secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
    match network(message)? {
        IpNet::V4(net) if !is_secondary && message.header.scope == AddressScope::Universe => {
            Some(net)
        }
        _ => None,
    }
}

/// The broadcast addresses of the network in a message: the one that was set, and the network's last address.
fn broadcasts(message: &AddressMessage) -> Vec<IpAddr> {
    let length = message.header.prefix_len;
    let addresses = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            AddressAttribute::Broadcast(address) => Some(IpAddr::V4(*address)),
            // With a peer the network is the peer's. RFC 3021: networks of two addresses have no broadcast address.
            AddressAttribute::Address(IpAddr::V4(address)) if length < 31 => {
                let net = Ipv4Net::new(*address, length).ok()?;
                Some(net.broadcast().into())
            }
            _ => None,
        });
    addresses.collect()
}

/// The network of the other end of an address in a message, if it has one.
pub(super) fn peer(message: &AddressMessage) -> Option<IpNet> {
    let own = network(message)?.addr();
    let mut peers = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) if *address != own => Some(*address),
            _ => None,
        });
    IpNet::new(peers.next()?, message.header.prefix_len).ok()
}

/// The interface's own address in a message, with its network.
pub(super) fn network(message: &AddressMessage) -> Option<IpNet> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            // For IPv4, Local is the interface's own address; Address is the peer's on point-to-point links.
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            _ => {}
        }
    }
    IpNet::new(own?, message.header.prefix_len).ok()
}
