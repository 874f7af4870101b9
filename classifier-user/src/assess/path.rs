//! The paths that are assessed, and the routes that lead there meanwhile.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::outcome::PathName;
use crate::control::EgressStatus;
use crate::health::Bound;
use crate::links::{ASSESSED, Gateway, Interface, Links, ProbeWay, RouteRule};

/// A path that packets can take.
pub(super) struct Path {
    pub(super) name: PathName,
    pub(super) v6: bool,
    pub(super) bound: Bound,
    /// The longest packet of its interface, in bytes; none on the ordinary path.
    pub(super) mtu: Option<u32>,
    /// The addresses of its interface.
    pub(super) own: Vec<IpAddr>,
    links: Links,
}

impl Path {
    /// Returns the path that everything takes that is not steered.
    pub(super) fn ordinary(links: &Links, v6: bool) -> Self {
        Path {
            name: PathName::new(None, v6),
            v6,
            bound: Bound::default(),
            mtu: None,
            own: Vec::new(),
            links: links.clone(),
        }
    }

    /// Returns the path by an egress, or in words why it has none in this address family.
    pub(super) async fn by_egress(
        links: &Links,
        (name, egress): (&str, &EgressStatus),
        number: u32,
        v6: bool,
    ) -> Result<std::result::Result<Self, String>> {
        let Some(interface) = links.interface(&egress.interface).await? else {
            return Ok(Err(format!("there is no interface {}", egress.interface)));
        };
        let next_hop = if v6 { &egress.v6 } else { &egress.v4 };
        let gateway = match &next_hop.gateway {
            Some(gateway) => {
                Gateway::Address(gateway.parse().context("the controller names no address")?)
            }
            None if next_hop.direct => Gateway::Peer,
            None => {
                let problem = egress.problem.clone();
                return Ok(Err(
                    problem.unwrap_or_else(|| "there is no next hop".to_owned())
                ));
            }
        };
        let from = if v6 {
            links.probe_source(&interface).await?
        } else {
            Ipv6Addr::UNSPECIFIED
        };
        let has_source = if v6 {
            !from.is_unspecified() && !from.is_unicast_link_local()
        } else {
            interface.has_usable_address(false)
        };
        if !has_source {
            return Ok(Err(format!("{} has no address", interface.name)));
        }
        let mark = egress.mark.as_deref().map(mark_of).transpose()?;
        // In route mode the mark leads there already.
        let way = mark.is_none().then(|| ProbeWay {
            route: RouteRule {
                mark: 0,
                table: ASSESSED.start + number,
                interface: interface.index,
                gateway,
                is_onlink: is_beyond(&interface, gateway),
                v6,
            },
            from,
        });
        Ok(Ok(Path {
            name: PathName::new(Some(name), v6),
            v6,
            mtu: Some(interface.mtu),
            own: interface.addresses.iter().map(IpNet::addr).collect(),
            bound: Bound {
                interface: Some(interface.name),
                mark: mark.unwrap_or(0),
                way,
            },
            links: links.clone(),
        }))
    }

    /// Makes packets of this path's sockets to an address leave by it.
    pub(super) async fn lead(&self, address: IpAddr) -> Result<()> {
        match &self.bound.way {
            Some(way) => self.links.lead(address, way).await,
            None => Ok(()),
        }
    }
}

/// Reads a mark as `ip rule` writes it, with its mask.
fn mark_of(text: &str) -> Result<u32> {
    let mark = text
        .split('/')
        .next()
        .and_then(|mark| mark.strip_prefix("0x"));
    let mark = mark.and_then(|mark| u32::from_str_radix(mark, 16).ok());
    mark.context("the controller names no mark")
}

/// Tells whether a next hop is in none of the interface's networks.
fn is_beyond(interface: &Interface, gateway: Gateway) -> bool {
    matches!(gateway, Gateway::Address(address) if !interface.is_on_link(address))
}
