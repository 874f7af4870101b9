//! Removing everything: at a stop, and after a controller that died.

use std::io;

use anyhow::{Context, Result, anyhow};

use super::egress;
use super::nat::nat_plan;
use super::pinning::{connections, pinned_to_egresses};
use super::state::{Persistent, StateDirectory};
use super::translation::translate_afresh;
use crate::config::Config;
use crate::datapath::DataPath;
use crate::durable;
use crate::exit::{Code, WithCode};
use crate::links::{Links, network_namespace};

/// Removes what a controller that died has left.
///
/// # Errors
///
/// When a controller is running, or something cannot be removed.
pub async fn unload(config: &Config) -> Result<()> {
    let state = StateDirectory::lock(&config.state.directory)?;
    let persistent = match state.load() {
        Some(persistent) => persistent,
        // Where it is not known what there is, all of it is looked for.
        None => Persistent {
            nat: nat_plan(&config.routing, Vec::new()).is_there().await,
            ..Persistent::default()
        },
    };
    if persistent.installed && persistent.namespace != network_namespace()? {
        return Err(anyhow!(
            "the controller ran in another network namespace, where its rules and routes are. Run this there: ip netns \
             exec NAME breakout unload --config FILE"
        ))
        .code(Code::System);
    }
    let links = Links::open().code(Code::System)?;
    let datapath = DataPath::open(&config.state.directory).code(Code::System)?;
    let has_former = !persistent.former_routing.is_empty();
    if !persistent.installed && !has_former && !datapath.has_leftovers() {
        eprintln!("nothing is installed");
    }
    let moving = connections(pinned_to_egresses(&datapath));
    remove(datapath, &links, config, &state, persistent).await?;
    translate_afresh(&moving);
    links.remove_assessed().await.code(Code::System)?;
    let socket = &config.control.socket;
    durable::remove(socket).with_context(|| format!("cannot remove {}", socket.display()))
}

pub(super) async fn remove(
    datapath: DataPath,
    links: &Links,
    config: &Config,
    state: &StateDirectory,
    mut persistent: Persistent,
) -> Result<()> {
    let mut lans = std::mem::take(&mut persistent.lans);
    lans.extend(config.lan.iter().map(|lan| lan.interface.clone()));
    let egresses = config
        .egress
        .values()
        .filter(|egress| egress.is_translated());
    lans.extend(egresses.map(|egress| egress.interface.clone()));
    let mut outcome = datapath.uninstall(&lans);
    for name in std::mem::take(&mut persistent.clsact) {
        if let Some(interface) = links.interface(&name).await? {
            outcome = outcome.and(links.remove_clsact(interface.index).await);
        }
    }
    let numbers = persistent
        .routing
        .take()
        .unwrap_or_else(|| config.routing.clone());
    let mut all = std::mem::take(&mut persistent.former_routing);
    all.push(numbers);
    let (mut routing, mut nat) = (Ok(()), Ok(()));
    for numbers in all {
        let removed = links.apply_routing(&egress::empty_routing(&numbers)).await;
        if removed.is_err() {
            persistent.former_routing.push(numbers.clone());
        }
        routing = routing.and(removed);
        if persistent.nat {
            nat = nat.and(nat_plan(&numbers, Vec::new()).remove().await);
        }
    }
    persistent.nat = nat.is_err();
    persistent.installed = false;
    // The counters are gone, so the sets are numbered afresh; generations go on.
    persistent.slots.clear();
    persistent.egresses.clear();
    persistent.preferences.clear();
    // All that matters is gone; a full disk only has the next start look for it once more.
    let saved = state.save(&persistent).or_else(|error| {
        let cause = error.root_cause().downcast_ref::<io::Error>();
        match cause.is_some_and(durable::is_full) {
            true => {
                tracing::warn!("{error:#}");
                Ok(())
            }
            false => Err(error),
        }
    });
    outcome.and(routing).and(nat).and(saved)
}
