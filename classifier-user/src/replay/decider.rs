//! What decides the packets of a capture: the kernel's program, or the same function here.

use std::collections::HashMap;

use anyhow::{Context, Result};
use breakout_common::classify::{by_outcome, decide};
use breakout_common::egress::{Egress, MAX_EGRESSES, NextHop};
use breakout_common::fragment::{Key, key};
use breakout_common::packet::{Stop, walk};
use breakout_common::table::Outcome;
use breakout_common::verdict::{Decision, Reason};

use super::Captured;
use super::frame::for_test_run;
use crate::datapath::{Bench, Egresses, LanPlan, Plan};
use crate::ruleset::Image;

/// Decides packets.
pub(super) enum Decider {
    Kernel(Box<Bench>),
    Pure(Pure),
}

impl Decider {
    /// Loads the programs, with every egress up, but attaches them nowhere.
    pub(super) fn kernel(image: &Image) -> Result<Self> {
        let up = Egress {
            v4: NextHop::Kernel,
            v6: NextHop::Kernel,
            ..Egress::default()
        };
        let egresses = Egresses {
            table: [up.to_words(); MAX_EGRESSES],
            devices: Vec::new(),
        };
        let lan = LanPlan {
            name: "lo".to_owned(),
            index: 1,
            mac: [0; 6],
            xdp: None,
            namespace: 0,
            number: 0,
        };
        let plan = Plan {
            lans: &[lan],
            image,
            egresses: &egresses,
            trace: false,
        };
        Ok(Decider::Kernel(Box::new(Bench::load(&plan)?)))
    }

    pub(super) fn pure(image: Image) -> Self {
        Decider::Pure(Pure {
            image,
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

/// The decision without a kernel.
pub(super) struct Pure {
    image: Image,
    /// The ways of first fragments that are steered.
    fragments: HashMap<Key, Outcome>,
}

impl Pure {
    fn decide(&mut self, captured: &Captured) -> Decision {
        match walk(captured) {
            Ok(headers) => {
                let decision = decide(self.image.words(), captured, &headers, 0);
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
                first.map_or(Decision::pass(Reason::LaterFragment), |outcome| {
                    by_outcome(*outcome)
                })
            }
            Err(Stop::Reason(reason)) => Decision::pass(reason),
        }
    }

    fn remember(&mut self, key: Key, decision: &Decision) {
        if let (Some(egress), Some(set)) = (decision.egress(), decision.set()) {
            let egress = Some(egress);
            let outcome = Outcome {
                set,
                egress,
                hold: None,
            };
            self.fragments.insert(key, outcome);
        } else {
            self.fragments.remove(&key);
        }
    }
}
