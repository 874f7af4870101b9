//! The lab: a branch office in network namespaces, on which the real daemon runs.
//!
//! ```text
//!              ┌─────────── gateway ───────────┐
//! client ── lan│  breakout run                 │wan ──── wan       (the ordinary path)
//!              └───────────────────────────────┘inet ─── internet  (the local internet link)
//! ```
//!
//! The namespaces `wan` and `internet` both own all the Microsoft 365 addresses that a test uses. A server there says in
//! its answer in which of the two it stands, so where a flow came out is seen at its other end.

pub mod capture;
pub mod daemon;
pub mod emulate;
pub mod fake_service;
pub mod flow;
pub mod golden;
pub mod lab;
pub mod live;
pub mod manual;
pub mod netns;
pub mod programs;
pub mod requirements;
pub mod rulesets;
pub mod running;
pub mod seen;
pub mod server;
pub mod testrun;
pub mod wire;
