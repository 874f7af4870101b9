//! Breakout's own rules and routes: for each egress, packets with its mark look into its table, which
//! has one default route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::gateway::Gateway;
use super::protocol::PROTOCOL;
use super::{Links, ProbeWay, is_errno};

/// One egress's rule and route for one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRule {
    /// The mark that its packets have, within the plan's mask.
    pub mark: u32,
    /// Its routing table.
    pub table: u32,
    /// The egress interface's index.
    pub interface: u32,
    /// Its way out for this family.
    pub gateway: Gateway,
    /// True if the gateway is in none of the interface's networks, so that the kernel has to be told that it is on the link.
    pub is_onlink: bool,
    /// The address family.
    pub v6: bool,
}

/// All rules and routes that there should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingPlan {
    /// The rules' priority.
    pub priority: u32,
    /// The mark bits that are Breakout's.
    pub mask: u32,
    /// The first table and the one behind the last.
    pub tables: std::ops::Range<u32>,
    /// The rules and routes.
    pub entries: Vec<RouteRule>,
    /// Set while what is ours and not planned stays.
    pub keeps_others: bool,
    /// Ways of which probes have routes; see [`lead`](Links::lead).
    pub probed: Vec<ProbeWay>,
}

/// Outcome of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingOutcome {
    /// Entries that the kernel refuses.
    pub refused: Vec<RouteRule>,
    /// Number of rules and routes that were missing.
    pub added: usize,
}

impl RoutingOutcome {
    fn note(&mut self, entry: &RouteRule, added: Result<()>) -> Result<()> {
        match added {
            Ok(()) => self.added += 1,
            Err(_) => self.refused.push(*entry),
        }
        added
    }
}

impl Links {
    /// Makes the kernel's rules and routes as planned: adds what is missing, then removes what is ours but not
    /// planned. Doing it twice changes nothing.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a rule or route; all others are as planned all the same.
    pub async fn apply_routing(&self, plan: &RoutingPlan) -> Result<()> {
        let mut outcome = RoutingOutcome::default();
        self.apply_possible(plan, &mut outcome).await
    }

    /// The same. What becomes of it is noted in `outcome`, also when it fails.
    ///
    /// # Errors
    ///
    /// As [`apply_routing`](Self::apply_routing).
    pub async fn apply_possible(
        &self,
        plan: &RoutingPlan,
        outcome: &mut RoutingOutcome,
    ) -> Result<()> {
        let v4 = self.apply_family(plan, false, outcome).await;
        let v6 = self.apply_family(plan, true, outcome).await;
        if plan.keeps_others {
            return v4.and(v6);
        }
        let v4 = v4.and(self.tidy_probe_routes(false, plan).await);
        v4.and(v6).and(self.tidy_probe_routes(true, plan).await)
    }

    async fn apply_family(
        &self,
        plan: &RoutingPlan,
        v6: bool,
        outcome: &mut RoutingOutcome,
    ) -> Result<()> {
        let wanted: Vec<&RouteRule> = plan.entries.iter().filter(|e| e.v6 == v6).collect();
        let mut applied = Ok(());
        let routes = self.own_routes(v6, plan).await?;
        for entry in &wanted {
            if !routes.iter().any(|route| route_is(route, entry)) {
                let added = self.add_route(entry).await;
                applied = applied.and(outcome.note(entry, added));
            }
        }
        let rules = self.own_rules(v6, plan).await?;
        for entry in &wanted {
            if !rules.iter().any(|rule| rule_is(rule, entry, plan)) {
                let added = self.add_rule(entry, plan).await;
                applied = applied.and(outcome.note(entry, added));
            }
        }
        if plan.keeps_others {
            return applied;
        }
        for rule in rules {
            if !wanted.iter().any(|entry| rule_is(&rule, entry, plan)) {
                applied = applied.and(self.delete_rule(rule).await);
            }
        }
        for route in routes {
            if !wanted.iter().any(|entry| route_is(&route, entry)) {
                applied = applied.and(self.delete_route(route).await);
            }
        }
        applied
    }

