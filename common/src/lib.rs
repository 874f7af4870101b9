//! Decision of Breakout on one packet, as pure functions.
//!
//! ```text
//! frame ── packet::walk ── classify::decide ── path::settle ── Decision { verdict, reason, set }
//!           header walk      table lookup       which egress         │
//!                                          forward::plan, forward::rewrite (redirect mode)
//! ```
//!
//! This crate is compiled into the eBPF programs and into the controller, so the kernel and
//! `breakout explain` answer with the same code. It has no state, allocates nothing, never
//! panics, and knows the kernel only through two traits: [`frame::Frame`] (how bytes of a packet are
//! read) and [`table::Table`] (how words of the compiled ruleset are read).

#![no_std]
#![forbid(unsafe_code)]

pub mod classify;
pub mod condition;
pub mod constants;
pub mod counters;
pub mod egress;
pub mod ethernet;
pub mod flows;
pub mod forward;
pub mod fragment;
pub mod frame;
pub mod icmp;
pub mod mss;
pub mod nat;
pub mod network;
pub mod packet;
pub mod path;
pub mod question;
pub mod synthetic;
pub mod table;
pub mod too_big;
pub mod verdict;
