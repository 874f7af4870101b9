//! The control socket: HTTP with JSON over a Unix socket, so that curl can use it too.

mod changes;
mod client;
mod connections;
mod exposition;
mod flows;
mod lists;
pub mod metrics;
mod server;
mod status;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::explain::{Explanation, Query};

pub use changes::{BypassOrder, ListOrder, Plan, Reloaded, RuleDelta, RulesetDelta};
pub use client::{Client, ClientError, in_time};
pub use flows::{EventsQuery, EventsReport, FlowsQuery, FlowsReport, ForgetOrder, PinnedFlow};
pub use lists::{
    FetchReport, Fetching, KeptReport, ListReport, ListSummary, ListedSet, PendingList,
    PendingReport, Unusable,
};
pub use server::{MetricsServer, Server};
pub use status::{
    BusiestRemote, BypassStatus, EgressStatus, FollowStatus, LanStatus, NatStatus, ProgramStatus,
    ReasonCount, RefusedList, RepliesCount, RulesetStatus, SetCount, SetReport, Stats, Status,
    WayOut,
};

/// Request of a command to the controller.
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
    /// `GET /v1/plan`
    Plan(Reply<Plan>),
    /// `POST /v1/apply`
    Apply(Reply<Reloaded>),
    /// `POST /v1/bypass`
    Bypass(BypassOrder, Reply<Reloaded>),
    /// `POST /v1/events`
    Events(EventsQuery, Reply<EventsReport>),
    /// `POST /v1/flows`
    Flows(FlowsQuery, Reply<FlowsReport>),
    /// `POST /v1/flows/forget`; answers how many flows there were.
    ForgetFlows(ForgetOrder, Reply<usize>),
    /// `GET /metrics`
    Metrics(Reply<metrics::Snapshot>),
    /// `POST /v1/list/fetch`
    Fetch(Reply<FetchReport>),
    /// `POST /v1/list/change`
    ChangeList(ListOrder, Reply<Reloaded>),
}

/// Channel for the answer.
pub type Reply<T> = oneshot::Sender<anyhow::Result<T>>;

/// Answer of the socket when something failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Failure {
    error: String,
    code: u8,
}
