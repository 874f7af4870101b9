//! The LAN interfaces: which are there, and what is wrong with the others.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, anyhow};

use crate::config::{Config, EgressConfig, Mode, XdpAttach, lan_number};
use crate::datapath::LanPlan;
use crate::exit::{Code, WithCode};
use crate::links::{Interface, Links, NoRedirect, network_namespace};

/// The LAN interfaces, and egresses whose replies XDP forwards.
pub(super) struct Lans {
    /// Those that are there.
    pub(super) lans: Vec<LanPlan>,
    /// Problems of the others, by their names.
    pub(super) missing: BTreeMap<String, String>,
    /// Those that would have XDP and have refused it.
    pub(super) without_xdp: WithoutXdp,
}

/// Interfaces that take no XDP program as they are, so that TC does all of the work there.
#[derive(Clone, Default)]
pub(super) struct WithoutXdp(BTreeMap<String, Refusal>);

/// A refusal, which holds while the interface and its MTU are the same.
#[derive(Clone)]
struct Refusal {
    index: u32,
    mtu: u32,
    why: String,
}

impl WithoutXdp {
    /// Notes an interface, as it was when it refused.
    pub(super) fn note(&mut self, interface: &Interface, why: &str) {
        let refusal = Refusal {
            index: interface.index,
            mtu: interface.mtu,
            why: why.to_owned(),
        };
        self.0.insert(interface.name.clone(), refusal);
    }

    /// Returns why an interface has no XDP.
    pub(super) fn why(&self, interface: &str) -> Option<&str> {
        self.0.get(interface).map(|refusal| refusal.why.as_str())
    }

    /// Takes a refusal over if it still holds. Returns whether it does.
    fn takes_over(&mut self, before: &Self, interface: &Interface) -> bool {
        let refusal = before
            .0
            .get(&interface.name)
            .filter(|refusal| (refusal.index, refusal.mtu) == (interface.index, interface.mtu));
        if let Some(refusal) = refusal {
            self.0.insert(interface.name.clone(), refusal.clone());
        }
        refusal.is_some()
    }
}

/// Fails with the first thing that is missing, if anything is.
pub(super) fn refuse_missing(missing: &BTreeMap<String, String>) -> Result<()> {
    match missing.values().next() {
        Some(problem) => Err(anyhow!("{problem}")).code(Code::System),
        None => Ok(()),
    }
}

/// Looks at them. `before` is what they were when they were looked at last, and `refused` which of them had refused XDP. `indices` are
/// those of egresses.
pub(super) async fn look_at_lans(
    links: &Links,
    config: &Config,
    before: &[LanPlan],
    refused: &WithoutXdp,
    indices: &BTreeMap<String, u8>,
) -> Result<Lans> {
    let wants_xdp = wants_xdp(links, config, before).await?;
    let namespace = network_namespace().code(Code::System)?;
    let replies = config.egress.values().any(has_replies);
    let is_prepared = config.egress.values().any(|egress| egress.returns);
    let mut lans = Vec::with_capacity(config.lan.len());
    let mut missing = BTreeMap::new();
    let mut without_xdp = WithoutXdp::default();
    for (index, lan) in config.lan.iter().enumerate() {
        let name = &lan.interface;
        let found = links.interface(name).await?;
        let problem = match &found {
            None => format!(
                "[[lan]] there is no interface {name} in this network namespace; see: ip link"
            ),
            Some(_) => format!("[[lan]] {name} is no Ethernet, nor a tunnel of IP packets"),
        };
        let usable = found.filter(|interface| interface.mac.is_some() || interface.is_bare);
        let Some(interface) = usable else {
            missing.insert(name.clone(), problem);
            continue;
        };
        // TC does all of it where there is no XDP.
        let has_xdp = match lan.xdp {
            XdpAttach::Native => {
                wants_xdp
                    && interface.has_native_xdp()
                    && !without_xdp.takes_over(refused, &interface)
            }
            XdpAttach::Generic => config.needs_xdp() && !interface.is_bare,
        };
        let takes_redirects = match interface.no_redirect() {
            // A veth drops them unless its other end is prepared, which before Linux 6.3 only the operator knows.
            None => !interface.is_veth || interface.tells_xdp_features() || is_prepared,
            // It will, with a program of its own.
            Some(NoRedirect::Driver) => {
                has_xdp && lan.xdp == XdpAttach::Native && !interface.is_veth
            }
            Some(_) => false,
        };
        lans.push(LanPlan {
            is_egress: false,
            translates: false,
            returns: false,
            takes_replies: replies && takes_redirects,
            name: name.clone(),
            index: interface.index,
            mac: interface.mac.unwrap_or_default(),
            is_bare: interface.is_bare,
            // A larger one makes no difference to the programs.
            mtu: interface.longest_packet().min(1500),
            addresses: interface.speaking(),
            xdp: has_xdp.then_some(lan.xdp),
            namespace,
            number: lan_number(index),
        });
    }
    for (name, egress) in config
        .egress
        .iter()
        .filter(|(_, egress)| has_replies(egress))
    {
        // One that is not there now is no mistake; it is attached to when it comes.
        let Some(interface) = links.interface(&egress.interface).await? else {
            continue;
        };
        let has_xdp = (egress.returns || lans.iter().any(|lan| lan.takes_replies))
            && interface.mac.is_some()
            && interface.has_native_xdp()
            && !without_xdp.takes_over(refused, &interface);
        let translates = egress.is_translated();
        if has_xdp || translates {
            lans.push(LanPlan {
                name: egress.interface.clone(),
                index: interface.index,
                mac: interface.mac.unwrap_or_default(),
                is_bare: interface.mac.is_none(),
                mtu: u16::MAX,
                // Nobody is answered there.
                addresses: (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
                xdp: has_xdp.then_some(XdpAttach::Native),
                namespace,
                number: *indices.get(name).context("every egress has an index")?,
                is_egress: true,
                translates,
                returns: egress.returns,
                takes_replies: false,
            });
        }
    }
    Ok(Lans {
        lans,
        missing,
        without_xdp,
    })
}

/// Returns whether the programs forward the replies that come in by an egress.
fn has_replies(egress: &EgressConfig) -> bool {
    egress.returns || egress.is_translated()
}

/// Returns whether XDP forwards to, or from, any egress. Where it once does it stays until the next start: with many drivers the link goes down
/// for seconds when a program comes or goes.
async fn wants_xdp(links: &Links, config: &Config, before: &[LanPlan]) -> Result<bool> {
    let had_xdp = before.iter().any(|lan| lan.xdp.is_some());
    for egress in config.egress.values() {
        if egress.mode != Mode::Redirect {
            continue;
        }
        if had_xdp || egress.returns {
            return Ok(true);
        }
        // What is not there yet may be a network card; and what a driver takes changes with the programs on it.
        let interface = links.interface(&egress.interface).await?;
        let no_redirect = interface.and_then(|interface| interface.no_redirect());
        if matches!(no_redirect, None | Some(NoRedirect::Driver)) {
            return Ok(true);
        }
    }
    Ok(false)
}
