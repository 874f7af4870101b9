//! The egresses as the system has them at one time, and what the data path and the routing make of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use breakout_common::egress::{Egress, MAX_EGRESSES, NextHop};

use crate::config::{Config, EgressConfig, Mode, Routing};
use crate::control::{EgressStatus, WayOut};
use crate::datapath::Egresses;
use crate::exit::{Code, WithCode};
use crate::links::{Gateway, Gateways, Interface, Links, NoWayOut, RouteRule, RoutingPlan};

/// One configured egress and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EgressState {
    pub(super) name: String,
    config: EgressConfig,
    index: u8,
    mark: u32,
    table: u32,
    /// The way out, or why there is none.
    way_out: Result<Ways, String>,
}

/// A working way out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ways {
    interface: Interface,
    gateways: Gateways,
    v4_mac: Option<[u8; 6]>,
    v6_mac: Option<[u8; 6]>,
    /// Whether XDP can send there now. The kernel forwards otherwise.
    takes_redirects: bool,
}

/// Looks at every configured egress.
///
/// # Errors
///
/// When the kernel does not answer; with `strict`, also when one is configured so that it has no way out. Otherwise that
/// is noted in its state, and so is a link that is down.
pub(super) async fn look(
    links: &Links,
    config: &Config,
    indices: &BTreeMap<String, u8>,
    strict: bool,
) -> Result<Vec<EgressState>> {
    let mut states = Vec::with_capacity(config.egress.len());
    for (name, egress) in &config.egress {
        let index = *indices.get(name).context("every egress has an index")?;
        let way_out = match way_out(links, egress).await {
            Ok(ways) => Ok(ways),
            Err(error) => match error.downcast_ref::<NoWayOut>() {
                // A link that is down now comes up later; that is no mistake in the configuration.
                Some(NoWayOut::Down { .. }) => Err(error.to_string()),
                Some(_) if !strict => Err(error.to_string()),
                _ => return Err(error.context(format!("egress {name}"))).code(Code::System),
            },
        };
        states.push(EgressState {
            name: name.clone(),
            config: egress.clone(),
            index,
            mark: mark_of(&config.routing, index),
            table: config.routing.table + u32::from(index),
            way_out,
        });
    }
    Ok(states)
}

async fn way_out(links: &Links, config: &EgressConfig) -> Result<Ways> {
    let Some(interface) = links.interface(&config.interface).await? else {
        bail!(NoWayOut::Missing {
            interface: config.interface.clone(),
        });
    };
    if config.mode == Mode::Redirect
        && let Some(what) = interface.no_redirect()
    {
        bail!(NoWayOut::NoRedirect {
            interface: config.interface.clone(),
            what,
        });
    }
    let gateways = links
        .gateways(&interface, config.gateway, config.gateway6)
        .await?;
    let mut ways = Ways {
        v4_mac: None,
        v6_mac: None,
        takes_redirects: interface.takes_redirects(),
        interface,
        gateways,
    };
    if config.mode == Mode::Redirect {
        ways.v4_mac = mac(links, &ways.interface, gateways.v4).await?;
        ways.v6_mac = mac(links, &ways.interface, gateways.v6).await?;
    }
    Ok(ways)
}

async fn mac(links: &Links, interface: &Interface, gateway: Gateway) -> Result<Option<[u8; 6]>> {
    match gateway {
        Gateway::Address(address) => links.neighbour(interface.index, address).await,
        Gateway::Peer | Gateway::None => Ok(None),
    }
}

/// Has the kernel resolve, or check again, the next hops of the egresses in redirect mode.
pub(super) async fn refresh_neighbours(links: &Links, states: &[EgressState]) {
    let redirecting = states.iter().filter(|s| s.config.mode == Mode::Redirect);
    for ways in redirecting.filter_map(|state| state.way_out.as_ref().ok()) {
        for gateway in [ways.gateways.v4, ways.gateways.v6] {
            if let Gateway::Address(address) = gateway
                && let Err(error) = links.use_neighbour(ways.interface.index, address).await
            {
                tracing::warn!("{error:#}");
            }
        }
    }
}

