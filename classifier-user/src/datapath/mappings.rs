//! The table of mappings, seen from the controller: whose public ports are whose. It outlives installations and controllers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::MapData;
use breakout_common::flows::{ENTRIES, Facts, Limits, SET_WORDS, State};
use breakout_common::nat::{LEAST_SETS, PORTS, TCP_IDLE, UDP_IDLE, idle, limits, port_of};

use super::flows::{Shape, set_shape, shape};
use super::mapped::MappedWords;
use super::{Clock, DataPath};

/// The map, as the eBPF object names it.
pub(super) const MAPPINGS: &str = "MAPPINGS";

/// The fewest regions of a table: the more there are, the fewer remotes share one.
const LEAST_REGIONS: u32 = 4;

/// Returns how long mappings live, by this kernel's clock.
pub(super) fn limits_in_ticks() -> Limits {
    let ticks = |seconds| Clock::of_kernel().ticks(Duration::from_secs(seconds));
    limits(ticks(TCP_IDLE), ticks(UDP_IDLE))
}

/// The public port of a client's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The client's address and port.
    pub client: SocketAddrV4,
    /// Destination.
    pub remote: SocketAddrV4,
    /// True if it is TCP; UDP otherwise.
    pub is_tcp: bool,
    /// The public port.
    pub port: u16,
    /// True if it has not begun to close.
    pub is_open: bool,
    /// Part of the table, whose remotes share public ports.
    pub region: u32,
}

/// A table, and whether it has just been made.
pub(super) struct Wanted {
    pub(super) shape: Shape,
    is_new: bool,
}

impl DataPath {
    /// The table that programs are to use which translate so many flows: that which there is, or a new one. Without translation the
    /// smallest takes its place.
    pub(super) fn mappings_for(&self, flows: Option<u32>) -> Result<Wanted> {
        if self.pins.path(MAPPINGS).exists() {
            match MappingTable::open(&self.pinned_mappings()?, None) {
                Ok(table) if flows.is_some() == (table.shape.sets >= LEAST_SETS) => {
                    let shape = table.shape;
                    return Ok(Wanted {
                        shape,
                        is_new: false,
                    });
                }
                Ok(_) => {}
                Err(error) => tracing::warn!("translations begin afresh: {error:#}"),
            }
            self.pins.remove(MAPPINGS)?;
        }
        let sets = flows.map_or(1, |flows| {
            // Four places for each flow: remotes do not spread evenly over regions.
            let sets = flows.checked_next_power_of_two().unwrap_or(1 << 24);
            sets.clamp(LEAST_REGIONS * LEAST_SETS, 1 << 24)
        });
        Ok(Wanted {
            shape: Shape::of_sets(sets),
            is_new: true,
        })
    }

    /// Makes a new table ready that the loader has made in this shape.
    pub(super) fn make_ready(&self, wanted: Wanted) -> Result<()> {
        if wanted.is_new {
            MappingTable::open(&self.pinned_mappings()?, Some(wanted.shape))?;
        }
        Ok(())
    }

    fn pinned_mappings(&self) -> Result<MapData> {
        MapData::from_pin(self.pins.path(MAPPINGS))
            .context("cannot open the pinned map of mappings")
    }

    /// The mappings that there are now.
    ///
    /// # Errors
    ///
    /// When there is no table of them, or it cannot be read.
    pub fn mappings(&self) -> Result<Vec<Mapping>> {
        Ok(MappingTable::open(&self.lasting_map(MAPPINGS)?, None)?.mappings())
    }

    /// Gives up mappings that nobody has used for too long, and returns the others. To be called every few seconds.
    ///
    /// # Errors
    ///
    /// As [`mappings`](Self::mappings).
    pub fn tidy_mappings(&self) -> Result<Vec<Mapping>> {
        let table = MappingTable::open(&self.lasting_map(MAPPINGS)?, None)?;
        table.tidy();
        Ok(table.mappings())
    }
}

/// The table.
pub(super) struct MappingTable {
    words: MappedWords,
    shape: Shape,
}

impl MappingTable {
    /// Opens a table. One that has just been made gets what says what it is.
    pub(super) fn open(map: &MapData, new: Option<Shape>) -> Result<Self> {
        let words = MappedWords::new(map, u32::try_from(SET_WORDS)?)?;
        if let Some(new) = new {
            set_shape(&words, new)?;
        }
        let shape = shape(&words)?;
        Ok(MappingTable { words, shape })
    }

    /// The entries by their slots: their words.
    fn entries(&self) -> impl Iterator<Item = (u32, &[AtomicU64; 2])> {
        let (entries, _) = self.words.words().as_chunks::<2>();
        (0u32..).zip(entries.iter().take(self.shape.sets as usize * ENTRIES))
    }

    fn mappings(&self) -> Vec<Mapping> {
        let mappings = self.entries().filter_map(|(slot, [first, second])| {
            let second_word = second.load(Ordering::Acquire);
            let first = first.load(Ordering::Acquire);
            // Whoever takes an entry over changes its second word first.
            let is_whole = second.load(Ordering::Acquire) == second_word;
            let facts = Facts::of(second_word);
            let address = |word: u64| Ipv4Addr::from((word >> 32 & 0xffff_ffff) as u32);
            (is_whole && facts.is_live()).then(|| Mapping {
                client: SocketAddrV4::new(address(first), (first >> 16 & 0xffff) as u16),
                remote: SocketAddrV4::new(address(second_word), (first & 0xffff) as u16),
                is_tcp: facts.is_tcp(),
                port: port_of(slot),
                is_open: facts.state() != State::Closing as u32,
                region: slot / PORTS,
            })
        });
        mappings.collect()
    }

    /// Gives up what has been silent for too long: after some hours its age would not be known any more.
    fn tidy(&self) {
        let (now, order) = (Clock::of_kernel().now(), Ordering::SeqCst);
        let limits = limits_in_ticks();
        for (_, [_, second]) in self.entries() {
            let word = second.load(Ordering::Relaxed);
            let facts = Facts::of(word);
            if facts.is_live() && facts.silent(now) > idle(facts, &limits) {
                let _ = second.compare_exchange(word, 0, order, order);
            }
        }
    }
}
