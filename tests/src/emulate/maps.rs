//! Memory and maps of the emulated kernel.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use aya_obj::Map;
use aya_obj::generated::bpf_map_type as kind;

/// Addresses of maps themselves, which only helpers may use.
const HANDLE: u64 = 1 << 60;
/// Regions lie this far apart, but for the packet's, which 32 bits must hold.
const APART: u32 = 32;
/// Where the packet's region starts.
const PACKET: u64 = 1 << 28;

/// Pieces of memory, each at an address of its own.
#[derive(Default)]
pub(super) struct Memory {
    regions: Vec<(u64, Vec<u8>)>,
}

impl Memory {
    /// Adds a piece of memory. The first one is the packet's.
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> u64 {
        let base = match self.regions.len() as u64 {
            0 => PACKET,
            number => number << APART,
        };
        self.regions.push((base, bytes));
        base
    }

    /// The piece of memory that starts at an address.
    pub(super) fn region(&mut self, base: u64) -> &mut Vec<u8> {
        let number = if base == PACKET { 0 } else { base >> APART };
        &mut self.regions[usize::try_from(number).unwrap_or(0)].1
    }

    /// So many bytes at an address.
    pub(super) fn at(&mut self, address: u64, len: usize) -> Result<&mut [u8]> {
        let number = usize::try_from(address >> APART)?;
        let (base, bytes) = self.regions.get_mut(number).context("no such memory")?;
        let from = address.checked_sub(*base).map(usize::try_from);
        let from = from.with_context(|| format!("nothing is at {address:#x}"))??;
        bytes
            .get_mut(from..from.saturating_add(len))
            .with_context(|| format!("{len} bytes at {address:#x} are out of bounds"))
    }
}

enum Kind {
    /// All entries in one piece of memory.
    Array { base: u64, entries: u32 },
    /// The map that each entry stands for.
    Maps { inner: Option<usize> },
    /// Values by their keys.
    Hash { values: HashMap<Vec<u8>, u64> },
    /// Interfaces, which are all there.
    Devices,
}

struct EmulatedMap {
    name: String,
    key: usize,
    value: usize,
    kind: Kind,
}

/// The maps, by their numbers.
#[derive(Default)]
pub(super) struct Maps {
    all: Vec<EmulatedMap>,
    pub(super) memory: Memory,
}

impl Maps {
    /// Adds a map as the object declares it. Its number is how many there were before.
    pub(super) fn add(&mut self, name: &str, map: &Map) {
        if self.all.is_empty() {
            // The packet's, whose address has to be the lowest.
            self.memory.add(Vec::new());
        }
        let value = map.value_size() as usize;
        let entries = map.max_entries().max(1);
        let kind = match map.map_type() {
            kind if kind == kind::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32 => Kind::Maps { inner: None },
            kind if kind == kind::BPF_MAP_TYPE_LRU_HASH as u32
                || kind == kind::BPF_MAP_TYPE_HASH as u32 =>
            {
                Kind::Hash {
                    values: HashMap::new(),
                }
            }
            kind if kind == kind::BPF_MAP_TYPE_DEVMAP as u32
                || kind == kind::BPF_MAP_TYPE_DEVMAP_HASH as u32 =>
            {
                Kind::Devices
            }
            // Arrays, one CPU's slots of per-CPU arrays, and sections of data.
            _ => {
                let mut bytes = map.data().to_vec();
                bytes.resize(bytes.len().max(value * entries as usize), 0);
                Kind::Array {
                    base: self.memory.add(bytes),
                    entries,
                }
            }
        };
        self.all.push(EmulatedMap {
            name: name.to_owned(),
            key: map.key_size() as usize,
            value,
            kind,
        });
    }

    /// Gives a map of maps its only entry: an array with one value.
    pub(super) fn set_inner(&mut self, name: &str, value: Vec<u8>) -> Result<()> {
        let len = value.len();
        let base = self.memory.add(value);
        let number = self.all.len();
        let outer = self.all.iter_mut().find(|map| map.name == name);
        let outer = outer.with_context(|| format!("there is no map {name}"))?;
        outer.kind = Kind::Maps {
            inner: Some(number),
        };
        self.all.push(EmulatedMap {
            name: format!("in {name}"),
            key: 4,
            value: len,
            kind: Kind::Array { base, entries: 1 },
        });
        Ok(())
    }

    /// What stands for a map in a register.
    pub(super) fn handle(number: u64) -> u64 {
        HANDLE | number
    }

    /// The address of a map's first value.
    pub(super) fn value_address(&self, number: usize) -> Result<u64> {
        match self.all.get(number).map(|map| &map.kind) {
            Some(Kind::Array { base, .. }) => Ok(*base),
            _ => bail!("map {number} has no values that can be addressed"),
        }
    }

    fn index(handle: u64) -> Result<usize> {
        ensure!(handle & HANDLE != 0, "{handle:#x} is no map");
        Ok(usize::try_from(handle & !HANDLE)?)
    }

    /// `bpf_map_lookup_elem`.
    pub(super) fn lookup(&mut self, handle: u64, key: u64) -> Result<u64> {
        let map = self.all.get(Self::index(handle)?).context("no such map")?;
        let key = self.memory.at(key, map.key)?.to_vec();
        Ok(match &map.kind {
            Kind::Array { base, entries } => {
                let index = u32::from_ne_bytes(key.as_slice().try_into()?);
                if index < *entries {
                    base + u64::from(index) * map.value as u64
                } else {
                    0
                }
            }
            Kind::Maps { inner } => inner.map_or(0, |number| Self::handle(number as u64)),
            Kind::Hash { values } => values.get(&key).copied().unwrap_or(0),
            Kind::Devices => bail!("{} is not looked up", map.name),
        })
    }

    /// `bpf_map_update_elem`.
    pub(super) fn update(&mut self, handle: u64, key: u64, value: u64) -> Result<u64> {
        let map = self
            .all
            .get_mut(Self::index(handle)?)
            .context("no such map")?;
        let key = self.memory.at(key, map.key)?.to_vec();
        let bytes = self.memory.at(value, map.value)?.to_vec();
        let Kind::Hash { values } = &mut map.kind else {
            bail!("{} is not written by that", map.name);
        };
        let place = *values
            .entry(key)
            .or_insert_with(|| self.memory.add(vec![0; bytes.len()]));
        self.memory.at(place, bytes.len())?.copy_from_slice(&bytes);
        Ok(0)
    }

    /// `bpf_map_delete_elem`.
    pub(super) fn delete(&mut self, handle: u64, key: u64) -> Result<u64> {
        let map = self
            .all
            .get_mut(Self::index(handle)?)
            .context("no such map")?;
        let key = self.memory.at(key, map.key)?.to_vec();
        if let Kind::Hash { values } = &mut map.kind {
            values.remove(&key);
        }
        Ok(0)
    }
}
