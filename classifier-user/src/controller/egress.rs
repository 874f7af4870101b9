//! The egresses as the system has them at one time, and what the routing makes of them.

mod routes;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use breakout_common::egress::{Egress, NextHop};
use ipnet::{IpNet, Ipv4Net};

use crate::config::{Config, EgressConfig, Mode};
use crate::control::{EgressStatus, WayOut};
use crate::datapath::LanPlan;
use crate::exit::{Code, WithCode};
use crate::health::{Standing, State};
use crate::links::{
    Asker, Fact, Gateway, Gateways, Interface, Links, Neighbour, NoRedirect, NoWayOut,
};

pub use routes::mark_of;
pub(super) use routes::{empty_routing, note_refused, routing};

/// One configured egress and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EgressState {
    pub(super) name: String,
    pub(super) config: EgressConfig,
    pub(super) index: u8,
    pub(super) mark: u32,
    table: u32,
    /// The way out, or why there is none.
    way_out: Result<Ways, NoWayOut>,
    /// True if it has, or is meant to have, IPv4 and IPv6.
    families: [bool; 2],
    /// True if the kernel refuses its rule or route for IPv4 and IPv6.
    is_refused: [bool; 2],
    /// True if the program is missing that gives replies of translated flows their clients back.
    is_unattended: bool,
    /// The addresses that its interface has, or had when it was last there.
    addresses: Vec<IpNet>,
}

/// A working way out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ways {
    interface: Interface,
    gateways: Gateways,
    v4: Neighbour,
    v6: Neighbour,
    /// Reason why XDP does not send there. TC does then.
    no_redirect: Option<NoRedirect>,
    /// The address that probes over IPv6 have.
    probe_source: Ipv6Addr,
}

impl EgressState {
    /// Returns the addresses of its interface while it has a way out.
    pub(in crate::controller) fn own_addresses(&self, v6: bool) -> impl Iterator<Item = IpAddr> {
        let ways = self.way_out.as_ref().ok();
        let addresses = ways.into_iter().flat_map(|ways| &ways.interface.addresses);
        let addresses = addresses.map(IpNet::addr);
        addresses.filter(move |address| address.is_ipv6() == v6)
    }
}

impl Ways {
    fn gateway(&self, v6: bool) -> Gateway {
        let gateway = if v6 {
            &self.gateways.v6
        } else {
            &self.gateways.v4
        };
        gateway.as_ref().copied().unwrap_or_default()
    }

    fn neighbour(&self, v6: bool) -> Neighbour {
        if v6 { self.v6 } else { self.v4 }
    }

    /// The IPv4 address that flows get there, the one that masquerading would take: of the gateway's network, or else the first one.
    /// Unspecified if there is none.
    fn public_address(&self) -> Ipv4Addr {
        let networks = &self.interface.primary_v4;
        let of_gateway = |net: &&Ipv4Net| match self.gateway(false) {
            Gateway::Address(IpAddr::V4(gateway)) => net.contains(&gateway),
            _ => false,
        };
        let found = networks.iter().find(of_gateway).or(networks.first());
        found.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Net::addr)
    }

    /// Takes over the way out of a family that is gone.
    fn lose(&mut self, now: &Ways, v6: bool) {
        if v6 {
            self.gateways.v6.clone_from(&now.gateways.v6);
            self.v6 = now.v6;
        } else {
            self.gateways.v4.clone_from(&now.gateways.v4);
            self.v4 = now.v4;
        }
    }
}

