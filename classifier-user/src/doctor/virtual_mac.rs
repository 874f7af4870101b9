//! Check whether clients send to a virtual MAC address of VRRP, which is not the LAN interface's: the programs forward only what is addressed
//! to the interface that they are on.

use anyhow::Result;

use super::{Finding, Level};
use crate::config::Config;
use crate::links::{Interface, Links};

/// First bytes of VRRP's MAC addresses, over IPv4 and IPv6 (RFC 9568, section 7.3).
const VRRP: [[u8; 5]; 2] = [[0, 0, 0x5e, 0, 1], [0, 0, 0x5e, 0, 2]];

/// Looks for VRRP's interfaces on LAN interfaces that have addresses and are no LAN interfaces themselves.
pub(super) async fn examine(links: &Links, config: &Config) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if !config.needs_xdp() {
        return Ok(findings);
    }
    for lan in &config.lan {
        let Some(lan) = links.interface(&lan.interface).await? else {
            continue;
        };
        for upper in links.macvlans_on(&lan).await? {
            let is_lan = config.lan.iter().any(|lan| lan.interface == upper.name);
            let is_used = upper.has_usable_address(false) || upper.has_usable_address(true);
            let is_vrrp = upper
                .mac
                .is_some_and(|mac| VRRP.iter().any(|vrrp| mac.starts_with(vrrp)));
            if is_used && upper.running && is_vrrp && !is_lan {
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
            "what clients on {} send to the addresses of {}, which has a MAC address of VRRP, is not steered to egresses in redirect mode",
            lan.name, upper.name
        ),
        format!(
            "Add to the configuration: [[lan]] interface = \"{}\"",
            upper.name
        ),
    )
}