    /// Returns whether there are rules that look like ours within the plan's mask and tables.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn has_own_rules(&self, plan: &RoutingPlan) -> Result<bool> {
        let v4 = self.own_rules(false, plan).await?;
        Ok(!v4.is_empty() || !self.own_rules(true, plan).await?.is_empty())
    }

    async fn add_route(&self, entry: &RouteRule) -> Result<()> {
        let mut message = if entry.v6 {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .table_id(entry.table)
                .protocol(PROTOCOL)
                .output_interface(entry.interface);
            match entry.gateway {
                Gateway::Address(IpAddr::V6(gateway)) => builder.gateway(gateway).build(),
                _ => builder.build(),
            }
        } else {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .table_id(entry.table)
                .protocol(PROTOCOL)
                .output_interface(entry.interface);
            match entry.gateway {
                Gateway::Address(IpAddr::V4(gateway)) => builder.gateway(gateway).build(),
                _ => builder.build(),
            }
        };
        if entry.is_onlink {
            message.header.flags.insert(RouteFlags::Onlink);
        }
        let request = self.handle.route().add(message).replace();
        request.execute().await.with_context(|| {
            format!(
                "cannot add the default route of table {} over interface {}",
                entry.table, entry.interface
            )
        })
    }

    async fn add_rule(&self, entry: &RouteRule, plan: &RoutingPlan) -> Result<()> {
        let request = self
            .handle
            .rule()
            .add()
            .priority(plan.priority)
            .fw_mark(entry.mark)
            .table_id(entry.table)
            .action(RuleAction::ToTable);
        let result = if entry.v6 {
            let mut request = request.v6();
            finish_rule(request.message_mut(), plan);
            request.execute().await
        } else {
            let mut request = request.v4();
            finish_rule(request.message_mut(), plan);
            request.execute().await
        };
        match result {
            Err(error) if is_errno(&error, libc::EEXIST) => Ok(()),
            other => other.with_context(|| {
                format!(
                    "cannot add the rule for mark {:#x} with priority {}",
                    entry.mark, plan.priority
                )
            }),
        }
    }

    /// Rules that carry our protocol number, within our mask and tables.
    async fn own_rules(&self, v6: bool, plan: &RoutingPlan) -> Result<Vec<RuleMessage>> {
        let version = if v6 { IpVersion::V6 } else { IpVersion::V4 };
        let mut rules = self.handle.rule().get(version).execute();
        let mut own = Vec::new();
        while let Some(rule) = rules.try_next().await.context("cannot list the rules")? {
            let ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
                && rule.attributes.contains(&RuleAttribute::FwMask(plan.mask))
                && rule.attributes.iter().any(
                    |a| matches!(a, RuleAttribute::Table(table) if plan.tables.contains(table)),
                );
            if ours {
                own.push(rule);
            }
        }
        Ok(own)
    }

    async fn delete_rule(&self, rule: RuleMessage) -> Result<()> {
        match self.handle.rule().del(rule).execute().await {
            Err(error) if is_errno(&error, libc::ENOENT) => Ok(()),
            other => other.context("cannot remove a rule"),
        }
    }

    async fn own_routes(&self, v6: bool, plan: &RoutingPlan) -> Result<Vec<RouteMessage>> {
        let mut own = Vec::new();
        for table in plan.tables.clone() {
            let of_table = RouteAttribute::Table(table);
            let routes = self.filtered_routes(v6, of_table, |route| {
                let is_own = route.header.protocol == PROTOCOL && self::table(&route) == table;
                own.extend(is_own.then_some(route));
            });
            match routes.await {
                // There is no such table.
                Err(error) if is_errno(&error, libc::ENOENT) => {}
                other => {
                    other.with_context(|| format!("cannot list the routes of table {table}"))?;
                }
            }
        }
        Ok(own)
    }

    /// Lists the routes of an address family that have an attribute, by which the kernel filters: their table, or their interface.
    pub(super) async fn filtered_routes(
        &self,
        v6: bool,
        filter: RouteAttribute,
        mut each: impl FnMut(RouteMessage),
    ) -> Result<(), rtnetlink::Error> {
        let mut dump = RouteMessage::default();
        dump.header.address_family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        dump.attributes.push(filter);
        let mut routes = self.filtering.route().get(dump).execute();
        while let Some(route) = routes.try_next().await? {
            each(route);
        }
        Ok(())
    }

    pub(super) async fn delete_route(&self, route: RouteMessage) -> Result<()> {
        match self.handle.route().del(route).execute().await {
            Err(error) if is_errno(&error, libc::ESRCH) => Ok(()),
            other => other.context("cannot remove a route"),
        }
    }
}

fn finish_rule(message: &mut RuleMessage, plan: &RoutingPlan) {
    message.attributes.push(RuleAttribute::FwMask(plan.mask));
    message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
}

fn rule_is(rule: &RuleMessage, entry: &RouteRule, plan: &RoutingPlan) -> bool {
    [
        RuleAttribute::FwMark(entry.mark),
        RuleAttribute::Table(entry.table),
        RuleAttribute::Priority(plan.priority),
    ]
    .iter()
    .all(|attribute| rule.attributes.contains(attribute))
}

fn route_is(route: &RouteMessage, entry: &RouteRule) -> bool {
    table(route) == entry.table && leads_along(route, entry)
}

/// Tells whether a route leads to an entry's gateway.
pub(super) fn leads_along(route: &RouteMessage, entry: &RouteRule) -> bool {
    let gateway = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => Some(address.clone()),
            _ => None,
        });
    let wanted = match entry.gateway {
        Gateway::Address(address) => Some(address.into()),
        _ => None,
    };
    gateway == wanted
        && route
            .attributes
            .contains(&RouteAttribute::Oif(entry.interface))
}

/// The route's table; numbers above 255 stand in an attribute.
pub(super) fn table(route: &RouteMessage) -> u32 {
    let attribute = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    attribute.unwrap_or(route.header.table.into())
}
