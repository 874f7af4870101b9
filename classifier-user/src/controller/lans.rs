//! The LAN interfaces: which are there, and what is wrong with the others.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use breakout_common::condition::MAX_GROUPS;

use crate::config::{Config, XdpAttach};
use crate::datapath::LanPlan;
use crate::exit::{Code, WithCode};
use crate::links::{Links, network_namespace};

/// The LAN interfaces, and egresses whose replies XDP forwards.
pub(super) struct Lans {
    /// Those that are there.
    pub(super) lans: Vec<LanPlan>,
    /// What is wrong with the others, by their names.
    pub(super) missing: BTreeMap<String, String>,
}

/// Fails with the first thing that is missing, if anything is.
pub(super) fn refuse_missing(missing: &BTreeMap<String, String>) -> Result<()> {
    match missing.values().next() {
        Some(problem) => Err(anyhow!("{problem}")).code(Code::System),
        None => Ok(()),
    }
}

pub(super) async fn look_at_lans(links: &Links, config: &Config) -> Result<Lans> {
    let namespace = network_namespace().code(Code::System)?;
    let has_replies = config.egress.values().any(|egress| egress.returns);
    let mut lans = Vec::with_capacity(config.lan.len());
    let mut missing = BTreeMap::new();
    for (index, lan) in config.lan.iter().enumerate() {
        let name = &lan.interface;
        let found = links.interface(name).await?;
        let problem = match &found {
            None => format!(
                "[[lan]] there is no interface {name} in this network namespace; see: ip link"
            ),
            Some(_) => format!("[[lan]] {name} is no Ethernet"),
        };
        let usable = found.and_then(|interface| Some((interface.mac?, interface)));
        let Some((mac, interface)) = usable else {
            missing.insert(name.clone(), problem);
            continue;
        };
        lans.push(LanPlan {
            is_egress: false,
            takes_replies: has_replies && interface.takes_redirects(),
            name: name.clone(),
            index: interface.index,
            mac,
            // The kernel forwards what comes from a VLAN.
            xdp: (config.needs_xdp() && !interface.is_vlan()).then_some(lan.xdp),
            namespace,
            number: lan_number(index),
        });
    }
    for egress in config.egress.values().filter(|egress| egress.returns) {
        // One that is not there now is no mistake; it is attached to when it comes.
        let interface = links.interface(&egress.interface).await?;
        let usable = interface.filter(|interface| !interface.is_vlan());
        let usable = usable.and_then(|interface| Some((interface.index, interface.mac?)));
        if let Some((index, mac)) = usable {
            lans.push(LanPlan {
                name: egress.interface.clone(),
                index,
                mac,
                xdp: Some(XdpAttach::Native),
                namespace,
                number: 0,
                is_egress: true,
                takes_replies: false,
            });
        }
    }
    Ok(Lans { lans, missing })
}

/// The number by which conditions tell a LAN interface from others. Those that no rule can name share one.
pub fn lan_number(index: usize) -> u8 {
    u8::try_from(index.min(MAX_GROUPS as usize)).unwrap_or(u8::MAX)
}
