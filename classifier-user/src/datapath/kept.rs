//! Descriptors of what is pinned. With them the programs, counters and flows are there as long as the controller, whatever
//! becomes of their pins, and can be pinned again.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use aya::maps::MapData;

use super::bpffs::PinDirectory;
use super::sys;

/// Pinned objects, by the names of the pins.
pub(super) struct Kept(Vec<(String, OwnedFd)>);

impl Kept {
    /// Opens the pins with these names.
    pub(super) fn open(
        pins: &PinDirectory,
        names: impl IntoIterator<Item = String>,
    ) -> Result<Self> {
        let opened = names.into_iter().map(|name| {
            let fd = sys::open_pin(&pins.path(&name))
                .with_context(|| format!("cannot open the pin {}", pins.display(&name)))?;
            Ok((name, fd))
        });
        Ok(Kept(opened.collect::<Result<_>>()?))
    }

    /// A pinned map, whether its pin is still there or not.
    pub(super) fn map(&self, name: &str) -> Result<MapData> {
        let kept = self.0.iter().find(|(other, _)| other == name);
        let (_, fd) = kept.with_context(|| format!("there is no map {name}"))?;
        Ok(MapData::from_fd(fd.as_fd().try_clone_to_owned()?)?)
    }

    /// Pins again what somebody has unpinned. Returns the names.
    pub(super) fn pin_again(&self, pins: &PinDirectory) -> Result<Vec<String>> {
        let mut again = Vec::new();
        for (name, fd) in &self.0 {
            let path = pins.path(name);
            if path.exists() {
                continue;
            }
            pins.create()?;
            sys::pin(fd.as_fd(), &path)
                .with_context(|| format!("cannot pin {} again", pins.display(name)))?;
            again.push(name.clone());
        }
        Ok(again)
    }
}
