//! Whom an assessment asks.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use reqwest::Url;

use super::resolver::{of_the_system, resolve};
use crate::config::{AssessConfig, Config};
use crate::health::{Bound, Kind, Target};
use crate::list::Instance;

/// Front doors and relays of each cloud (Microsoft, "Office 365 URLs and IP address ranges" of the cloud; relays: "Microsoft 365 network
/// connectivity test tool").
const OF_CLOUDS: [(Instance, &[&str]); 4] = [
    (
        Instance::Worldwide,
        &[
            "tls:outlook.office365.com",
            "tls:teams.microsoft.com",
            "turn:world.tr.teams.microsoft.com",
        ],
    ),
    (Instance::China, &["tls:partner.outlook.cn"]),
    (Instance::USGovDoD, &["tls:outlook-dod.office365.us"]),
    (
        Instance::USGovGCCHigh,
        &["tls:outlook.office365.us", "tls:gov.teams.microsoft.us"],
    ),
];

/// All that is asked.
pub(super) struct Targets {
    /// The resolver of the clients.
    pub(super) resolver: IpAddr,
    pub(super) doors: Vec<Target>,
    pub(super) relays: Vec<Target>,
    pub(super) stun: Option<Target>,
    pub(super) download: Option<Url>,
}

impl Targets {
    /// Reads the configuration, and the system's resolver where it names none.
    ///
    /// # Errors
    ///
    /// Fails if there is no resolver.
    pub(super) fn of(config: &Config) -> Result<Self> {
        let AssessConfig {
            resolver,
            targets,
            stun,
            download,
        } = &config.assess;
        let resolver = match resolver {
            Some(resolver) => *resolver,
            None => of_the_system()
                .context("cannot read /etc/resolv.conf")?
                .context(
                    "/etc/resolv.conf names no resolver; name the clients' as [assess] resolver",
                )?,
        };
        let named = match targets {
            Some(targets) => targets.to_vec(),
            None => default_targets(&config.list.instances()),
        };
        let (doors, relays) = named
            .into_iter()
            .partition(|target| target.kind == Kind::Tls);
        let download = download.as_ref().map(|url| Url::parse(url));
        Ok(Targets {
            resolver,
            doors,
            relays,
            stun: stun.clone(),
            download: download.transpose()?,
        })
    }

    /// Finds the address that clients connect to for a host, if it has one of that family.
    pub(super) async fn address(
        &self,
        host: &str,
        port: u16,
        v6: bool,
    ) -> Result<Option<SocketAddr>> {
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let address = match literal {
            Ok(address) => Some(address).filter(|address| address.is_ipv6() == v6),
            Err(_) => {
                let resolved = resolve(&Bound::default(), self.resolver, host, v6).await?;
                resolved.addresses.first().copied()
            }
        };
        Ok(address.map(|address| SocketAddr::new(address, port)))
    }
}

fn default_targets(instances: &[Instance]) -> Vec<Target> {
    let clouds = OF_CLOUDS
        .iter()
        .filter(|(instance, _)| instances.contains(instance));
    clouds
        .flat_map(|(_, targets)| targets.iter().filter_map(|target| target.parse().ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cloud_has_front_doors_by_name() {
        for instance in Instance::ALL {
            let targets = default_targets(&[instance]);
            let doors = targets.iter().filter(|target| target.kind == Kind::Tls);
            assert!(doors.clone().count() > 0, "{instance}");
            assert!(
                doors
                    .clone()
                    .all(|target| target.address().is_none() && target.port == 443)
            );
        }
        let all = OF_CLOUDS
            .iter()
            .map(|(_, targets)| targets.len())
            .sum::<usize>();
        assert_eq!(
            default_targets(&Instance::ALL).len(),
            all,
            "one cannot be parsed"
        );
    }
}
