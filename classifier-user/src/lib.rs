//! Breakout's controller.
//!
//! Data flows one way:
//!
//! ```text
//! list ──── policy ──── ruleset ──── datapath        links: interfaces, routes, rules, next hops
//! (what      (what the   (compiled    (programs and   controller: keeps all of it as configured
//! Microsoft   operator    to a         maps in the    control: the socket; explain: why
//! publishes)  wants)      table)       kernel)        commands: what a person types
//! ```
//!
//! [`doctor`], [`assess`], [`replay`] and [`sysdump`] run in processes of their own, beside the controller.
//!
//! aya is named in [`datapath`] only, rtnetlink in [`links`] only.

pub mod addresses;
pub mod assess;
pub mod clock;
pub mod commands;
pub mod config;
pub mod control;
pub mod controller;
pub mod datapath;
pub mod doctor;
pub mod durable;
pub mod events;
pub mod exit;
pub mod explain;
pub mod export;
pub mod health;
pub mod hex;
pub mod journal;
pub mod lab;
pub mod links;
pub mod list;
pub mod memory;
pub mod mounts;
pub mod nat;
pub mod plain;
pub mod policy;
pub mod private;
#[cfg(test)]
mod reference;
pub mod replay;
pub mod rights;
pub mod ruleset;
pub mod secrets;
pub mod sysdump;
pub mod text;
pub mod timestamp;
pub mod tool;
