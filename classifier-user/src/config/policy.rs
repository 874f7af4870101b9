//! `[[policy]]` and `[[custom]]`.

use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OneOrMany, Ports, Preference, Share, Span};

/// `[[policy]]`: one rule; the first one that matches a packet decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Name in status, plan and explain.
    #[serde(default)]
    pub name: Option<String>,
    /// Instances it is about.
    #[serde(default)]
    pub instance: OneOrMany<String>,
    /// Categories it is about.
    #[serde(default)]
    pub category: OneOrMany<String>,
    /// Service areas it is about, as the list writes them; case does not matter.
    #[serde(default)]
    pub service_area: OneOrMany<String>,
    /// Ids of the endpoint sets it is about.
    #[serde(default)]
    pub sets: OneOrMany<u32>,
    /// Only sets whose connectivity Microsoft requires, or only others.
    #[serde(default)]
    pub required: Option<bool>,
    /// Only sets that are reachable over ExpressRoute, or only others.
    #[serde(default)]
    pub express_route: Option<bool>,
    /// `[[custom]]` sets it is about.
    #[serde(default)]
    pub custom: OneOrMany<String>,
    /// Only these protocols and ports of the sets.
    #[serde(default)]
    pub ports: Option<Ports>,
    /// Only clients with these source prefixes.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub sources: OneOrMany<IpNet>,
    /// Only clients behind these `[[lan]]` interfaces.
    #[serde(default)]
    pub lan: OneOrMany<String>,
    /// Only clients in these VLANs.
    #[serde(default)]
    pub vlan: OneOrMany<u16>,
    /// Only this share of the clients, by a hash of their addresses.
    #[serde(default)]
    pub share: Option<Share>,
    /// The egress to steer to, several in order of preference, several with weights, or `pass`.
    pub action: Preference,
    /// `soft`: its flows keep their current path; `hard`: each packet takes the best egress, so flows move back at once.
    #[serde(default)]
    pub failback: Failback,
    /// Class for which an egress must be good enough: `media` or `standard`. Sets with Teams' media ports are media
    /// when absent.
    #[serde(default)]
    pub class: Option<Class>,
    /// Decides and counts, but steers nothing.
    #[serde(default)]
    pub shadow: bool,
    /// Time for which the rule still steers what Microsoft no longer publishes; `[list] grace` when absent.
    #[serde(default)]
    pub grace: Option<Span>,
}

/// Behaviour of flows when their rule's preferred egress is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Failback {
    /// They stay where they are.
    #[default]
    Soft,
    /// They go back at once.
    Hard,
}

/// Class of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Calls and meetings: loss and latency are heard.
    Media,
    /// Everything else.
    Standard,
}

/// `[[custom]]`: an endpoint set of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomConfig {
    /// Its name, for `custom` in `[[policy]]`.
    pub name: String,
    /// Destination prefixes.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub prefixes: OneOrMany<IpNet>,
    /// A file with more of them, one a line.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Protocols and ports; all of TCP and UDP without.
    #[serde(default)]
    pub ports: Option<Ports>,
}
