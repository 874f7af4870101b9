//! The paths that are assessed, and the routes that lead there meanwhile.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};

use super::outcome::PathName;
use crate::control::EgressStatus;
use crate::health::Bound;
use crate::links::{Gateway, Interface, Links, ProbeWay, RouteRule};

/// The metric of our routes, and with it the number by which they are told from those of the controller's probes: above all tables
/// that egresses have.
const METRIC: u32 = 0x6f61_0000;

/// A path that packets can take.
pub(super) struct Path {
    pub(super) name: PathName,
    pub(super) v6: bool,
    pub(super) bound: Bound,
    /// The longest packet of its interface, in bytes; none on the ordinary path.
    pub(super) mtu: Option<u32>,
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
            links: links.clone(),
        }
    }

    /// Returns the path by an egress, or in words why it has none in this address family. Routes of an assessment that was killed are removed.
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
            None if interface.point_to_point => Gateway::Peer,
            None => return Ok(Err("there is no next hop".to_owned())),
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
        let way = ProbeWay {
            route: RouteRule {
                mark: 0,
                table: METRIC + number,
                interface: interface.index,
                gateway,
                is_onlink: is_beyond(&interface, gateway),
                v6,
            },
            from,
        };
        links.retain_probed(&way, &BTreeSet::new()).await?;
        Ok(Ok(Path {
            name: PathName::new(Some(name), v6),
            v6,
            mtu: Some(interface.mtu),
            bound: Bound {
                interface: Some(interface.name),
                mark: 0,
                way: Some(way),
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

    /// Removes the routes.
    pub(super) async fn close(&self) -> Result<()> {
        match &self.bound.way {
            Some(way) => self.links.retain_probed(way, &BTreeSet::new()).await,
            None => Ok(()),
        }
    }
}

/// Tells whether a next hop is in none of the interface's networks.
fn is_beyond(interface: &Interface, gateway: Gateway) -> bool {
    matches!(gateway, Gateway::Address(address) if !interface.is_on_link(address))
}
