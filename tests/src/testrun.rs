//! The loaded programs asked about single packets.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use breakout::config::XdpAttach;
use breakout::datapath::{Bench, Counters, LanPlan, Paths, Plan, Run, Size};
use breakout::explain::{Query, frame};
use breakout::list::{Instance, List, embedded};
use breakout::ruleset::{Ruleset, compile};
use breakout_common::egress::{Egress, NextHop};
use breakout_common::path::{BUCKETS, PLACES};
use breakout_common::verdict::Reason;

use crate::rulesets::by_default;

/// The mark that steered packets get on the bench, and its mask.
pub const MARK: (u32, u32) = (0x0100_0000, 0x1f00_0000);

/// The programs with a list, loaded for test runs.
pub struct TestBench {
    bench: Bench,
    ruleset: Ruleset,
}

/// What a program decided about one packet, by its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// True if it was steered.
    pub steered: bool,
    /// Why.
    pub reason: Reason,
    /// The id of the endpoint set that decided.
    pub set: Option<u32>,
}

/// An egress in route mode with a way out.
pub const UP: Egress = Egress {
    redirect: false,
    mark: 0,
    mark_mask: 0,
    mtu: 0,
    source_mac: [0; 6],
    v4: NextHop::Kernel,
    v6: NextHop::Kernel,
    gateways: (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    nat: Ipv4Addr::UNSPECIFIED,
};

/// The path table with one egress, whose mark is set here, for everything.
pub fn one_way(egress: Egress) -> Paths {
    let mut paths = Paths::default();
    let egress = Egress {
        mark: MARK.0,
        mark_mask: MARK.1,
        ..egress
    };
    paths.table.egresses[0] = egress.to_words();
    paths.table.tcp_idle = 7200;
    paths.table.epoch = 0x1234_5678;
    paths.table.working = [1; PLACES];
    for place in 0..PLACES {
        paths.table.set_choices(0, place, &[0; BUCKETS]);
    }
    if egress.redirect {
        // A test run redirects nothing; the loopback interface is there in every namespace.
        paths.devices.push((0, 1));
    }
    paths
}

impl TestBench {
    /// Loads the programs with the built-in list of an instance and one egress in route mode.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn new(instance: Instance) -> Result<Self> {
        Self::with(&embedded(instance), UP, None)
    }

    /// The same with flows pinned, so many of them.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn pinned(instance: Instance, pins: u32) -> Result<Self> {
        Self::with(&embedded(instance), UP, Some(pins))
    }

    /// Loads the programs with a list and an egress, whose mark is set here.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn with(list: &List, egress: Egress, pins: Option<u32>) -> Result<Self> {
        let ruleset = by_default(list)?;
        let paths = one_way(egress);
        let translates = !egress.nat.is_unspecified();
        let lan = LanPlan {
            name: "lo".to_owned(),
            index: 1,
            mac: [0; 6],
            is_bare: false,
            mtu: 1500,
            addresses: (Ipv4Addr::new(10, 1, 0, 1), Ipv6Addr::UNSPECIFIED),
            xdp: Some(XdpAttach::Native),
            namespace: 0,
            number: 0,
            is_egress: false,
            translates: false,
            returns: false,
            takes_replies: false,
        };
        // Replies are forwarded by a program of their own, which is there to be weighed.
        let egress = LanPlan {
            is_egress: true,
            translates,
            returns: true,
            ..lan.clone()
        };
        let bench = Bench::load(&Plan {
            lans: &[lan, egress],
            image: &compile(&ruleset)?,
            paths: &paths,
            pins,
            mappings: translates.then_some(1024),
            pinned: &Vec::new,
            trace: false,
        })?;
        Ok(TestBench { bench, ruleset })
    }

    /// Runs a program, `tc` or `xdp`, on the packet that a query stands for.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn run(&mut self, program: &str, query: &Query) -> Result<Outcome> {
        Ok(self.run_frame(program, &frame(*query))?.1)
    }

    /// Runs a program, `tc` or `xdp`, on a frame.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn run_frame(&mut self, program: &str, frame: &[u8]) -> Result<(Run, Outcome)> {
        match program {
            "xdp" => {
                let before = self.bench.counters()?;
                let run = self.bench.xdp(frame)?;
                let outcome = self.counted(&before, &self.bench.counters()?)?;
                Ok((run, outcome))
            }
            // With XDP before it the TC program does not count; whether it steers shows in the mark.
            "tc" => {
                let run = self.bench.tc(frame, 0)?;
                let steered = run.mark == MARK.0;
                let mut outcome = self.run_frame("xdp", frame)?.1;
                if outcome.steered != steered {
                    bail!("TC and XDP disagree: mark {:#x}, {outcome:?}", run.mark);
                }
                outcome.steered = steered;
                Ok((run, outcome))
            }
            other => bail!("there is no program {other}"),
        }
    }

    /// How long one run of a program, `tc` or `xdp`, on a frame takes, averaged over many.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn time(&mut self, program: &str, frame: &[u8], runs: u32) -> Result<Duration> {
        self.bench.time(program, frame, runs)
    }

    /// How large the programs are.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn sizes(&mut self) -> Result<Vec<Size>> {
        self.bench.sizes()
    }

    /// The mark of a packet after the TC program, which came with the mark `before`.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn mark_after(&mut self, query: &Query, before: u32) -> Result<u32> {
        Ok(self.bench.tc(&frame(*query), before)?.mark)
    }

    fn counted(&self, before: &Counters, after: &Counters) -> Result<Outcome> {
        let mut reasons = before.reasons.iter().zip(&after.reasons);
        let changed = reasons.find(|(before, after)| before.1 != after.1);
        let (_, (reason, _)) = changed.context("no reason was counted")?;
        let mut sets = before.sets.iter().zip(&after.sets).zip(0u16..);
        let set = sets.find(|((before, after), _)| before != after);
        let rule = set.and_then(|(_, slot)| self.ruleset.rule(slot));
        Ok(Outcome {
            steered: reason.is_steer(),
            reason: *reason,
            set: rule.and_then(|rule| rule.key.id()),
        })
    }
}
