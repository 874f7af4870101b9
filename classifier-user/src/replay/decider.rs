//! Decision on the packets of a capture: by the kernel's program, or by the same function here.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use breakout_common::classify::{decide_unpinned, rule};
use breakout_common::egress::{Egress, MAX_EGRESSES, NextHop};
use breakout_common::fragment::{Key, key};
use breakout_common::packet::{Stop, walk};
use breakout_common::path::{BUCKETS, MAX_PREFERENCES, PLACES, PathTable};
use breakout_common::verdict::{Decision, Reason};

use super::Captured;
use super::frame::for_test_run;
use crate::datapath::{Bench, LanPlan, Paths, Plan};
use crate::ruleset::Image;

/// Decides packets.
pub(super) enum Decider {
    Kernel(Box<Bench>),
    Pure(Pure),
}

impl Decider {
    /// Loads the programs, with every egress up, but attaches them nowhere.
    pub(super) fn kernel(image: &Image) -> Result<Self> {
        let paths = Paths {
            table: all_up(),
            devices: Vec::new(),
        };
        let lan = LanPlan {
            name: "lo".to_owned(),
            index: 1,
            mac: [0; 6],
            is_bare: false,
            mtu: 1500,
            addresses: (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
            xdp: None,
            namespace: 0,
            number: 0,
            is_egress: false,
            translates: false,
            returns: false,
            takes_replies: false,
        };
        let plan = Plan {
            lans: &[lan],
            image,
            paths: &paths,
            pins: None,
            mappings: None,
            pinned: &Vec::new,
            trace: false,
        };
        Ok(Decider::Kernel(Box::new(Bench::load(&plan)?)))
    }

    pub(super) fn pure(image: Image) -> Self {
        Decider::Pure(Pure {
            image,
            paths: Box::new(all_up()),
            fragments: HashMap::new(),
        })
    }

    pub(super) fn decide(&mut self, captured: &Captured) -> Result<Decision> {
        match self {
            Decider::Pure(pure) => Ok(pure.decide(captured)),
            Decider::Kernel(bench) => match for_test_run(captured) {
                Some(frame) => {
                    let run = bench.tc(&frame, 0)?;
                    run.decision
                        .context("the program left no decision; this is a bug")
                }
                // No such packet gets as far as the ruleset.
                None => Ok(walk(captured).map_or_else(
                    |stop| Decision::pass(stop.reason()),
                    |_| Decision::pass(Reason::Truncated),
                )),
            },
        }
    }
}

/// A path table in which each preference leads to an egress that is up.
fn all_up() -> PathTable {
    let up = Egress {
        v4: NextHop::Kernel,
        v6: NextHop::Kernel,
        ..Egress::default()
    };
    let mut table = PathTable {
        working: [u32::MAX; PLACES],
        egresses: [up.to_words(); MAX_EGRESSES],
        ..PathTable::EMPTY
    };
    for (preference, egress) in (0u8..)
        .take(MAX_PREFERENCES)
        .zip((0u8..).take(MAX_EGRESSES).cycle())
    {
        for place in 0..PLACES {
            table.set_choices(preference, place, &[egress; BUCKETS]);
        }
    }
    table
}

/// The decision without a kernel.
pub(super) struct Pure {
    image: Image,
    paths: Box<PathTable>,
    /// The ways of first fragments that are steered.
    fragments: HashMap<Key, Decision>,
}

impl Pure {
    fn decide(&mut self, captured: &Captured) -> Decision {
        match walk(captured) {
            Ok(headers) => {
                let word = rule(self.image.words(), captured, &headers, 0);
                let decision = decide_unpinned(captured, &headers, word, &self.paths);
                if let Some(key) = headers
                    .first_fragment()
                    .and_then(|first| key(captured, &first))
                {
                    self.remember(key, &decision);
                }
                decision
            }
            Err(Stop::LaterFragment(later)) => {
                let first = key(captured, &later).and_then(|key| self.fragments.get(&key));
                first
                    .copied()
                    .unwrap_or(Decision::pass(Reason::LaterFragment))
            }
            Err(Stop::Reason(reason)) => Decision::pass(reason),
        }
    }

    fn remember(&mut self, key: Key, decision: &Decision) {
        if decision.egress().is_some() {
            self.fragments.insert(key, *decision);
        } else {
            self.fragments.remove(&key);
        }
    }
}
