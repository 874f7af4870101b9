//! Replay: what Breakout would do with the traffic in a capture.

mod capture;
mod decider;
mod frame;
mod link;
mod summary;

use std::collections::HashMap;

use anyhow::Result;
use breakout_common::table::Transport;
use breakout_common::verdict::{Decision, Reason};
use ipnet::IpNet;

use crate::ruleset::{Image, Ruleset, matches};
use decider::Decider;

pub use capture::{Capture, Captured};
pub use summary::{Line, Summary};

/// A ruleset with what decides packets by it.
pub struct Replay<'a> {
    ruleset: &'a Ruleset,
    decider: Decider,
    summary: Summary,
    /// Winning prefixes by flow destination, since finding one takes a walk over all rules.
    prefixes: HashMap<(std::net::IpAddr, u32, Option<u16>), Option<IpNet>>,
}

/// Outcome of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Decision, with its reason.
    pub decision: Decision,
    flow: Option<frame::Flow>,
}

impl<'a> Replay<'a> {
    /// Decides by the function that is compiled into the programs, without a kernel. `image` is the compiled ruleset.
    pub fn pure(ruleset: &'a Ruleset, image: Image) -> Self {
        Self::with(ruleset, Decider::pure(image))
    }

    /// Decides by the TC program, loaded into this kernel for test runs and attached nowhere. All egresses are up.
    ///
    /// # Errors
    ///
    /// When the kernel does not take the program.
    pub fn kernel(ruleset: &'a Ruleset, image: &Image) -> Result<Self> {
        Ok(Self::with(ruleset, Decider::kernel(image)?))
    }

    fn with(ruleset: &'a Ruleset, decider: Decider) -> Self {
        Replay {
            ruleset,
            decider,
            summary: Summary::default(),
            prefixes: HashMap::new(),
        }
    }

    /// Decides the next packet. Fragments follow earlier ones.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn packet(&mut self, captured: &Captured) -> Result<Decided> {
        let decision = self.decider.decide(captured)?;
        let flow = frame::flow(captured);
        self.summary.add(captured.len, flow, decision);
        Ok(Decided { decision, flow })
    }

    /// The prefix by which a packet was decided; for `no_port`, the longest one that covers the destination.
    pub fn prefix(&mut self, decided: &Decided) -> Option<IpNet> {
        let decision = decided.decision;
        if decision.set().is_none() && decision.reason() != Reason::NoPort {
            return None;
        }
        let (_, destination, key, _) = decided.flow?;
        let ruleset = self.ruleset;
        let place = (destination, key, decision.set());
        *self.prefixes.entry(place).or_insert_with(|| {
            let Some(slot) = decision.set() else {
                return ruleset.covering_prefix(destination);
            };
            let covering = ruleset.covering(destination);
            let transport = if key >> 16 == 0 {
                Transport::Tcp
            } else {
                Transport::Udp
            };
            let port = u16::try_from(key & 0xffff).unwrap_or(0);
            let mut matches = matches(&covering, transport, port).into_iter();
            let found = matches.find(|found| found.rule.slot == slot);
            // A later fragment has no port; its packet's set is known all the same.
            let of_set = || {
                covering
                    .iter()
                    .find(|(rule, _)| rule.slot == slot)
                    .map(|(_, prefix)| *prefix)
            };
            found.map(|found| found.prefix).or_else(of_set)
        })
    }

    /// Returns what became of all packets so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
}
