//! The pins of flows, which outlive installations and controllers: read, written, and carried over to a table of another
//! size.

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use breakout_common::flows::State;
use breakout_common::path::{EPOCHS, Flow, PIN_EVENTS, Pin, PinKey};

use super::flows::{ADDRESSES, FLOWS, FlowTable, NOTES, Pinned, Shape};
use super::{DataPath, sys};

/// The counters of what happens to pins.
pub(super) const EVENTS: &str = "PINNED";
/// The maps of a table.
const TABLE: [&str; 3] = [FLOWS, NOTES, ADDRESSES];
/// The map in which versions before this table kept pins.
const OLD_PINS: &str = "PINS";

/// For how many flows there is a table where none is pinned.
const NO_FLOWS: u32 = 1;

/// Content that a new table takes over.
pub(super) enum Carried {
    /// Nothing: it is there already, or new.
    Nothing {
        /// True if it is new.
        is_new: bool,
    },
    /// Content of this table.
    Table(Box<FlowTable>),
    /// The pins of a version before.
    Old(Vec<(PinKey, Pin)>),
}

impl DataPath {
    /// Returns whether there are pins that an earlier controller has left.
    pub fn has_pins(&self) -> bool {
        let maps = [FLOWS, OLD_PINS];
        maps.iter().any(|map| self.pins.path(map).exists())
    }

