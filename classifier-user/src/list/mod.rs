//! Microsoft's list of endpoint sets: its model and where one comes from.
//!
//! A [`List`] is what Microsoft published for one instance, or several instances together. It
//! keeps what it cannot use as [`Problem`]s with the endpoint set's id, so that nothing is dropped silently.

mod candidate;
mod changes;
mod coverage;
mod delta;
mod embedded;
mod fetch;
mod fetch_error;
mod grace;
mod judge;
mod kept;
mod parse;
mod ports;
mod record;
mod row;
mod schedule;
mod service;
mod simulate;

use std::fmt;
use std::sync::OnceLock;

use breakout_common::table::Transport;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex::hex;
use crate::timestamp::Timestamp;

pub use candidate::{Beside, Candidate};
pub use changes::pending;
pub use coverage::{Coverage, Family};
pub use delta::{ListDelta, SetDelta};
pub use embedded::embedded;
pub use fetch::{Fetched, check};
pub use fetch_error::FetchError;
pub use grace::with_grace;
pub use judge::{Finding, Judge, Judgement, Steers};
pub use kept::{Held, InForce, Kept, split_name};
pub use parse::{ParseError, parse, parse_prefix, read_bytes, read_file};
pub use ports::{parse_ports, parse_protocol_and_ports};
pub use record::Record;
pub use schedule::Schedule;
pub use service::{Limits, Service};
pub use simulate::{Simulated, Simulation, SteeredFamily};

/// One of Microsoft's clouds. The same endpoint set id means different things in different instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Instance {
    /// The worldwide commercial cloud, with GCC.
    Worldwide,
    /// Office 365 operated by 21Vianet.
    China,
    /// US Government DoD.
    USGovDoD,
    /// US Government GCC High.
    USGovGCCHigh,
}

impl Instance {
    /// All instances.
    pub const ALL: [Instance; 4] = [
        Instance::Worldwide,
        Instance::China,
        Instance::USGovDoD,
        Instance::USGovGCCHigh,
    ];

    /// The name the web service uses in its paths.
    pub const fn name(self) -> &'static str {
        match self {
            Instance::Worldwide => "Worldwide",
            Instance::China => "China",
            Instance::USGovDoD => "USGovDoD",
            Instance::USGovGCCHigh => "USGovGCCHigh",
        }
    }

    /// The instance with this name; case does not matter.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|instance| instance.name().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Microsoft's category of an endpoint set. Later variants win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Category {
    /// A category that Microsoft had not documented when this was written.
    Other(String),
    /// May take any way.
    Default,
    /// Should leave locally, tolerates some delay.
    Allow,
    /// Must leave locally and directly.
    Optimize,
    /// Not Microsoft's: a set of the operator's own.
    Custom,
}

impl From<&str> for Category {
    fn from(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "optimize" => Category::Optimize,
            "allow" => Category::Allow,
            "default" => Category::Default,
            _ => Category::Other(name.to_owned()),
        }
    }
}

impl From<String> for Category {
    fn from(name: String) -> Self {
        name.as_str().into()
    }
}

impl From<Category> for String {
    fn from(category: Category) -> Self {
        category.to_string()
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Category::Optimize => "Optimize",
            Category::Allow => "Allow",
            Category::Default => "Default",
            Category::Custom => "Custom",
            Category::Other(name) => name,
        })
    }
}

/// A protocol with a range of destination ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// TCP or UDP.
    pub transport: Transport,
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        };
        if self.first == self.last {
            write!(f, "{transport} {}", self.first)
        } else {
            write!(f, "{transport} {}-{}", self.first, self.last)
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match parse_protocol_and_ports(&text)?.as_slice() {
            [range] => Ok(*range),
            _ => Err(format!("\"{text}\" is not one range of ports")),
        }
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// Key of an endpoint set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SetKey {
    /// One of Microsoft's.
    Published {
        /// The instance it belongs to.
        instance: Instance,
        /// Microsoft's id, unique within the instance.
        id: u32,
    },
    /// One of the operator's own.
    Custom {
        /// Its name.
        name: String,
    },
}

impl SetKey {
    /// The key of a published set.
    pub const fn published(instance: Instance, id: u32) -> Self {
        SetKey::Published { instance, id }
    }

    /// The instance of a published set.
    pub const fn instance(&self) -> Option<Instance> {
        match self {
            SetKey::Published { instance, .. } => Some(*instance),
            SetKey::Custom { .. } => None,
        }
    }

    /// The id of a published set.
    pub const fn id(&self) -> Option<u32> {
        match self {
            SetKey::Published { id, .. } => Some(*id),
            SetKey::Custom { .. } => None,
        }
    }

    /// The name of a custom set.
    pub fn name(&self) -> Option<&str> {
        match self {
            SetKey::Published { .. } => None,
            SetKey::Custom { name } => Some(name),
        }
    }

    /// Returns whether both are of one instance, or the same custom set: of those a packet belongs to one at most.
    pub fn same_origin(&self, other: &SetKey) -> bool {
        match (self.instance(), other.instance()) {
            (None, None) => self == other,
            (instance, other) => instance == other,
        }
    }
}

impl fmt::Display for SetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetKey::Published { instance, id } => write!(f, "{instance} {id}"),
            SetKey::Custom { name } => write!(f, "custom {name}"),
        }
    }
}

