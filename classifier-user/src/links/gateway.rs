//! The next hops of an egress interface: as configured, or learnt from its routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteType, RouteVia,
};

use super::protocol::PROTOCOL;
use super::{Interface, Links, is_errno};

/// The way out over an interface for one address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gateway {
    /// There is none.
    #[default]
    None,
    /// The other end of a point-to-point link, or the destination itself where all of them are neighbours.
    Peer,
    /// A neighbour.
    Address(IpAddr),
}

/// The ways out over an interface, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateways {
    /// For IPv4.
    pub v4: Result<Gateway, NoWayOut>,
    /// For IPv6.
    pub v6: Result<Gateway, NoWayOut>,
}

/// An interface cannot be an egress.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWayOut {
    /// The configured gateway is somewhere else.
    #[error(
        "gateway {gateway} is not on link on {interface}, which has {addresses}. \
         Correct the gateway, or give the interface an address in its network"
    )]
    NotOnLink {
        /// The gateway.
        gateway: IpAddr,
        /// The interface.
        interface: String,
        /// The interface's addresses.
        addresses: String,
    },
    /// The gateway is the gateway itself.
    #[error(
        "gateway {gateway} is this machine's own address on {interface}; give the next router's"
    )]
    Own {
        /// The gateway.
        gateway: IpAddr,
        /// The interface.
        interface: String,
    },
    /// None is configured and none can be learnt.
    #[error(
        "no gateway is known for {interface}: none is configured and no route over it has one. \
         Set gateway (or gateway6) in its [egress] section"
    )]
    Unknown {
        /// The interface.
        interface: String,
    },
    /// The next hop of the default route is of the other address family.
    #[error(
        "the default route over {interface} has the next hop {gateway} of another address family, which is not supported. \
         Set gateway in its [egress] section if the router has an address of this family too"
    )]
    OtherFamily {
        /// The next hop.
        gateway: IpAddr,
        /// The interface.
        interface: String,
    },
    /// There is no such interface.
    #[error("there is no interface {interface} in this network namespace; see: ip link")]
    Missing {
        /// The interface.
        interface: String,
    },
    /// The interface is down.
    #[error(
        "interface {interface} is down or has no carrier; set it up with: ip link set {interface} up"
    )]
    Down {
        /// The interface.
        interface: String,
    },
}

impl Links {
    /// The ways out over an interface.
    ///
    /// # Errors
    ///
    /// [`NoWayOut`] when there is none for either family, or the kernel does not answer.
    pub async fn gateways(
        &self,
        interface: &Interface,
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    ) -> Result<Gateways> {
        if !interface.running {
            return Err(NoWayOut::Down {
                interface: interface.name.clone(),
            }
            .into());
        }
        let v4 = self.way_out(interface, v4.map(IpAddr::V4), false).await?;
        let v6 = self.way_out(interface, v6.map(IpAddr::V6), true).await?;
        if v4 == Ok(Gateway::None) && v6 == Ok(Gateway::None) {
            return Err(NoWayOut::Unknown {
                interface: interface.name.clone(),
            }
            .into());
        }
        Ok(Gateways { v4, v6 })
    }

    /// The configured gateway if there is one, else one that is learnt.
    async fn way_out(
        &self,
        interface: &Interface,
        configured: Option<IpAddr>,
        v6: bool,
    ) -> Result<Result<Gateway, NoWayOut>> {
        match configured {
            Some(address) if is_near(interface, address) => Ok(on_link(interface, address, &[])),
            Some(address) => {
                let routes = self.routes_over(interface, v6).await?;
                Ok(on_link(interface, address, &routes.direct))
            }
            None => {
                let routes = self.routes_over(interface, v6).await?;
                Ok(learnt(interface, v6, routes))
            }
        }
    }

    /// The routes over an interface, of all tables but ours.
    async fn routes_over(&self, interface: &Interface, v6: bool) -> Result<RoutesOver> {
        let mut over = RoutesOver::default();
        let filter = RouteAttribute::Oif(interface.index);
        let listed = self.filtered_routes(v6, filter, |route| {
            if route.header.protocol != PROTOCOL {
                over.add(interface, &route);
            }
        });
        match listed.await {
            // The interface has gone since it was looked at.
            Err(error) if is_errno(&error, libc::ENODEV) => {}
            other => other.context("cannot list the routes")?,
        }
        Ok(over)
    }
}

