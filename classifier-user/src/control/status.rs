//! State and counters of the controller.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use breakout_common::verdict::Reason;

use super::ListSummary;
use crate::datapath::Count;
use crate::health::Standing;
use crate::ruleset::Rule;
use crate::timestamp::Timestamp;

/// State of the controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The controller's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// True if it took over from an earlier controller.
    pub adopted: bool,
    /// The configuration file.
    pub config: String,
    /// Alerts that an operator should look at; empty if all is well.
    pub alerts: Vec<String>,
    /// The ruleset in force.
    pub ruleset: RulesetStatus,
    /// True if the whole policy is decided and counted, but nothing is steered.
    pub shadow: bool,
    /// If steering is switched off for a time.
    pub bypass: Option<BypassStatus>,
    /// The list of the first instance.
    pub list: ListSummary,
    /// The lists of all instances.
    pub lists: Vec<ListSummary>,
    /// Update status of the lists; none for lists that are used unvalidated.
    pub follow: Vec<FollowStatus>,
    /// The LAN interfaces.
    pub lan: Vec<LanStatus>,
    /// The programs, as they were found a short time ago.
    pub programs: Vec<ProgramStatus>,
    /// The flows that the programs translate, as they were counted a short time ago; none where they translate nothing.
    pub nat: Option<NatStatus>,
    /// The egresses, by name.
    pub egress: BTreeMap<String, EgressStatus>,
    /// Packets and bytes by reason, those that there are.
    pub reasons: Vec<ReasonCount>,
}

/// The ruleset in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Steering is switched off for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BypassStatus {
    /// Since when.
    pub since: Timestamp,
    /// Until when, unless it is until further notice.
    pub until: Option<Timestamp>,
}

/// Update status of an instance's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FollowStatus {
    /// The instance.
    pub instance: String,
    /// Source.
    pub source: String,
    /// Seconds since the list was last known to be the newest.
    pub age_seconds: Option<u64>,
    /// True if that is longer ago than `[list] stale_after`.
    pub is_stale: bool,
    /// The last attempt.
    pub last_attempt: Option<Timestamp>,
    /// The last attempt that succeeded.
    pub last_success: Option<Timestamp>,
    /// Attempts that have failed since.
    pub failures: u32,
    /// Reason why the last one failed, if it did.
    pub last_error: Option<String>,
    /// Time at which the next one is due.
    pub next: Option<Timestamp>,
    /// Since when later lists wait, after a rollback.
    pub held: Option<Timestamp>,
    /// A good list that waits to be applied.
    pub waiting: Option<String>,
    /// The newest list, if the judge has refused it.
    pub refused: Option<RefusedList>,
    /// Endpoint sets, or parts of them, that are withdrawn and in their grace time.
    pub withdrawn: usize,
    /// Kept files that are damaged.
    pub damaged: Vec<String>,
}

/// A list that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedList {
    /// Its version, or the start of its hash.
    pub version: String,
    /// Reason.
    pub why: String,
    /// The list before, if that was refused as well and this one agrees with it.
    #[serde(default)]
    pub agrees_with: Option<String>,
}

/// An endpoint set in answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetReport {
    /// Its instance, or `custom`.
    pub instance: String,
    /// Its id; none of a custom set.
    pub id: Option<u32>,
    /// Its service area; of a custom set its name.
    pub service_area: String,
    /// Its category.
    pub category: String,
}

impl From<&Rule> for SetReport {
    fn from(rule: &Rule) -> Self {
        let instance = rule.key.instance();
        SetReport {
            instance: instance.map_or("custom".to_owned(), |instance| instance.to_string()),
            id: rule.key.id(),
            service_area: rule.service_area.clone(),
            category: rule.category.to_string(),
        }
    }
}