/// Looks at every configured egress. That one has no way out is noted in its state. What cannot be seen is taken from how the
/// egress was before, unless it leads over another link now.
///
/// # Errors
///
/// When the kernel does not answer.
pub(super) async fn look(
    links: &Links,
    config: &Config,
    indices: &BTreeMap<String, u8>,
    before: &[EgressState],
) -> Result<Vec<EgressState>> {
    let mut states = Vec::with_capacity(config.egress.len());
    for (name, egress) in &config.egress {
        let index = *indices.get(name).context("every egress has an index")?;
        let way_out = match way_out(links, egress).await {
            Ok(ways) => Ok(ways),
            Err(error) => match error.downcast::<NoWayOut>() {
                Ok(no_way_out) => Err(no_way_out),
                Err(error) => {
                    return Err(error.context(format!("egress {name}"))).code(Code::System);
                }
            },
        };
        let is_there = |v6: bool| {
            let is_configured = if v6 {
                egress.gateway6.is_some()
            } else {
                egress.gateway.is_some()
            };
            let gateways = way_out.as_ref().ok().map(|ways| &ways.gateways);
            let learnt = gateways.map(|both| if v6 { &both.v6 } else { &both.v4 });
            is_configured || learnt.is_some_and(|learnt| *learnt != Ok(Gateway::None))
        };
        let mut state = EgressState {
            name: name.clone(),
            config: egress.clone(),
            index,
            mark: mark_of(&config.routing, index),
            table: config.routing.table + u32::from(index),
            families: [is_there(false), is_there(true)],
            is_refused: [false; 2],
            is_unattended: false,
            addresses: way_out
                .as_ref()
                .map_or_else(|_| Vec::new(), |ways| ways.interface.addresses.clone()),
            way_out,
        };
        if let Some(before) = before.iter().find(|before| before.name == *name) {
            state.remember(before);
        }
        states.push(state);
    }
    Ok(states)
}

/// Notes at which egresses replies of translated flows find no program.
pub(super) fn note_unattended(states: &mut [EgressState], plans: &[LanPlan]) {
    for state in states
        .iter_mut()
        .filter(|state| state.config.is_translated())
    {
        let attends = |interface: &Interface| {
            let mut plans = plans.iter().filter(|plan| plan.translates);
            plans.any(|plan| {
                (plan.index, plan.mac) == (interface.index, interface.mac.unwrap_or_default())
            })
        };
        let ways = state.way_out.as_ref();
        state.is_unattended = ways.is_ok_and(|ways| !attends(&ways.interface));
    }
}

/// Returns how the egresses were, but for what is no longer so: links and next hops that are gone. None if nothing is.
pub(super) fn worsened(before: &[EgressState], now: &[EgressState]) -> Option<Vec<EgressState>> {
    let mut is_worse = false;
    let states = before.iter().map(|was| {
        let is = now.iter().find(|is| is.name == was.name);
        let lost = |v6: &bool| {
            is.is_some_and(|is| is.problem(*v6).is_some() && was.problem(*v6).is_none())
        };
        let lost: Vec<bool> = [false, true].into_iter().filter(lost).collect();
        is_worse |= !lost.is_empty();
        let mut state = was.clone();
        match (is.map(|is| &is.way_out), &mut state.way_out) {
            (Some(Err(gone)), way_out) if !lost.is_empty() => *way_out = Err(gone.clone()),
            (Some(Ok(is)), Ok(ways)) => lost.into_iter().for_each(|v6| ways.lose(is, v6)),
            _ => {}
        }
        state
    });
    let states = states.collect();
    is_worse.then_some(states)
}

/// Fails with the first of these egresses that is configured so that it has no way out.
pub(super) fn insist<'a>(states: impl IntoIterator<Item = &'a EgressState>) -> Result<()> {
    let mistaken = states
        .into_iter()
        .find_map(|state| Some((state, state.mistake()?)));
    match mistaken {
        Some((state, mistake)) => Err(mistake)
            .with_context(|| format!("egress {}", state.name))
            .code(Code::System),
        None => Ok(()),
    }
}

