//! Everybody's rules and routes, to look for clashes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::Links;
use super::gateway::{address_of, hops};
use super::protocol::PROTOCOL;
use super::routing::table;

/// A rule of policy routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleFound {
    /// The address family.
    pub v6: bool,
    /// Its priority.
    pub priority: u32,
    /// The bits of the firewall mark that it asks for; 0 if it asks for none.
    pub mask: u32,
    /// The table that it leads to; 0 if to none.
    pub table: u32,
    /// True if it is about packets that do not have that mark.
    pub is_inverted: bool,
    /// True if it is that of VRFs.
    pub is_l3mdev: bool,
    /// True if it leaves out routes for being too short, as default routes.
    pub suppresses: bool,
    /// True if a Breakout controller made it.
    pub is_ours: bool,
}

/// A route to a neighbour or network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteFound {
    /// The destinations.
    pub prefix: IpNet,
    /// The interface.
    pub interface: String,
    /// The table that it is in.
    pub table: u32,
    /// True if a Breakout controller made it.
    pub is_ours: bool,
}

impl Links {
    /// All rules of both address families.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn rules(&self) -> Result<Vec<RuleFound>> {
        let mut found = Vec::new();
        for (v6, version) in [(false, IpVersion::V4), (true, IpVersion::V6)] {
            let rules: Vec<RuleMessage> = self
                .handle
                .rule()
                .get(version)
                .execute()
                .try_collect()
                .await
                .context("cannot list the rules")?;
            found.extend(rules.iter().map(|rule| rule_found(v6, rule)));
        }
        Ok(found)
    }

    /// All routes over interfaces, in all tables but the kernel's own of local addresses.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn routes(&self) -> Result<Vec<RouteFound>> {
        let mut links = self.handle.link().get().execute();
        let mut names = HashMap::new();
        while let Some(link) = links
            .try_next()
            .await
            .context("cannot list the interfaces")?
        {
            let name = link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                });
            names.insert(link.header.index, name.unwrap_or_default());
        }
        let mut found = Vec::new();
        for dump in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let routes: Vec<RouteMessage> = self
                .handle
                .route()
                .get(dump)
                .execute()
                .try_collect()
                .await
                .context("cannot list the routes")?;
            found.extend(routes.iter().flat_map(|route| routes_found(route, &names)));
        }
        Ok(found)
    }
}

fn rule_found(v6: bool, rule: &RuleMessage) -> RuleFound {
    let mut found = RuleFound {
        v6,
        priority: 0,
        mask: 0,
        is_inverted: rule.header.flags.contains(RuleFlags::Invert),
        table: rule.header.table.into(),
        is_l3mdev: false,
        suppresses: false,
        is_ours: false,
    };
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => found.priority = *priority,
            RuleAttribute::FwMask(mask) => found.mask = *mask,
            RuleAttribute::Table(table) => found.table = *table,
            RuleAttribute::L3MDev(is_l3mdev) => found.is_l3mdev = *is_l3mdev,
            RuleAttribute::SuppressPrefixLen(length) => found.suppresses = *length != u32::MAX,
            RuleAttribute::Protocol(protocol) => found.is_ours = *protocol == PROTOCOL,
            _ => {}
        }
    }
    found
}

/// A route, once for each interface that it leads to.
fn routes_found(route: &RouteMessage, names: &HashMap<u32, String>) -> Vec<RouteFound> {
    /// The kernel's table of local and broadcast addresses.
    const LOCAL: u32 = 255;
    let (mut destination, mut indices) = (None, Vec::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = address_of(address),
            RouteAttribute::Oif(index) => indices.push(*index),
            _ => {}
        }
    }
    indices.extend(hops(route).map(|hop| hop.interface_index));
    let any = match route.header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let prefix = IpNet::new(
        destination.unwrap_or(any),
        route.header.destination_prefix_length,
    );
    let table = table(route);
    let (Ok(prefix), true) = (prefix, table != LOCAL) else {
        return Vec::new();
    };
    let found = indices.into_iter().map(|index| RouteFound {
        prefix,
        interface: names.get(&index).cloned().unwrap_or_default(),
        table,
        is_ours: route.header.protocol == PROTOCOL,
    });
    found.collect()
}
