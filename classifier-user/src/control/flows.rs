//! Pinned flows and events, as the socket answers them.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::events::Event;

/// A question for what has happened.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct EventsQuery {
    /// Only events with higher numbers.
    #[serde(default)]
    pub after: u64,
}

/// Events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventsReport {
    /// The oldest first.
    pub events: Vec<Event>,
}

/// A question for flows.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlowsQuery {
    /// At most so many.
    pub limit: usize,
}

/// An order to forget what is known of a client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ForgetOrder {
    /// Its address.
    pub client: IpAddr,
}

/// Pinned flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowsReport {
    /// True if flows are pinned.
    pub enabled: bool,
    /// Number of flows that are pinned now.
    pub pinned: usize,
    /// Number of clients whose media has a path now, which takes a pin too.
    pub clients: usize,
    /// Number of pins that there is room for.
    pub size: u32,
    /// Those with the latest packets.
    pub flows: Vec<PinnedFlow>,
}

/// A pinned flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PinnedFlow {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The client.
    pub source: SocketAddr,
    /// Whom it talks to.
    pub destination: SocketAddr,
    /// The public address and port that it has there, if the programs translate it.
    pub public: Option<SocketAddrV4>,
    /// The egress; none for the ordinary path.
    pub egress: Option<String>,
    /// The endpoint set that it was pinned for, if that is known.
    pub endpoint_set: Option<String>,
    /// Seconds since its first packet.
    pub age_seconds: u32,
    /// Seconds since its last packet.
    pub idle_seconds: u32,
}
