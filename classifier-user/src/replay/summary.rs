//! Summary of all packets of a capture.

use std::collections::{BTreeMap, HashSet};

use breakout_common::verdict::{Decision, Verdict};

use super::frame::Flow;

/// Packets with the same verdict, reason and endpoint set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Number.
    pub packets: u64,
    /// Their bytes, with Ethernet headers.
    pub bytes: u64,
    /// Number of flows that they belong to: source, destination, protocol and ports. Zero for what has none.
    pub flows: u64,
}

/// All packets of a capture.
#[derive(Debug, Default)]
pub struct Summary {
    lines: BTreeMap<(bool, u8, Option<u16>), (Decision, Line)>,
    flows: HashSet<(u32, Flow)>,
}

impl Summary {
    pub(super) fn add(&mut self, len: u32, flow: Option<Flow>, decision: Decision) {
        let passes = decision.verdict() == Verdict::Pass;
        let place = (passes, decision.reason() as u8, decision.set());
        let empty = || (decision, Line::default());
        let (_, line) = self.lines.entry(place).or_insert_with(empty);
        line.packets += 1;
        line.bytes += u64::from(len);
        if let Some(flow) = flow
            && self.flows.insert((decision.to_word(), flow))
        {
            line.flows += 1;
        }
    }

    /// The lines, what is steered first.
    pub fn lines(&self) -> impl Iterator<Item = &(Decision, Line)> {
        self.lines.values()
    }

    /// All of them together; a flow whose packets got different verdicts counts for each.
    pub fn total(&self) -> Line {
        let mut total = Line::default();
        for (_, line) in self.lines.values() {
            total.packets += line.packets;
            total.bytes += line.bytes;
            total.flows += line.flows;
        }
        total
    }
}
