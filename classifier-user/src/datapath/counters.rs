//! Reading the per-CPU counters.

use std::ops::Sub;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use breakout_common::counters::Counter;
use breakout_common::verdict::Reason;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Count {
    /// Packets; a GSO packet counts as what it will be on the wire.
    pub packets: u64,
    /// Bytes of frames.
    pub bytes: u64,
}

impl Sub for Count {
    type Output = Count;

    fn sub(self, earlier: Count) -> Count {
        Count {
            packets: self.packets.wrapping_sub(earlier.packets),
            bytes: self.bytes.wrapping_sub(earlier.bytes),
        }
    }
}

/// All counters at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By reason, in the order of [`Reason::ALL`].
    pub reasons: Vec<(Reason, Count)>,
    /// By endpoint set slot.
    pub sets: Vec<Count>,
    /// Replies of steered flows: those that XDP forwarded, and those that it left to the kernel.
    pub replies: [Count; 2],
}

impl Counters {
    pub(super) fn read(reasons: MapData, sets: MapData, replies: MapData) -> Result<Self> {
        let reasons = by_reason(reasons)?;
        let sets = sums(sets, usize::MAX).context("cannot read the endpoint sets' counters")?;
        let replies = sums(replies, 2).context("cannot read the replies' counters")?;
        Ok(Counters {
            replies: replies.try_into().unwrap_or_default(),
            reasons,
            sets,
        })
    }
}

/// The counters by reason alone, which are few.
pub(super) fn by_reason(map: MapData) -> Result<Vec<(Reason, Count)>> {
    let counts = sums(map, Reason::ALL.len()).context("cannot read the reasons' counters")?;
    Ok(Reason::ALL.iter().copied().zip(counts).collect())
}

/// The sum over the CPUs of the first `limit` entries.
fn sums(map: MapData, limit: usize) -> Result<Vec<Count>> {
    let map: PerCpuArray<MapData, Counter> = Map::from_map_data(map)?.try_into()?;
    let mut counts = Vec::new();
    for values in map.iter().take(limit) {
        let mut sum = Count::default();
        for [packets, bytes] in values?.iter() {
            sum.packets = sum.packets.wrapping_add(*packets);
            sum.bytes = sum.bytes.wrapping_add(*bytes);
        }
        counts.push(sum);
    }
    Ok(counts)
}
