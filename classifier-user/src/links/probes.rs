//! Routes for probes to egresses in redirect mode, where no rule leads: to single addresses, in the main table, and for nobody but probes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use anyhow::{Context, Result};
use breakout_common::egress::MAX_EGRESSES;
use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage,
};

use super::gateway::Gateway;
use super::protocol::PROTOCOL;
use super::routing::{leads_along, table};
use super::{Interface, Links, RouteRule, RoutingPlan, is_errno};

/// The type of service of probes over IPv4. Routes tell packets by the bits 0x1c of it, and in no standard code point these are 0x0c.
pub const PROBE_TOS: u8 = 0x0c;

/// Metrics of the routes of assessments, one for each egress: above all tables, which are the metrics of probes' routes.
pub const ASSESSED: Range<u32> = 0x6f61_0000..0x6f61_0100;

const _: () = assert!(MAX_EGRESSES <= 0x100);

/// By which way probes leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeWay {
    /// The egress's way.
    pub route: RouteRule,
    /// The egress's address that they have over IPv6.
    pub from: Ipv6Addr,
}

impl Links {
    /// The IPv6 address that probes over an interface have: one of its own, or another of the gateway's where the provider gives it
    /// none, but the LAN a prefix.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn probe_source(&self, interface: &Interface) -> Result<Ipv6Addr> {
        let (_, own) = interface.speaking();
        if !own.is_unspecified() && !own.is_unicast_link_local() {
            return Ok(own);
        }
        Ok(self.speaking_v6().await?.unwrap_or(own))
    }

    /// Leads probes to a target along a way. Doing it again changes nothing.
    ///
    /// Routes over IPv4 are for packets with [`PROBE_TOS`], and over IPv6 for those from the egress's address (`CONFIG_IPV6_SUBTREES`).
    /// Their metric is the number of the egress's table, so that several egresses can have routes to one target: a socket that is bound
    /// to an interface takes the one over that.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the route.
    pub async fn lead(&self, target: IpAddr, way: &ProbeWay) -> Result<()> {
        let request = self.handle.route().add(route(target, way));
        match request.execute().await {
            Err(error) if is_errno(&error, libc::EEXIST) => Ok(()),
            led => led.with_context(|| format!("cannot add the route of probes to {target}")),
        }
    }

    /// Removes the routes of probes along a way to other targets than these.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn retain_probed(&self, way: &ProbeWay, targets: &BTreeSet<IpAddr>) -> Result<()> {
        for route in self.probe_routes(way.route.v6).await? {
            let is_wanted = destination(&route).is_none_or(|target| targets.contains(&target));
            if metric(&route) == Some(way.route.table) && !is_wanted {
                self.delete_route(route).await?;
            }
        }
        Ok(())
    }

    /// Removes the routes of assessments.
    ///
    /// # Errors
    ///
    /// Fails if the kernel refuses.
    pub async fn remove_assessed(&self) -> Result<()> {
        for v6 in [false, true] {
            for route in self.probe_routes(v6).await? {
                if metric(&route).is_some_and(|metric| ASSESSED.contains(&metric)) {
                    self.delete_route(route).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes the routes of probes along ways that the plan does not have.
    pub(super) async fn tidy_probe_routes(&self, v6: bool, plan: &RoutingPlan) -> Result<()> {
        for route in self.probe_routes(v6).await? {
            let metric = metric(&route);
            let is_own = metric.is_some_and(|metric| plan.tables.contains(&metric));
            let is_wanted = |way: &ProbeWay| {
                let from = RouteAttribute::Source(way.from.into());
                Some(way.route.table) == metric
                    && way.route.v6 == v6
                    && leads_along(&route, &way.route)
                    && (!v6 || route.attributes.contains(&from))
            };
            if is_own && !plan.probed.iter().any(is_wanted) {
                self.delete_route(route).await?;
            }
        }
        Ok(())
    }

    /// The routes of the main table that have our protocol number.
    async fn probe_routes(&self, v6: bool) -> Result<Vec<RouteMessage>> {
        let mut dump = RouteMessage::default();
        dump.header.address_family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        dump.header.protocol = PROTOCOL;
        let main = u32::from(RouteHeader::RT_TABLE_MAIN);
        dump.attributes.push(RouteAttribute::Table(main));
        let mut routes = self.filtering.route().get(dump).execute();
        let mut own = Vec::new();
        while let Some(route) = routes
            .try_next()
            .await
            .context("cannot list the routes of probes")?
        {
            let is_own = route.header.protocol == PROTOCOL && table(&route) == main;
            own.extend(is_own.then_some(route));
        }
        Ok(own)
    }
}

fn metric(route: &RouteMessage) -> Option<u32> {
    let attributes = route.attributes.iter();
    let mut metrics = attributes.filter_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metrics.next()
}

fn destination(route: &RouteMessage) -> Option<IpAddr> {
    let attributes = route.attributes.iter();
    let mut targets = attributes.filter_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(target)) => Some(IpAddr::V4(*target)),
        RouteAttribute::Destination(RouteAddress::Inet6(target)) => Some(IpAddr::V6(*target)),
        _ => None,
    });
    targets.next()
}

fn route(target: IpAddr, way: &ProbeWay) -> RouteMessage {
    let RouteRule {
        table,
        interface,
        gateway,
        is_onlink,
        ..
    } = way.route;
    let mut route = match target {
        IpAddr::V4(target) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(target, 32)
                .tos(PROBE_TOS);
            let route = match gateway {
                Gateway::Address(IpAddr::V4(gateway)) => route.gateway(gateway),
                _ => route,
            };
            let route = route.priority(table).protocol(PROTOCOL);
            route.output_interface(interface).build()
        }
        IpAddr::V6(target) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(target, 128)
                .source_prefix(way.from, 128);
            let route = match gateway {
                Gateway::Address(IpAddr::V6(gateway)) => route.gateway(gateway),
                _ => route,
            };
            let route = route.priority(table).protocol(PROTOCOL);
            route.output_interface(interface).build()
        }
    };
    if is_onlink {
        route.header.flags.insert(RouteFlags::Onlink);
    }
    route
}