/// What the data path has to know.
pub(super) fn table(states: &[EgressState], mask: u32) -> Egresses {
    let mut egresses = Egresses::default();
    for state in states {
        let mut egress = Egress {
            redirect: state.config.mode == Mode::Redirect,
            mark: state.mark,
            mark_mask: mask,
            ..Egress::default()
        };
        if let Ok(ways) = &state.way_out {
            egress.mtu = u16::try_from(ways.interface.mtu).unwrap_or(u16::MAX);
            egress.source_mac = ways.interface.mac.unwrap_or_default();
            let mac = |mac: Option<[u8; 6]>| mac.filter(|_| ways.takes_redirects);
            egress.v4 = next_hop(ways.gateways.v4, mac(ways.v4_mac));
            egress.v6 = next_hop(ways.gateways.v6, mac(ways.v6_mac));
            if egress.redirect {
                egresses.devices.push((state.index, ways.interface.index));
            }
        }
        egresses.table[usize::from(state.index)] = egress.to_words();
    }
    egresses
}

fn next_hop(gateway: Gateway, mac: Option<[u8; 6]>) -> NextHop {
    match (gateway, mac) {
        (Gateway::None, _) => NextHop::None,
        (_, Some(mac)) => NextHop::Mac(mac),
        (_, None) => NextHop::Kernel,
    }
}

/// The rules and routes that there should be.
pub(super) fn routing(config: &Config, states: &[EgressState]) -> RoutingPlan {
    let mut plan = empty_routing(&config.routing);
    for state in states {
        let Ok(ways) = &state.way_out else { continue };
        for (v6, gateway) in [(false, ways.gateways.v4), (true, ways.gateways.v6)] {
            if gateway != Gateway::None {
                plan.entries.push(RouteRule {
                    mark: state.mark,
                    table: state.table,
                    interface: ways.interface.index,
                    gateway,
                    v6,
                });
            }
        }
    }
    plan
}

/// The plan by which everything of ours is removed.
pub(super) fn empty_routing(numbers: &Routing) -> RoutingPlan {
    RoutingPlan {
        priority: numbers.rule_priority,
        mask: numbers.mark_mask,
        tables: numbers.table
            ..numbers
                .table
                .saturating_add(u32::try_from(MAX_EGRESSES).unwrap_or(u32::MAX)),
        entries: Vec::new(),
    }
}

/// For each egress index, whether there is a way out for IPv4 and IPv6.
/// The firewall mark of an egress, within the mask.
pub fn mark_of(routing: &Routing, index: u8) -> u32 {
    (u32::from(index) + 1) << routing.mark_mask.trailing_zeros()
}

pub(super) fn ways_out(states: &[EgressState]) -> Vec<(bool, bool)> {
    let up = |state: &EgressState| match &state.way_out {
        Ok(ways) => (
            ways.gateways.v4 != Gateway::None,
            ways.gateways.v6 != Gateway::None,
        ),
        Err(_) => (false, false),
    };
    let mut ways = vec![(false, false); MAX_EGRESSES];
    for state in states {
        ways[usize::from(state.index)] = up(state);
    }
    ways
}

impl EgressState {
    /// Why there is no way out, if so.
    pub(super) fn problem(&self) -> Option<&str> {
        self.way_out.as_ref().err().map(String::as_str)
    }

    /// The state as `breakout status` shows it.
    pub(super) fn status(&self, mask: u32) -> EgressStatus {
        let ways = self.way_out.as_ref().ok();
        let way = |gateway: Option<Gateway>, mac: Option<[u8; 6]>| {
            let gateway = gateway.unwrap_or_default();
            WayOut {
                up: gateway != Gateway::None,
                gateway: match gateway {
                    Gateway::Address(address) => Some(IpAddr::to_string(&address)),
                    Gateway::Peer | Gateway::None => None,
                },
                mac: mac.map(format_mac),
            }
        };
        EgressStatus {
            interface: self.config.interface.clone(),
            mode: match self.config.mode {
                Mode::Route => "route".to_owned(),
                Mode::Redirect => "redirect".to_owned(),
            },
            v4: way(
                ways.map(|ways| ways.gateways.v4),
                ways.and_then(|ways| ways.v4_mac),
            ),
            v6: way(
                ways.map(|ways| ways.gateways.v6),
                ways.and_then(|ways| ways.v6_mac),
            ),
            problem: self.problem().map(str::to_owned),
            by_kernel: ways
                .filter(|ways| self.config.mode == Mode::Redirect && !ways.takes_redirects)
                .map(|ways| {
                    format!(
                        "{} takes no redirected frames now, so the kernel forwards: its driver wants an XDP program on it \
                         (or, on a veth, GRO at the other end)",
                        ways.interface.name
                    )
                }),
            mark: format!("{:#x}/{mask:#x}", self.mark),
            table: self.table,
        }
    }
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
