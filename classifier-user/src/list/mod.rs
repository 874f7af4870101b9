//! Microsoft's list of endpoint sets: its model and where one comes from.
//!
//! A [`List`] is what Microsoft published for one instance, or several instances together. It
//! keeps what it cannot use as [`Problem`]s with the endpoint set's id, so that nothing is dropped silently.

mod embedded;
mod parse;
mod ports;

use std::fmt;

use breakout_common::table::Transport;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use embedded::embedded;
pub use parse::{ParseError, parse, read_file};
pub use ports::parse_ports;

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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Category {
    /// A category that Microsoft had not documented when this was written.
    Other(String),
    /// May take any way.
    Default,
    /// Should leave locally, tolerates some delay.
    Allow,
    /// Must leave locally and directly.
    Optimize,
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
            Category::Other(name) => name,
        })
    }
}

/// A protocol with a range of destination ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// What identifies an endpoint set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SetKey {
    /// The instance it belongs to.
    pub instance: Instance,
    /// Microsoft's id, unique within the instance.
    pub id: u32,
}

impl fmt::Display for SetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.instance, self.id)
    }
}

/// One row of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Whether Microsoft requires connectivity to it.
    pub required: bool,
    /// Whether it is reachable over ExpressRoute.
    pub express_route: bool,
}

impl EndpointSet {
    /// Whether packets can be matched to the set exactly: it has addresses and ports.
    pub fn is_usable(&self) -> bool {
        !self.prefixes.is_empty() && !self.ports.is_empty()
    }
}

/// Something in a list that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The endpoint set's id.
    pub id: u32,
    /// What is wrong with it.
    pub problem: String,
}

/// A list of one instance, as published at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The instance whose sets these are.
    pub instance: Instance,
    /// Microsoft's version, ten digits such as `2025111400`, where it is known.
    pub version: Option<String>,
    /// Where the list was taken from, for people.
    pub source: String,
    /// All sets, in the order published.
    pub sets: Vec<EndpointSet>,
    /// What cannot be used.
    pub problems: Vec<Problem>,
}

impl List {
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