async fn way_out(links: &Links, config: &EgressConfig) -> Result<Ways> {
    let Some(interface) = links.interface(&config.interface).await? else {
        bail!(NoWayOut::Missing {
            interface: config.interface.clone(),
        });
    };
    let gateways = links
        .gateways(&interface, config.gateway, config.gateway6)
        .await?;
    let mut ways = Ways {
        v4: Neighbour::Unknown,
        v6: Neighbour::Unknown,
        no_redirect: interface.no_redirect(),
        probe_source: links.probe_source(&interface).await?,
        interface,
        gateways,
    };
    ways.v4 = neighbour(links, &ways, false).await?;
    ways.v6 = neighbour(links, &ways, true).await?;
    Ok(ways)
}

async fn neighbour(links: &Links, ways: &Ways, v6: bool) -> Result<Neighbour> {
    match ways.gateway(v6) {
        Gateway::Address(address) => links.neighbour(ways.interface.index, address).await,
        Gateway::Peer | Gateway::None => Ok(Neighbour::Unknown),
    }
}

/// Has the kernel resolve, or check again, next hops: all of them, or only those that do not answer.
pub(super) async fn refresh_neighbours(links: &Links, states: &[EgressState], only_failed: bool) {
    for ways in states
        .iter()
        .filter_map(|state| state.way_out.as_ref().ok())
    {
        for v6 in [false, true] {
            if let Gateway::Address(address) = ways.gateway(v6)
                && (!only_failed || ways.neighbour(v6) == Neighbour::Failed)
                && let Err(error) = links.use_neighbour(ways.interface.index, address).await
            {
                tracing::warn!("{error:#}");
            }
        }
    }
}

impl EgressState {
    /// Returns who asks the link for the MAC address of the next hop, and that next hop, if it has one.
    pub(super) fn asker(&self, v6: bool) -> Option<(Asker, IpAddr)> {
        let ways = self.way_out.as_ref().ok()?;
        let Gateway::Address(address) = ways.gateway(v6) else {
            return None;
        };
        let asker = Asker {
            interface: ways.interface.index,
            mac: ways.interface.mac?,
            v4: ways.public_address(),
        };
        Some((asker, address))
    }

    /// Returns whether its interface has an address, or had it when it was last there.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }

    /// Takes in what the kernel tells, as far as it takes a way out away or gives it another MAC address; what comes back is
    /// looked at with everything that belongs to it. Returns whether that changes anything.
    pub(super) fn take_in(&mut self, fact: &Fact) -> bool {
        let Ok(ways) = &mut self.way_out else {
            return false;
        };
        match fact {
            Fact::Link { index, running, .. } if *index == ways.interface.index && !running => {
                let interface = ways.interface.name.clone();
                self.way_out = Err(NoWayOut::Down { interface });
                true
            }
            Fact::Neighbour {
                index,
                address,
                neighbour,
            } if *index == ways.interface.index
                && ways.gateway(address.is_ipv6()) == Gateway::Address(*address) =>
            {
                let known = match address {
                    IpAddr::V4(_) => &mut ways.v4,
                    IpAddr::V6(_) => &mut ways.v6,
                };
                let before = *known;
                *known = still_failed(*neighbour, before);
                *known != before
            }
            _ => false,
        }
    }

    /// Returns what is wrong with its configuration, if anything. A link that is down comes up later; that is no mistake.
    pub(super) fn mistake(&self) -> Option<NoWayOut> {
        match &self.way_out {
            Ok(ways) => [&ways.gateways.v4, &ways.gateways.v6]
                .into_iter()
                .filter_map(|gateway| gateway.clone().err())
                // It is learnt, so another one may come.
                .find(|error| !matches!(error, NoWayOut::OtherFamily { .. })),
            Err(NoWayOut::Down { .. }) => None,
            Err(error) => Some(error.clone()),
        }
    }