    /// The table of flows, which can be used without the data path, as in another thread.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn flows(&self) -> Result<FlowTable> {
        let [flows, notes, addresses] = TABLE.map(|name| self.lasting_map(name));
        FlowTable::open(&flows?, &notes?, addresses?, None)
    }

    /// All pins that there are now.
    ///
    /// # Errors
    ///
    /// When there is no table of them, or it cannot be read.
    pub fn pins(&self) -> Result<Vec<Pinned>> {
        self.flows()?
            .entries()
            .context("cannot read the table of flows")
    }

    /// Pins flows.
    ///
    /// # Errors
    ///
    /// When there is no table of them.
    pub fn pin(&self, pins: &[(PinKey, Pin)]) -> Result<()> {
        if pins.is_empty() {
            return Ok(());
        }
        report_lost(self.flows()?.keep_all(pins));
        Ok(())
    }

    /// Forgets flows; with `if_silent` those of which no packet has come since they were read.
    ///
    /// # Errors
    ///
    /// When there is no table of them.
    pub fn unpin(&self, pins: &[Pinned], if_silent: bool) -> Result<()> {
        let table = self.flows()?;
        pins.iter()
            .for_each(|pinned| table.forget(pinned, if_silent));
        Ok(())
    }

    /// Returns how often each [`PinEvent`](breakout_common::path::PinEvent) has happened.
    ///
    /// # Errors
    ///
    /// When that cannot be read.
    pub fn pin_events(&self) -> Result<[u64; PIN_EVENTS]> {
        let map = Map::from_map_data(self.lasting_map(EVENTS)?)?;
        let map: PerCpuArray<MapData, u64> = map.try_into()?;
        let mut sums = [0; PIN_EVENTS];
        for (sum, index) in sums.iter_mut().zip(0..) {
            *sum = map.get(&index, 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// Gives up what nobody has any more. To be called every few seconds.
    ///
    /// # Errors
    ///
    /// When there is no table, or its maps cannot be read.
    pub fn tidy_flows(&mut self) -> Result<()> {
        let table = self.flows()?;
        table.tidy(&mut self.begun)
    }

    /// An epoch of which nothing is remembered.
    pub fn free_epoch(&self) -> u32 {
        let table = self.flows();
        table.map_or_else(|_| fastrand::u32(..), |table| table.free_epoch())
    }

    /// The table that programs for so many flows are to use, and what is to be carried over to it. If it is another one,
    /// the programs in force go on with that which there is, which [`settle_pins`](Self::settle_pins) removes or puts back.
    pub(super) fn shape_for(&self, flows: Option<u32>) -> Result<(Shape, Carried)> {
        let wanted = Shape::for_flows(flows.unwrap_or(NO_FLOWS));
        if self.pins.path(OLD_PINS).exists() {
            // A table beside it is not in force: it is of a start that failed, or of before a downgrade.
            self.remove_table()?;
            return Ok((wanted, Carried::Old(self.old_pins()?)));
        }
        if !self.pins.path(FLOWS).exists() {
            self.remove_table()?;
            return Ok((wanted, Carried::Nothing { is_new: true }));
        }
        let table = match self.pinned_table(None) {
            Ok(table) => table,
            // It was never in force: a table is ready before programs use it.
            Err(error) => {
                tracing::warn!("flows are remembered afresh: {error:#}");
                self.remove_table()?;
                return Ok((wanted, Carried::Nothing { is_new: true }));
            }
        };
        if table.shape().sets == wanted.sets {
            return Ok((table.shape(), Carried::Nothing { is_new: false }));
        }
        // The first one says that there is a former table; see `settle_pins`.
        for map in TABLE {
            self.pins.rename(map, &former(map))?;
        }
        let secret = table.shape().secret;
        let carried = match flows {
            Some(_) => Carried::Table(Box::new(table)),
            None => Carried::Nothing { is_new: true },
        };
        Ok((Shape { secret, ..wanted }, carried))
    }

    /// Makes the table ready that the loader has made in this shape, before any program uses it. Returns it.
    pub(super) fn carry_over(&self, shape: Shape, carried: &Carried) -> Result<FlowTable> {
        let is_there = matches!(carried, Carried::Nothing { is_new: false });
        let table = self.pinned_table((!is_there).then_some(shape))?;
        report_lost(match carried {
            Carried::Nothing { .. } => 0,
            Carried::Table(former) => table.carry_over(former)?,
            Carried::Old(pins) => table.keep_all(pins),
        });
        Ok(table)
    }

    /// Ends what [`shape_for`](Self::shape_for) has begun: the new table is in force, or the former one still is.
    ///
    /// As long as the first map of the former table is pinned, that one is; so a process that ends in the middle of this
    /// leaves no mixture.
    pub(super) fn settle_pins(&self, is_new_in_force: bool) -> Result<()> {
        let has_former = self.pins.path(&former(FLOWS)).exists();
        if is_new_in_force || !has_former {
            if is_new_in_force {
                self.pins.remove(OLD_PINS)?;
            }
            return TABLE
                .iter()
                .try_for_each(|map| self.pins.remove(&former(map)));
        }
        for map in TABLE
            .iter()
            .rev()
            .filter(|map| self.pins.path(&former(map)).exists())
        {
            self.pins.remove(map)?;
            self.pins.rename(&former(map), map)?;
        }
        Ok(())
    }

    fn remove_table(&self) -> Result<()> {
        TABLE.iter().try_for_each(|map| self.pins.remove(map))
    }

    /// The table by its pins, which is the next one's while an installation is prepared.
    fn pinned_table(&self, new: Option<Shape>) -> Result<FlowTable> {
        let maps = TABLE.map(|name| {
            MapData::from_pin(self.pins.path(name))
                .with_context(|| format!("cannot open the pinned map {name}"))
        });
        let [flows, notes, addresses] = maps;
        FlowTable::open(&flows?, &notes?, addresses?, new)
    }

    /// Returns what a version has left whose pins were in a hash map, with times in halves of a tick.
    fn old_pins(&self) -> Result<Vec<(PinKey, Pin)>> {
        let map =
            MapData::from_pin(self.pins.path(OLD_PINS)).context("cannot open the map of pins")?;
        let entries: Vec<(PinKey, [u32; 4])> =
            sys::entries(&map).context("cannot read the map of pins")?;
        let pins = entries.into_iter().map(|(key, [seen, since, epoch, way])| {
            let state = if key[4] & Flow::CLIENT != 0 {
                State::Client
            } else {
                State::Established
            };
            let pin = Pin {
                seen: seen >> 1,
                since: since >> 1,
                epoch: epoch & EPOCHS,
                way,
                state: state as u32,
            };
            (key, pin)
        });
        Ok(pins.collect())
    }
}

/// Returns what a map of the former table is called while another one is made.
fn former(map: &str) -> String {
    format!("FORMER_{map}")
}

fn report_lost(lost: usize) {
    if lost > 0 {
        tracing::warn!(
            "{lost} flows find no room in the table of flows, and may move to a new way"
        );
    }
}
