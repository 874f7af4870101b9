//! Health of the egresses: probes through each of them, what they measure, and what is good enough for whom.
//!
//! ```text
//! target ── probe ── meter ── judge ── which classes of traffic may use the egress
//! (what     (one     (loss,    (limits, hysteresis,
//! is asked)  try)     latency)  hold-down)
//! ```
//!
//! Nothing here knows of routes or of the data path; [`crate::controller`] brings them together.

mod ahead;
mod bound;
mod budget;
mod defaults;
mod judge;
mod meter;
mod peer;
mod probe;
mod prober;
mod probers;
mod report;
mod routes;
mod stun;
mod target;
mod traffic;

pub use ahead::{Ahead, Silent};
pub(crate) use bound::Bound;
pub use defaults::default_targets;
pub use judge::{Judge, Standing, State, Verdict};
pub use meter::{Measure, TargetReport};
pub(crate) use peer::Trust;
pub use peer::check_ca_file;
pub(crate) use probe::{Failure, handshake};
pub use probers::Probers;
pub use report::{Path, Report, Reports};
pub(crate) use stun::{Method, Request};
pub use target::{Kind, Target};
pub use traffic::{Answers, Life, Traffic};