    /// The link for an address family, as it is configured. Over another one nothing is known of what was before.
    pub(super) fn link(&self, v6: bool) -> String {
        let gateway = if v6 {
            self.config.gateway6.map(IpAddr::V6)
        } else {
            self.config.gateway.map(IpAddr::V4)
        };
        let gateway = gateway.map_or_else(|| "any".to_owned(), |gateway| gateway.to_string());
        format!("{} via {gateway}", self.config.interface)
    }

    /// Takes over from an earlier look what this one cannot know: a gateway that did not answer and is being asked again has
    /// not answered yet, an address family that is gone was there, and a route was refused.
    fn remember(&mut self, before: &EgressState) {
        if [false, true]
            .iter()
            .any(|v6| self.link(*v6) != before.link(*v6))
        {
            return;
        }
        self.is_refused = before.is_refused;
        for (now, was) in self.families.iter_mut().zip(before.families) {
            *now |= was;
        }
        if self.addresses.is_empty() {
            self.addresses.clone_from(&before.addresses);
        }
        let (Ok(ways), Ok(before)) = (&mut self.way_out, &before.way_out) else {
            return;
        };
        if ways.gateways.v4 == before.gateways.v4 {
            ways.v4 = still_failed(ways.v4, before.v4);
        }
        if ways.gateways.v6 == before.gateways.v6 {
            ways.v6 = still_failed(ways.v6, before.v6);
        }
    }

    /// Returns whether the egress is meant to have an address family: it has or had a gateway, or one is configured. Of one of which
    /// nothing is known IPv4 is expected.
    pub(super) fn has_family(&self, v6: bool) -> bool {
        self.families[usize::from(v6)] || !v6 && self.families == [false; 2]
    }

