//! Whether clients send to a MAC address that is not the LAN interface's, as of a VRRP address: the programs forward only what is
//! addressed to the interface that they are on.

use anyhow::Result;

use super::{Finding, Level};
use crate::config::{Config, Mode};
use crate::links::{Interface, Links};

/// Looks for interfaces on LAN interfaces that have addresses and are no LAN interfaces themselves.
pub(super) async fn examine(links: &Links, config: &Config) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let redirects = |egress: &crate::config::EgressConfig| egress.mode == Mode::Redirect;
    if !config.egress.values().any(redirects) {
        return Ok(findings);
    }
    for lan in &config.lan {
        let Some(lan) = links.interface(&lan.interface).await? else {
            continue;
        };
        for upper in links.macvlans_on(&lan).await? {
            let is_lan = config.lan.iter().any(|lan| lan.interface == upper.name);
            let is_used = upper.has_usable_address(false) || upper.has_usable_address(true);
            if is_used && upper.running && !is_lan {
                findings.push(not_steered(&lan, &upper));
            }
        }
    }
    Ok(findings)
}

fn not_steered(lan: &Interface, upper: &Interface) -> Finding {
    Finding::new(
        Level::Error,
        format!(
            "what clients on {} send to the addresses of {}, which has a MAC address of its own as for VRRP, is not steered to egresses \
             in redirect mode",
            lan.name, upper.name
        ),
        format!(
            "Add to the configuration: [[lan]] interface = \"{}\"",
            upper.name
        ),
    )
}
