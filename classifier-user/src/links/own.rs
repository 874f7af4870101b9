//! The addresses of the gateway itself, which no list may steer away from it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

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

    async fn address_messages(&self) -> Result<Vec<AddressMessage>> {
        let messages = self.handle.address().get().execute();
        let messages = messages.try_collect().await;
        messages.context("cannot list this machine's addresses")
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
