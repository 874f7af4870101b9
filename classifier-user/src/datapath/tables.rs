//! A table that is replaced as a whole, in one atomic switch: the ruleset and the egresses are such tables.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{ArrayOfMaps, Map, MapData};

use super::sys::{WordMap, create_array_of_maps};

/// The table in force: an array of one map, whose inner maps have one entry each, all of the same size.
///
/// A table is filled while nothing refers to it, and published by one store into the outer array.
pub(super) struct TableMap {
    name: &'static str,
    outer: ArrayOfMaps<MapData, MapData>,
    size: usize,
    current: WordMap,
    /// A table to fill next, where one is kept ready.
    spare: Option<WordMap>,
}

impl TableMap {
    /// Creates the map for tables of `size` words, publishes `words` in it, and pins it for the loader.
    ///
    /// # Errors
    ///
    /// When there is no memory for the table, or `words` is longer than `size`.
    pub(super) fn create(
        name: &'static str,
        words: &[u32],
        size: usize,
        pin: &Path,
    ) -> Result<Self> {
        let current = filled(name, words, size)?;
        let outer = create_array_of_maps(name, &current)
            .with_context(|| format!("cannot make the map {name}"))?;
        let outer = MapData::from_fd(outer)?;
        outer
            .pin(pin)
            .with_context(|| format!("cannot pin the map {name}"))?;
        let mut outer: ArrayOfMaps<MapData, MapData> = Map::from_map_data(outer)?.try_into()?;
        outer.set(0, current.map(), 0)?;
        Ok(TableMap {
            name,
            outer,
            size,
            current,
            spare: None,
        })
    }

    /// Keeps a second table ready from here on, so that publishing one takes neither memory nor a descriptor.
    ///
    /// # Errors
    ///
    /// When there is no memory for it.
    pub(super) fn with_spare(mut self) -> Result<Self> {
        self.spare = Some(filled(self.name, &[], self.size)?);
        Ok(self)
    }

    /// The size of one table in words.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Replaces the table. When this returns, no program uses the old one any more: the kernel waits for that
    /// in the update of a map in a map (an RCU grace period; `maybe_wait_bpf_programs`, Linux 4.20).
    pub(super) fn publish(&mut self, words: &[u32]) -> Result<()> {
        let switch = || format!("cannot switch to the new {} table", self.name);
        if let Some(spare) = &mut self.spare {
            fill(spare, self.name, words)?;
            self.outer.set(0, spare.map(), 0).with_context(switch)?;
            // No program reads the one before any more.
            std::mem::swap(&mut self.current, spare);
            return Ok(());
        }
        let next = filled(self.name, words, self.size)?;
        self.outer.set(0, next.map(), 0).with_context(switch)?;
        self.current = next;
        Ok(())
    }

    /// The table in force, as the kernel holds it.
    pub(super) fn read(&self) -> Result<Vec<u32>> {
        let current = self.current.read();
        current.with_context(|| format!("cannot read the {} table", self.name))
    }
}

/// A fresh inner map of `size` words that starts with `words`.
fn filled(name: &str, words: &[u32], size: usize) -> Result<WordMap> {
    let map = WordMap::create(name, size)
        .with_context(|| format!("cannot allocate {} bytes for a {name} table", size * 4))?;
    fill(&map, name, words)?;
    Ok(map)
}

fn fill(map: &WordMap, name: &str, words: &[u32]) -> Result<()> {
    map.write(words)
        .with_context(|| format!("cannot fill a {name} table with {} words", words.len()))
}
