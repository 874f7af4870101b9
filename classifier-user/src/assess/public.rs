//! The public address of a path.

use std::net::IpAddr;

use super::media::reach;
use super::path::Path;
use super::targets::Targets;

/// Asks which public address packets have on a path: the named server, or a relay that tells.
pub(super) async fn public_address(targets: &Targets, path: &Path) -> Option<IpAddr> {
    let asked = targets.stun.iter().chain(&targets.relays);
    for target in asked {
        let address = targets.address(&target.host, target.port, path.v6).await;
        let Ok(Some(address)) = address else { continue };
        if path.lead(address.ip()).await.is_err() {
            continue;
        }
        if let Ok((_, Some(mapped))) = reach(&path.bound, address).await {
            return Some(mapped.ip());
        }
    }
    None
}
