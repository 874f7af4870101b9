//! The path table in force, with the devices that it redirects to.
//!
//! It is apart from everything else, so that fail-over can write it whatever else the data path is busy with.

use anyhow::Result;
use aya::maps::{DevMap, MapData};

use super::bpffs::PinDirectory;
use super::tables::TableMap;
use super::{Paths, TrafficView, open_map};

/// The maps that a [`Paths`] is published in.
pub struct PathMaps {
    table: TableMap,
    /// Those that XDP redirects to, and those that TC does: the same.
    devices: [DevMap<MapData>; 2],
    /// Flows as the programs see them, if they keep them.
    pub view: Option<TrafficView>,
}

impl PathMaps {
    /// Makes the table and pins it for the loader, which makes the map of devices.
    pub(super) fn create(pins: &PinDirectory, paths: &Paths) -> Result<TableMap> {
        let words = paths.words();
        let table = TableMap::create("PATHS", &words, words.len(), &pins.path("PATHS"))?;
        table.with_spare()
    }

    /// The maps, once the loader has made that of devices.
    pub(super) fn open(pins: &PinDirectory, table: TableMap, paths: &Paths) -> Result<Self> {
        let mut maps = PathMaps {
            table,
            devices: [
                open_map(&pins.path("DEVICES"))?.try_into()?,
                open_map(&pins.path("TC_DEVICES"))?.try_into()?,
            ],
            view: None,
        };
        maps.set_devices(paths);
        Ok(maps)
    }

    /// Replaces the path table in one atomic switch. Needs no new memory and no new descriptor.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the new table.
    pub fn publish(&mut self, paths: &Paths) -> Result<()> {
        // An egress is redirected to only once its device is there.
        self.set_devices(paths);
        self.table.publish(&paths.words())
    }

    /// Notes the devices. One that has just gone must not keep the others from failing over; without its device an egress's packets
    /// are left to the kernel.
    fn set_devices(&mut self, paths: &Paths) {
        for (index, device) in &paths.devices {
            for devices in &mut self.devices {
                if let Err(error) = devices.set(u32::from(*index), *device, None, 0) {
                    tracing::warn!("interface {device} cannot be redirected to: {error}");
                }
            }
        }
    }
}