/// Next hops that the routes over an interface have.
#[derive(Default)]
struct RoutesOver {
    /// Networks that are reached without a gateway.
    direct: Vec<IpNet>,
    gateways: Vec<Hop>,
    /// True if there is a default route without a gateway: everything is a neighbour.
    is_direct_default: bool,
    /// The next hop of a default route, if it is of the other address family (RFC 5549).
    other_family: Option<IpAddr>,
}

/// A gateway of a route.
struct Hop {
    /// The default route comes first, then the smallest metric.
    rank: (bool, u32),
    address: IpAddr,
    /// The route says that it is on the link.
    is_onlink: bool,
}

impl RoutesOver {
    fn add(&mut self, interface: &Interface, route: &RouteMessage) {
        let (mut index, mut gateway, mut destination, mut metric) = (None, None, None, 0);
        let mut via = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Gateway(address) => gateway = address_of(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => via = Some(IpAddr::V4(*address)),
                RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some(IpAddr::V6(*address)),
                RouteAttribute::Destination(address) => destination = address_of(address),
                RouteAttribute::Priority(priority) => metric = *priority,
                _ => {}
            }
        }
        let length = route.header.destination_prefix_length;
        let rank = (length != 0, metric);
        self.gateways.extend(hops(route).filter_map(|hop| {
            let mut gateways = hop.attributes.iter().filter_map(gateway_of);
            let address = gateways
                .next()
                .filter(|_| hop.interface_index == interface.index)?;
            let is_onlink = hop.flags.contains(RouteNextHopFlags::Onlink);
            Some(Hop {
                rank,
                address,
                is_onlink,
            })
        }));
        if index != Some(interface.index) {
            return;
        }
        let is_default = length == 0 && route.header.kind == RouteType::Unicast;
        if let (true, Some(_)) = (is_default, via) {
            self.other_family = via;
        }
        self.is_direct_default |= is_default && gateway.is_none() && via.is_none();
        let is_onlink = route.header.flags.contains(RouteFlags::Onlink);
        match (gateway, destination) {
            (Some(address), _) => self.gateways.push(Hop {
                rank,
                address,
                is_onlink,
            }),
            (None, Some(destination))
                if route.header.kind == RouteType::Unicast && via.is_none() =>
            {
                self.direct.extend(IpNet::new(destination, length).ok());
            }
            (None, _) => {}
        }
    }
}

/// The next hops of a route that has several.
pub(super) fn hops(route: &RouteMessage) -> impl Iterator<Item = &RouteNextHop> {
    let several = route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::MultiPath(several) => Some(several),
            _ => None,
        });
    several.flatten()
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        _ => None,
    }
}

/// The gateway of the interface's default route, else of any route over it. The kernel keeps routes whose gateway is no longer
/// in a network of the interface, because its address is gone; those do not count.
fn learnt(interface: &Interface, v6: bool, routes: RoutesOver) -> Result<Gateway, NoWayOut> {
    let has_address = interface.has_usable_address(v6);
    let mut gateways = routes.gateways;
    gateways.retain(|hop| {
        let is_reachable =
            hop.is_onlink || is_near(interface, hop.address) || is_in(&routes.direct, hop.address);
        is_reachable && (has_address || !v6)
    });
    match gateways.iter().min_by_key(|hop| hop.rank) {
        Some(hop) => Ok(Gateway::Address(hop.address)),
        None if (interface.point_to_point || routes.is_direct_default) && has_address => {
            Ok(Gateway::Peer)
        }
        None => match routes.other_family {
            Some(gateway) => Err(NoWayOut::OtherFamily {
                gateway,
                interface: interface.name.clone(),
            }),
            None => Ok(Gateway::None),
        },
    }
}

/// Returns whether an address is reached over the interface without any route.
fn is_near(interface: &Interface, address: IpAddr) -> bool {
    interface.is_on_link(address) || interface.point_to_point
}

fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|net| net.contains(&address))
}

pub(super) fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The configured gateway, if it is on the link or in a network that a route reaches directly.
fn on_link(interface: &Interface, gateway: IpAddr, direct: &[IpNet]) -> Result<Gateway, NoWayOut> {
    if interface.has_address(gateway) {
        return Err(NoWayOut::Own {
            gateway,
            interface: interface.name.clone(),
        });
    }
    if is_near(interface, gateway) || is_in(direct, gateway) {
        return Ok(Gateway::Address(gateway));
    }
    let addresses: Vec<String> = interface
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    Err(NoWayOut::NotOnLink {
        gateway,
        interface: interface.name.clone(),
        addresses: if addresses.is_empty() {
            "no address".to_owned()
        } else {
            addresses.join(", ")
        },
    })
}
