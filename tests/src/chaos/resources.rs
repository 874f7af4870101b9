//! What a controller uses, which must not grow.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::Place;

/// Memory may grow by so many KiB before it counts as a leak: by the events that are kept, for example.
const SLACK_KIB: u64 = 12 << 10;
/// Descriptors that come and go with connections.
const SLACK_DESCRIPTORS: usize = 12;
/// The state directory has room for no more than this.
const MOST_STATE: u64 = 1 << 20;

/// What is used at one time.
#[derive(Debug)]
pub(crate) struct Resources {
    memory_kib: u64,
    descriptors: usize,
    programs: usize,
    maps: usize,
    state: u64,
}

impl Resources {
    pub(crate) fn of(place: &Place<'_>) -> Result<Self> {
        let process = format!("/proc/{}", place.daemon()?.pid());
        let status = fs::read_to_string(format!("{process}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.and_then(|text| text.trim().strip_suffix(" kB"));
        Ok(Resources {
            memory_kib: memory.context("the kernel tells VmRSS")?.parse()?,
            descriptors: fs::read_dir(format!("{process}/fd"))?.count(),
            programs: held(&process, "prog_id:")?,
            maps: held(&process, "map_id:")?,
            state: size(&place.site.path().join("state"))?,
        })
    }

    pub(crate) fn compare(&self, first: &Resources) -> Result<()> {
        ensure!(
            self.memory_kib < first.memory_kib + SLACK_KIB,
            "memory grows"
        );
        ensure!(
            self.descriptors <= first.descriptors + SLACK_DESCRIPTORS,
            "descriptors grow"
        );
        ensure!(self.programs <= first.programs, "programs grow");
        ensure!(self.maps <= first.maps, "maps grow");
        ensure!(self.state < MOST_STATE, "the state directory grows");
        Ok(())
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB of memory, {} descriptors, {} programs and {} maps held, {} bytes of state",
            self.memory_kib, self.descriptors, self.programs, self.maps, self.state
        )
    }
}

/// How many programs or maps a process has descriptors of, by the line that names them (Linux, `bpf_prog_show_fdinfo` and
/// `bpf_map_show_fdinfo`). Others may run beside it.
fn held(process: &str, line: &str) -> Result<usize> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("{process}/fdinfo"))?.flatten() {
        // One may be closed meanwhile.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        ids.extend(
            text.lines()
                .filter_map(|text| text.strip_prefix(line))
                .map(str::to_owned),
        );
    }
    Ok(ids.len())
}

fn size(directory: &std::path::Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)?.flatten() {
        let data = entry.metadata()?;
        sum += if data.is_dir() {
            size(&entry.path())?
        } else {
            data.len()
        };
    }
    Ok(sum)
}
