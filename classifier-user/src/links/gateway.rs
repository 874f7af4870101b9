//! The next hops of an egress interface: as configured, or learnt from its routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags,
};

use super::{Interface, Links};

/// The way out over an interface for one address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gateway {
    /// There is none.
    #[default]
    None,
    /// The other end of a point-to-point link.
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
    /// There is no such interface.
    #[error("there is no interface {interface} in this network namespace; see: ip link")]
    Missing {
        /// The interface.
        interface: String,
    },
    /// XDP cannot send over the interface.
    #[error(
        "{interface} is {what}, which takes no frames that XDP redirects; set mode = \"route\" on the egress, or \
         name the network card itself"
    )]
    NoRedirect {
        /// The interface.
        interface: String,
        /// What it is instead of a network card.
        what: String,
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
        let v4 = match v4 {
            Some(address) => on_link(interface, address.into()),
            None => {
                let dump = RouteMessageBuilder::<Ipv4Addr>::new().build();
                Ok(self.learn(interface, dump).await?)
            }
        };
        let v6 = match v6 {
            Some(address) => on_link(interface, address.into()),
            None => {
                let dump = RouteMessageBuilder::<Ipv6Addr>::new().build();
                Ok(self.learn(interface, dump).await?)
            }
        };
        if v4 == Ok(Gateway::None) && v6 == Ok(Gateway::None) {
            return Err(NoWayOut::Unknown {
                interface: interface.name.clone(),
            }
            .into());
        }
        Ok(Gateways { v4, v6 })
    }

    /// The gateway of the interface's default route, else of any route over it, in tables that are not ours.
    async fn learn(&self, interface: &Interface, dump: RouteMessage) -> Result<Gateway> {
        let v6 = dump.header.address_family == AddressFamily::Inet6;
        let has_address = interface.has_usable_address(v6);
        let mut routes = self.handle.route().get(dump).execute();
        let mut best: Option<((bool, u32), IpAddr)> = None;
        while let Some(route) = routes.try_next().await.context("cannot list the routes")? {
            if route.header.protocol == super::routing::PROTOCOL {
                continue;
            }
            let metric = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Priority(metric) => Some(*metric),
                    _ => None,
                });
            let rank = (
                route.header.destination_prefix_length != 0,
                metric.unwrap_or(0),
            );
            let gateway = gateway_over(interface, &route);
            if let Some(gateway) = gateway.filter(|_| has_address || !v6)
                && best.is_none_or(|(known, _)| rank < known)
            {
                best = Some((rank, gateway));
            }
        }
        Ok(match best {
            Some((_, gateway)) => Gateway::Address(gateway),
            None if interface.point_to_point && has_address => Gateway::Peer,
            None => Gateway::None,
        })
    }
}

/// The next hop of a route over an interface, also if it is one of several. The kernel keeps routes whose gateway is no longer in
/// a network of the interface, because its address is gone; those do not count.
fn gateway_over(interface: &Interface, route: &RouteMessage) -> Option<IpAddr> {
    let (mut index, mut gateway) = (None, None);
    let mut hops = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(address) => gateway = address_of(address),
            RouteAttribute::MultiPath(several) => {
                hops.extend(several.iter().map(|hop| {
                    let mut gateways =
                        hop.attributes
                            .iter()
                            .filter_map(|attribute| match attribute {
                                RouteAttribute::Gateway(address) => address_of(address),
                                _ => None,
                            });
                    let is_onlink = hop.flags.contains(RouteNextHopFlags::Onlink);
                    (Some(hop.interface_index), gateways.next(), is_onlink)
                }));
            }
            _ => {}
        }
    }
    hops.push((
        index,
        gateway,
        route.header.flags.contains(RouteFlags::Onlink),
    ));
    hops.into_iter().find_map(|(index, gateway, is_onlink)| {
        let gateway = gateway.filter(|_| index == Some(interface.index))?;
        let is_reachable = is_onlink || interface.is_on_link(gateway) || interface.point_to_point;
        is_reachable.then_some(gateway)
    })
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn on_link(interface: &Interface, gateway: IpAddr) -> Result<Gateway, NoWayOut> {
    if interface.has_address(gateway) {
        return Err(NoWayOut::Own {
            gateway,
            interface: interface.name.clone(),
        });
    }
    if interface.is_on_link(gateway) || interface.point_to_point {
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