/// One row of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSet {
    /// Instance and id.
    pub key: SetKey,
    /// Exchange, Skype (which is Teams), SharePoint, Common, or a name nobody documented.
    pub service_area: String,
    /// Optimize, Allow, Default or unknown.
    pub category: Category,
    /// Destination prefixes, as published: never merged across sets.
    pub prefixes: Vec<IpNet>,
    /// Protocols and destination ports.
    pub ports: Vec<PortRange>,
    /// Host names, with wildcards. The data path has no use for them.
    pub urls: Vec<String>,
    /// True if Microsoft requires connectivity to it.
    pub required: bool,
    /// True if it is reachable over ExpressRoute.
    pub express_route: bool,
    /// If Microsoft no longer publishes it: since when, as far as we know.
    pub withdrawn: Option<Timestamp>,
}

impl EndpointSet {
    /// Returns whether packets can be matched to the set exactly: it has addresses and ports.
    pub fn is_usable(&self) -> bool {
        !self.prefixes.is_empty() && !self.ports.is_empty()
    }

    /// Moves along since when it is withdrawn, after the clock was set.
    pub fn move_by(&mut self, step: i64) {
        self.withdrawn = self.withdrawn.map(|since| since.moved_by(step));
    }

    /// Returns whether users sign in there. Tenant restrictions and conditional access by address apply to that.
    pub fn is_sign_in(&self) -> bool {
        const HOSTS: [&str; 3] = [
            "login.microsoftonline.com",
            "login.microsoftonline.us",
            "login.partner.microsoftonline.cn",
        ];
        self.key == SetKey::published(Instance::Worldwide, 56)
            || self.urls.iter().any(|url| HOSTS.contains(&url.as_str()))
    }
}

/// Something in a list that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The endpoint set's id, if it can be read.
    pub id: Option<u32>,
    /// Message.
    pub problem: String,
    /// Severity.
    pub severity: Severity,
}

/// Severity of a problem of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Well written, but of no use here.
    Useless,
    /// Something cannot be understood, and was left out.
    Damaged,
    /// It cannot be told what the list says.
    Contradictory,
}

/// Additions that Microsoft has announced for a later day. They are in the list already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pending {
    /// The endpoint set's id.
    pub id: u32,
    /// The prefixes and URLs that are new.
    pub added: Vec<String>,
    /// The day from which on they are used.
    pub effective: Timestamp,
}

/// A list of one instance, as published at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The instance whose sets these are.
    pub instance: Instance,
    /// Microsoft's version, ten digits such as `2025111400`, where it is known.
    pub version: Option<String>,
    /// Source of the list, for people.
    pub source: String,
    /// Time at which it was fetched.
    pub fetched: Option<Timestamp>,
    /// The number under which it is kept, if it is.
    pub record: Option<u32>,
    /// All sets, in the order published, and behind them what is withdrawn but still in its grace time.
    pub sets: Vec<EndpointSet>,
    /// Problems: rows and values that cannot be used.
    pub problems: Vec<Problem>,
    /// Additions that are announced for later.
    pub pending: Vec<Pending>,
    hash: Hash,
}

/// The hash of a list once it was asked for: of a large one it takes a second.
#[derive(Clone, Debug, Default)]
struct Hash(OnceLock<String>);

/// It follows from everything else.
impl PartialEq for Hash {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Hash {}

/// A set's content, in one notation.
fn canonical(set: &EndpointSet) -> String {
    let sorted = |texts: Vec<String>| {
        let mut texts = texts;
        texts.sort_unstable();
        texts.dedup();
        texts.join(",")
    };
    format!(
        "{} {} {} {} {} [{}] [{}] [{}]\n",
        set.key,
        set.service_area,
        set.category,
        set.required,
        set.express_route,
        sorted(set.prefixes.iter().map(ToString::to_string).collect()),
        sorted(set.ports.iter().map(ToString::to_string).collect()),
        sorted(set.urls.clone()),
    )
}

impl List {
    /// The sets that are published.
    pub fn published(&self) -> impl Iterator<Item = &EndpointSet> {
        self.sets.iter().filter(|set| set.withdrawn.is_none())
    }

    /// Returns what is withdrawn but still in its grace time.
    pub fn withdrawn(&self) -> impl Iterator<Item = &EndpointSet> {
        self.sets.iter().filter(|set| set.withdrawn.is_some())
    }

    /// Returns what is announced for after a time.
    pub fn pending_at(&self, now: Timestamp) -> impl Iterator<Item = &Pending> {
        self.pending
            .iter()
            .filter(move |pending| pending.effective > now)
    }

    /// Instance and version, for people.
    pub fn name(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.instance),
            None => format!("{} of unknown version", self.instance),
        }
    }

    /// A hash of the published content, as hexadecimal digits: of all that is known of each set, in whatever order and notation it
    /// was written.
    pub fn hash(&self) -> String {
        self.hash.0.get_or_init(|| self.hashed()).clone()
    }

    fn hashed(&self) -> String {
        let mut lines: Vec<String> = self.published().map(canonical).collect();
        // What could not be read is content as well.
        let problems = self.problems.iter();
        let damaged = problems.filter(|problem| problem.severity > Severity::Useless);
        lines.extend(damaged.map(|problem| format!("{:?} {}\n", problem.id, problem.problem)));
        lines.sort_unstable();
        hex(&Sha256::digest(lines.concat()))
    }

    /// The number of IPv4 and of IPv6 prefixes in the sets of one category.
    pub fn prefix_counts(&self, category: &Category) -> (usize, usize) {
        let of_category = self.sets.iter().filter(|set| set.category == *category);
        of_category
            .flat_map(|set| &set.prefixes)
            .fold((0, 0), |(v4, v6), prefix| match prefix {
                IpNet::V4(_) => (v4 + 1, v6),
                IpNet::V6(_) => (v4, v6 + 1),
            })
    }
}
