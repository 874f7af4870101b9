//! Flows and the answers of their peers as the programs see them: evidence for the health of paths.

use anyhow::Result;
use aya::maps::{MapData, PerCpuArray};
use breakout_common::counters::Counter;
use breakout_common::path::PinEvent;

use super::bpffs::PinDirectory;
use super::flows::FlowTable;
use super::{BegunLately, Unanswered, open_map, pins};

/// The map of answers by egress and address family.
pub(super) const ANSWERS: &str = "ANSWERS";

/// The maps that tell, which can be read in another thread.
pub struct TrafficView {
    answers: PerCpuArray<MapData, Counter>,
    events: PerCpuArray<MapData, u64>,
    flows: FlowTable,
}

impl TrafficView {
    /// Of the maps that are pinned.
    pub(super) fn open(pins: &PinDirectory, flows: FlowTable) -> Result<Self> {
        Ok(TrafficView {
            answers: open_map(&pins.path(ANSWERS))?.try_into()?,
            events: open_map(&pins.path(pins::EVENTS))?.try_into()?,
            flows,
        })
    }

    /// The packets that came back to flows of an egress and address family until now, and for how many flows there was a first one.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn answers(&self, egress: u8, v6: bool) -> Result<[u64; 2]> {
        let place = u32::from(egress) << 1 | u32::from(v6);
        let counts = self.answers.get(&place, 0)?;
        let sum = |at: usize| {
            counts
                .iter()
                .fold(0u64, |sum, count| sum.wrapping_add(count[at]))
        };
        Ok([sum(0), sum(1)])
    }

    /// Returns how many flows have begun until now, on any way.
    ///
    /// # Errors
    ///
    /// When that cannot be read.
    pub fn begun(&self) -> Result<u64> {
        Ok(self.events.get(&(PinEvent::New as u32), 0)?.iter().sum())
    }

    /// The flows that have begun lately.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn begun_lately(&self) -> Result<BegunLately> {
        self.flows.begun_lately()
    }

    /// Returns whether a flow has been answered meanwhile; none if it is gone, or goes another way.
    pub fn is_answered(&self, flow: &Unanswered) -> Option<bool> {
        self.flows.is_answered(flow)
    }
}
