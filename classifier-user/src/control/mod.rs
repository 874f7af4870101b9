//! The control socket: HTTP with JSON over a Unix socket, so that curl can use it too.

mod client;
mod server;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::datapath::Count;
use crate::explain::{Explanation, Query};
use crate::list::Problem;

pub use client::{Client, ClientError};
pub use server::Server;

/// What a command asks of the controller.
#[derive(Debug)]
pub enum Request {
    /// `GET /v1/status`
    Status(Reply<Status>),
    /// `GET /v1/stats`
    Stats(Reply<Stats>),
    /// `GET /v1/list`
    List(Reply<ListReport>),
    /// `POST /v1/explain`
    Explain(Query, Reply<Explanation>),
    /// `POST /v1/reload`
    Reload(Reply<Reloaded>),
}

/// Where the answer goes.
pub type Reply<T> = oneshot::Sender<anyhow::Result<T>>;

/// What the controller is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The controller's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Whether it took over from an earlier controller.
    pub adopted: bool,
    /// The configuration file.
    pub config: String,
    /// The ruleset in force.
    pub ruleset: RulesetStatus,
    /// The list it was made from.
    pub list: ListSummary,
    /// The LAN interfaces.
    pub lan: Vec<LanStatus>,
    /// The egresses, by name.
    pub egress: BTreeMap<String, EgressStatus>,
}

/// The ruleset in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesetStatus {
    /// Its generation.
    pub generation: u32,
    /// A hash of what it matches and does.
    pub hash: String,
    /// Endpoint sets that are steered.
    pub steered_sets: usize,
    /// Their IPv4 prefixes.
    pub steered_v4: usize,
    /// Their IPv6 prefixes.
    pub steered_v6: usize,
    /// Size of its table in the kernel.
    pub table_bytes: u64,
}

/// A list in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSummary {
    /// Its instance.
    pub instance: String,
    /// Microsoft's version, where it is known.
    pub version: Option<String>,
    /// Where it came from.
    pub source: String,
    /// Endpoint sets in it.
    pub sets: usize,
    /// What in it cannot be used.
    pub problems: usize,
}

/// A LAN interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanStatus {
    /// Its name.
    pub interface: String,
    /// How the XDP program is attached: `native`, `generic`, or not.
    pub xdp: Option<String>,
    /// Why nothing is steered from the LAN interfaces, if so.
    pub problem: Option<String>,
}

/// An egress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressStatus {
    /// Its interface.
    pub interface: String,
    /// `route` or `redirect`.
    pub mode: String,
    /// The way out for IPv4.
    pub v4: WayOut,
    /// The way out for IPv6.
    pub v6: WayOut,
    /// Why there is no way out, if so.
    pub problem: Option<String>,
    /// Why XDP leaves everything to the kernel in redirect mode, if so.
    pub by_kernel: Option<String>,
    /// Firewall mark and mask, as `ip rule` writes them.
    pub mark: String,
    /// Its routing table.
    pub table: u32,
}

/// The way out for one address family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayOut {
    /// Whether packets are steered there.
    pub up: bool,
    /// The next hop; none on a point-to-point link.
    pub gateway: Option<String>,
    /// The next hop's MAC address, if it is known.
    pub mac: Option<String>,
}

/// The counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The generation in force.
    pub generation: u32,
    /// By reason. Every reason is there, also those that never occurred.
    pub reasons: Vec<ReasonCount>,
    /// By endpoint set in force.
    pub endpoint_sets: Vec<SetCount>,
}

/// One reason's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Its stable name.
    pub reason: String,
    /// `steer` or `pass`.
    pub verdict: String,
    /// Packets and bytes.
    #[serde(flatten)]
    pub count: Count,
    /// What it means.
    pub description: String,
}

/// One endpoint set's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetCount {
    /// Its instance.
    pub instance: String,
    /// Its id.
    pub id: u32,
    /// Its service area.
    pub service_area: String,
    /// Its category.
    pub category: String,
    /// The egress it is steered to; none where the policy passes it.
    pub egress: Option<String>,
    /// Packets and bytes.
    #[serde(flatten)]
    pub count: Count,
}

/// The list in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListReport {
    /// The list in a line.
    #[serde(flatten)]
    pub summary: ListSummary,
    /// Its endpoint sets.
    pub endpoint_sets: Vec<ListedSet>,
    /// What in it cannot be used.
    pub unusable: Vec<Unusable>,
}

/// One endpoint set of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSet {
    /// Its id.
    pub id: u32,
    /// Its service area.
    pub service_area: String,
    /// Its category.
    pub category: String,
    /// Its prefixes.
    pub prefixes: Vec<String>,
    /// Its protocols and ports.
    pub ports: Vec<String>,
    /// The egress it is steered to; none where it passes.
    pub egress: Option<String>,
}

/// Something in the list that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// The endpoint set's id.
    pub id: u32,
    /// What is wrong with it.
    pub problem: String,
}

impl From<&Problem> for Unusable {
    fn from(problem: &Problem) -> Self {
        Unusable {
            id: problem.id,
            problem: problem.problem.clone(),
        }
    }
}

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The generation before.
    pub from_generation: u32,
    /// The generation in force now.
    pub to_generation: u32,
    /// Whether what is matched, or what is done with it, has changed.
    pub changed: bool,
    /// The list now in use.
    pub list: ListSummary,
}

/// What the socket answers when something failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Failure {
    error: String,
    code: u8,
}
