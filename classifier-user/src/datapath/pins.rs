//! The pins of flows: read, written, and carried over to a map of another size.

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use breakout_common::path::{PIN_EVENTS, Pin, PinKey};

use super::DataPath;
use super::sys::entries;

/// The maps of this module, as the eBPF object names them.
pub(super) const PINS: &str = "PINS";
pub(super) const EVENTS: &str = "PINNED";
/// The map of pins before this one, while another installation is made.
const FORMER: &str = "FORMER_PINS";

type PinMap = HashMap<MapData, PinKey, [u32; 4]>;

/// Reads the pins of flows.
pub struct PinReader(MapData);

impl PinReader {
    /// All pins that there are now.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn read(&self) -> Result<Vec<(PinKey, Pin)>> {
        let entries = entries(&self.0).context("cannot read the map of pins")?;
        let pins = entries.into_iter().map(|(key, [seen, since, epoch, way])| {
            let pin = Pin {
                seen,
                since,
                epoch,
                way,
            };
            (key, pin)
        });
        Ok(pins.collect())
    }
}

impl DataPath {
    /// All pins that there are now.
    ///
    /// # Errors
    ///
    /// When there is no map of them, or it cannot be read.
    pub fn pins(&self) -> Result<Vec<(PinKey, Pin)>> {
        self.pin_reader()?.read()
    }

    /// What reads the pins without the data path, as in another thread.
    ///
    /// # Errors
    ///
    /// When there is no map of them.
    pub fn pin_reader(&self) -> Result<PinReader> {
        Ok(PinReader(self.lasting_map(PINS)?))
    }

    /// Pins flows.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pin(&self, pins: &[(PinKey, Pin)]) -> Result<()> {
        let mut map = self.pin_map()?;
        for (key, pin) in pins {
            map.insert(key, [pin.seen, pin.since, pin.epoch, pin.way], 0)
                .context("cannot pin a flow")?;
        }
        Ok(())
    }

    /// Forgets flows.
    ///
    /// # Errors
    ///
    /// When there is no map of them.
    pub fn unpin<'a>(&self, keys: impl IntoIterator<Item = &'a PinKey>) -> Result<()> {
        let mut map = self.pin_map()?;
        for key in keys {
            // The programs may have dropped it already.
            let _ = map.remove(key);
        }
        Ok(())
    }

    /// How often each [`PinEvent`](breakout_common::path::PinEvent) has happened.
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

    /// Makes way for a map of pins with another size. Returns the pins that it shall have. The programs in force go on with
    /// the one that there is, which [`settle_pins`](Self::settle_pins) removes or puts back.
    pub(super) fn resize_pins(&self, size: u32) -> Result<Vec<(PinKey, Pin)>> {
        if !self.has_pins() || self.pin_room()? == size {
            return Ok(Vec::new());
        }
        let pins = self.pins()?;
        self.pins.rename(PINS, FORMER)?;
        Ok(pins)
    }

    /// Ends what [`resize_pins`](Self::resize_pins) has begun: the new map is in force, or the former one still is.
    pub(super) fn settle_pins(&self, is_new_in_force: bool) -> Result<()> {
        if is_new_in_force || !self.pins.path(FORMER).exists() {
            return self.pins.remove(FORMER);
        }
        self.pins.remove(PINS)?;
        self.pins.rename(FORMER, PINS)
    }

    /// The most pins that there can be.
    fn pin_room(&self) -> Result<u32> {
        let map = MapData::from_pin(self.pins.path(PINS)).context("cannot open the map of pins")?;
        Ok(map.info()?.max_entries())
    }

    fn pin_map(&self) -> Result<PinMap> {
        // While another installation is prepared, the pin is its map already.
        let map = match self.has_pins() {
            true => {
                MapData::from_pin(self.pins.path(PINS)).context("cannot open the map of pins")?
            }
            false => self.lasting_map(PINS)?,
        };
        Ok(Map::from_map_data(map)?.try_into()?)
    }
}