/// A LAN interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LanStatus {
    /// Its name.
    pub interface: String,
    /// Mode of the XDP program: `native` or `generic`; null if it is not attached.
    pub xdp: Option<String>,
    /// Reason why XDP is not attached, where the interface has refused it. TC does all of the work there.
    #[serde(default)]
    pub why_no_xdp: Option<String>,
    /// Reason why nothing is steered from the LAN interfaces; null if it does not apply.
    pub problem: Option<String>,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramStatus {
    /// The interface.
    pub interface: String,
    /// Hook: `xdp`, `tc`, `answers` (TC, notes which flows are answered), or `replies` (TC on an egress, takes replies of translated
    /// flows).
    pub hook: String,
    /// True if it is attached there still; if not, somebody has detached it, or replaced it by another one.
    pub in_place: bool,
}

/// The flows that the programs translate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatStatus {
    /// Number of flows that have a public port.
    pub flows: usize,
    /// Number of flows to one remote address and port that can have one, of TCP and of UDP.
    pub ports: u32,
    /// The remote address and port that is nearest to having no public port left.
    pub busiest: Option<BusiestRemote>,
}

/// A remote address and port, and how many flows it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BusiestRemote {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The address and port.
    pub remote: SocketAddrV4,
    /// Its flows.
    pub flows: u32,
    /// Number of its possible public ports that are taken, by its flows and those of others with which it shares them.
    pub ports_used: u32,
}

/// An egress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EgressStatus {
    /// Its interface.
    pub interface: String,
    /// `route` or `redirect`.
    pub mode: String,
    /// True if steered packets get its address.
    pub masquerade: bool,
    /// The public address that the programs give IPv4 flows in redirect mode.
    pub public_address: Option<Ipv4Addr>,
    /// The way out for IPv4.
    pub v4: WayOut,
    /// The way out for IPv6.
    pub v6: WayOut,
    /// Reason why there is no way out; null if it does not apply.
    pub problem: Option<String>,
    /// Program that forwards in redirect mode: `xdp` or `tc`.
    pub hook: Option<String>,
    /// Reason why TC forwards and not XDP; null if XDP does, or in route mode.
    pub why_tc: Option<String>,
    /// In route mode the firewall mark and mask, as `ip rule` writes them.
    pub mark: Option<String>,
    /// In route mode its routing table.
    pub table: Option<u32>,
}

/// The way out for one address family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WayOut {
    /// True if packets are steered there.
    pub up: bool,
    /// The next hop; none on a point-to-point link.
    pub gateway: Option<String>,
    /// True if there is a path without the address of a next hop, as on a point-to-point link.
    #[serde(default)]
    pub direct: bool,
    /// The next hop's MAC address, if it is known.
    pub mac: Option<String>,
    /// Health; none before it was looked at.
    pub standing: Option<Standing>,
}

/// The counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// The generation in force.
    pub generation: u32,
    /// By reason. Every reason is there, also those that never occurred.
    pub reasons: Vec<ReasonCount>,
    /// By endpoint set in force.
    pub endpoint_sets: Vec<SetCount>,
    /// Replies by egresses with `return = true`, and to translated flows.
    pub replies: RepliesCount,
}

/// Replies of steered flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepliesCount {
    /// Those that the programs forwarded.
    pub redirected: Count,
    /// Those that they left to the kernel.
    pub by_kernel: Count,
}

/// One reason's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReasonCount {
    /// Its stable name.
    pub reason: String,
    /// `steer` or `pass`.
    pub verdict: String,
    /// Packets and bytes.
    #[serde(flatten)]
    pub count: Count,
    /// Meaning.
    pub description: String,
}

impl ReasonCount {
    /// Returns what was counted for a reason.
    pub fn of(reason: Reason, count: Count) -> Self {
        ReasonCount {
            reason: reason.name().to_owned(),
            verdict: if reason.is_steer() { "steer" } else { "pass" }.to_owned(),
            count,
            description: reason.description().to_owned(),
        }
    }
}

/// One endpoint set's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetCount {
    /// The set.
    #[serde(flatten)]
    pub set: SetReport,
    /// The egresses it may be steered to; none where the policy passes it.
    pub egress: Option<String>,
    /// Packets and bytes.
    #[serde(flatten)]
    pub count: Count,
}