    /// Returns what is wrong with the link itself for an address family, if anything.
    pub(super) fn problem(&self, v6: bool) -> Option<String> {
        let ways = match &self.way_out {
            Ok(ways) => ways,
            Err(error) => return Some(error.to_string()),
        };
        let family = if v6 { "IPv6" } else { "IPv4" };
        let gateway = if v6 {
            &ways.gateways.v6
        } else {
            &ways.gateways.v4
        };
        match (gateway, ways.neighbour(v6)) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(Gateway::None), _) => Some(format!("no way out for {family}")),
            (Ok(Gateway::Address(address)), Neighbour::Failed) => Some(format!(
                "gateway {address} does not answer on {}",
                ways.interface.name
            )),
            (Ok(_), _)
                if !v6 && self.config.is_translated() && ways.public_address().is_unspecified() =>
            {
                Some(format!(
                    "no IPv4 address on {} to translate to",
                    ways.interface.name
                ))
            }
            _ if !v6 && self.is_unattended => Some(format!(
                "the program that takes replies of translated flows is not attached to {}",
                ways.interface.name
            )),
            _ if self.is_refused[usize::from(v6)] => Some(format!(
                "the kernel refuses its {family} route or rule; the controller's log has why"
            )),
            _ => None,
        }
    }

    /// Returns what the data path has to know of it.
    pub(super) fn to_words(&self, mask: u32) -> Egress {
        let mut egress = Egress {
            redirect: self.config.mode == Mode::Redirect,
            mark: self.mark,
            mark_mask: mask,
            ..Egress::default()
        };
        if let Ok(ways) = &self.way_out {
            egress.mtu = u16::try_from(ways.interface.mtu).unwrap_or(u16::MAX);
            egress.source_mac = ways.interface.mac.unwrap_or_default();
            for v6 in [false, true] {
                match ways.gateway(v6) {
                    Gateway::Address(IpAddr::V4(gateway)) => egress.gateways.0 = gateway,
                    Gateway::Address(IpAddr::V6(gateway)) => egress.gateways.1 = gateway,
                    Gateway::Peer | Gateway::None => {}
                }
            }
            let may_redirect = egress.redirect && ways.no_redirect.is_none();
            let hop = |v6: bool| {
                let mac = ways.neighbour(v6).mac().filter(|_| may_redirect);
                next_hop(ways.gateway(v6), mac)
            };
            (egress.v4, egress.v6) = (hop(false), hop(true));
            if self.config.is_translated() {
                egress.nat = ways.public_address();
                // Without an address packets would leave with the client's, and without the program replies would end their flows.
                if egress.nat.is_unspecified() || self.is_unattended {
                    egress.v4 = NextHop::None;
                }
            }
        }
        egress
    }

    /// The public address that the programs give flows there, if they do.
    pub(super) fn public_address(&self) -> Option<Ipv4Addr> {
        let ways = self.way_out.as_ref().ok();
        let ways = ways.filter(|_| self.config.is_translated());
        let address = ways.map(Ways::public_address);
        address.filter(|address| !address.is_unspecified())
    }

    /// The interface that the programs redirect to, if they do.
    pub(super) fn device(&self) -> Option<u32> {
        let ways = self.way_out.as_ref().ok();
        let ways = ways.filter(|_| self.config.mode == Mode::Redirect);
        ways.map(|ways| ways.interface.index)
    }

    /// The state as `breakout status` shows it. `no_xdp` says why XDP runs on no LAN interface, if so.
    pub(super) fn status(
        &self,
        mask: u32,
        no_xdp: Option<&str>,
        standings: [Option<Standing>; 2],
    ) -> EgressStatus {
        let ways = self.way_out.as_ref().ok();
        let redirecting = ways.filter(|_| self.config.mode == Mode::Redirect);
        let why_tc = redirecting.and_then(|ways| match &ways.no_redirect {
            Some(why) => {
                let kernel = match why {
                    NoRedirect::Kind(_) if self.config.returns && !self.config.masquerade => {
                        "; the kernel forwards the replies"
                    }
                    _ => "",
                };
                Some(why.about(&ways.interface.name) + kernel)
            }
            None => no_xdp.map(str::to_owned),
        });
        let is_routed = self.config.mode == Mode::Route;
        let [v4, v6] = standings;
        let way = |is_v6: bool, standing: Option<Standing>| {
            let standing = standing.filter(|_| self.has_family(is_v6));
            let gateway = ways.map(|ways| ways.gateway(is_v6)).unwrap_or_default();
            let mac = ways.and_then(|ways| ways.neighbour(is_v6).mac());
            WayOut {
                up: standing
                    .as_ref()
                    .is_some_and(|standing| standing.state != State::Down),
                gateway: match gateway {
                    Gateway::Address(address) => Some(address.to_string()),
                    Gateway::Peer | Gateway::None => None,
                },
                direct: gateway == Gateway::Peer,
                mac: mac.map(format_mac),
                standing,
            }
        };
        EgressStatus {
            interface: self.config.interface.clone(),
            mode: match self.config.mode {
                Mode::Route => "route".to_owned(),
                Mode::Redirect => "redirect".to_owned(),
            },
            masquerade: self.config.masquerade,
            public_address: self.public_address(),
            v4: way(false, v4),
            v6: way(true, v6),
            problem: self.way_out.as_ref().err().map(ToString::to_string),
            hook: redirecting.map(|_| if why_tc.is_none() { "xdp" } else { "tc" }.to_owned()),
            why_tc,
            mark: is_routed.then(|| format!("{:#x}/{mask:#x}", self.mark)),
            table: is_routed.then_some(self.table),
        }
    }
}

/// A neighbour that did not answer and is being asked again has not answered yet.
fn still_failed(now: Neighbour, was: Neighbour) -> Neighbour {
    match (now, was) {
        (Neighbour::Unknown, Neighbour::Failed) => Neighbour::Failed,
        _ => now,
    }
}

fn next_hop(gateway: Gateway, mac: Option<[u8; 6]>) -> NextHop {
    match (gateway, mac) {
        (Gateway::None, _) => NextHop::None,
        (_, Some(mac)) => NextHop::Mac(mac),
        (_, None) => NextHop::Kernel,
    }
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
