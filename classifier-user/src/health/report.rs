//! Paths that are probed, and reports on them.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::{Measure, Target};
use crate::config::HealthConfig;
use crate::links::ProbeWay;

/// Path that is probed.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// The egress.
    pub egress: String,
    /// The address family.
    pub v6: bool,
    /// The interface that probes are bound to.
    pub interface: String,
    /// The firewall mark that leads to the egress's routing table.
    pub mark: u32,
    /// The way that probes have routes along, where the mark leads nowhere.
    pub way: Option<ProbeWay>,
    /// The targets.
    pub targets: Vec<Target>,
    /// Intervals and limits.
    pub health: HealthConfig,
    /// Budget of bytes a month.
    pub budget: Option<u64>,
}

/// Report on a path by its probes.
#[derive(Clone, Debug)]
pub struct Report {
    /// The path.
    pub path: Arc<Path>,
    /// Current measurement.
    pub measure: Measure,
    /// The address that a STUN server has seen last, and when, if one tells.
    pub public: Option<(IpAddr, Instant)>,
    /// True if the last answers are missing, so that the next hop may have another MAC address.
    pub is_doubtful: bool,
}

/// The latest report of each prober. A newer one takes the place of one that nobody has read, so none is read late.
#[derive(Default)]
pub struct Reports {
    latest: Mutex<Vec<Report>>,
    arrived: Notify,
}

impl Reports {
    /// Puts a report in the place of the one before.
    pub(super) fn put(&self, report: Report) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.retain(|other| other.path != report.path);
        latest.push(report);
        self.arrived.notify_one();
    }

    /// Waits for reports and takes those that are there. May be dropped at any time without losing one.
    pub async fn next(&self) -> Vec<Report> {
        loop {
            let latest = {
                let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *latest)
            };
            if !latest.is_empty() {
                return latest;
            }
            self.arrived.notified().await;
        }
    }
}
