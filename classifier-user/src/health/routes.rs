//! The routes of one path's probes: made once for each address, and again where nothing answers.
//!
//! The kernel may take long over a route, as somebody else holds its lock. No probe waits for that but the first to an address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::links::{Links, ProbeWay};

/// The shortest time between two tries to make a route again.
const AGAIN: Duration = Duration::from_secs(1);

/// The addresses that probes have routes to, along one way.
#[derive(Clone)]
pub(super) struct ProbeRoutes {
    links: Links,
    way: ProbeWay,
    led: Arc<Mutex<BTreeSet<IpAddr>>>,
    last: Arc<Mutex<Option<Instant>>>,
}

impl ProbeRoutes {
    /// There are none yet. Those of an earlier path to the same egress stay until they are known not to be needed.
    pub(super) fn new(links: Links, way: ProbeWay) -> Self {
        ProbeRoutes {
            links,
            way,
            led: Arc::default(),
            last: Arc::default(),
        }
    }

    /// Makes the route to an address, unless that was done before.
    pub(super) async fn lead(&self, address: IpAddr) -> Result<()> {
        if self.led().contains(&address) {
            return Ok(());
        }
        self.links.lead(address, &self.way).await?;
        self.led().insert(address);
        Ok(())
    }

    /// Makes it again in the background: somebody may have removed it.
    pub(super) fn lead_again(&self, address: IpAddr) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < AGAIN) {
            return;
        }
        *last = Some(Instant::now());
        let routes = self.clone();
        tokio::spawn(async move {
            if let Err(error) = routes.links.lead(address, &routes.way).await {
                tracing::debug!("{error:#}");
            }
        });
    }

    /// Removes the routes to addresses that are no longer probed, among them those of an earlier path.
    pub(super) fn retain(&self, wanted: &BTreeSet<IpAddr>) {
        self.led().retain(|address| wanted.contains(address));
        let (routes, wanted) = (self.clone(), wanted.clone());
        tokio::spawn(async move {
            if let Err(error) = routes.links.retain_probed(&routes.way, &wanted).await {
                tracing::debug!("{error:#}");
            }
        });
    }

    fn led(&self) -> std::sync::MutexGuard<'_, BTreeSet<IpAddr>> {
        self.led.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
