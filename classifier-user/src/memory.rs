//! Available memory, so that what would not fit is refused before anything changes, rather than killed by the kernel.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::mounts::{foreign_namespaces, within};

/// Reserve for the rest of the controller, in bytes.
const RESERVE: u64 = 8 << 20;

/// Size below which memory is not checked: the rest of the controller needs as much at any time.
const ALWAYS: u64 = 4 << 20;

/// Fails if there are not so many bytes for something.
///
/// # Errors
///
/// Names what it is for, how much it needs, and what there is.
pub fn require(bytes: u64, what: impl FnOnce() -> String) -> Result<()> {
    if bytes < ALWAYS {
        return Ok(());
    }
    let Some((available, limit)) = available() else {
        return Ok(());
    };
    if bytes.saturating_add(RESERVE) > available {
        bail!(
            "{} needs about {} MiB of memory, and there are {} MiB ({limit})",
            what(),
            bytes.div_ceil(1 << 20),
            available >> 20
        );
    }
    Ok(())
}

/// The bytes that can still be used, and what sets the limit. None if the system does not say.
fn available() -> Option<(u64, String)> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let system = (of_system(&meminfo)?, "of the system".to_owned());
    let groups = of_groups().into_iter();
    groups.chain([system]).min_by_key(|(bytes, _)| *bytes)
}

fn of_system(meminfo: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let available = lines.find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = available.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Returns what the control groups of this process leave, from its own up to the root.
fn of_groups() -> Vec<(u64, String)> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut left = Vec::new();
    for line in own.lines() {
        let Some((hierarchy, group)) = hierarchy_of(line) else {
            continue;
        };
        let here = of_group_and_above(&hierarchy, group);
        if !here.is_empty() {
            left.extend(here);
            continue;
        }
        let elsewhere = foreign_namespaces().into_iter().find_map(|namespace| {
            let found = within(&namespace, || Ok(of_group_and_above(&hierarchy, group)));
            found.ok().filter(|found| !found.is_empty())
        });
        left.extend(elsewhere.into_iter().flatten());
    }
    left
}

/// Returns what a group and those above it leave, as far as they are mounted in this mount namespace.
fn of_group_and_above(hierarchy: &Hierarchy, group: &str) -> Vec<(u64, String)> {
    let mount = PathBuf::from(format!("/sys/fs/cgroup/{}", hierarchy.mount));
    let names = group.split('/').filter(|name| !name.is_empty());
    let groups = names.scan(mount, |path, name| {
        path.push(name);
        Some(path.clone())
    });
    let left = groups.filter_map(|group| {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let stat = read("memory.stat").unwrap_or_default();
        let (max, current) = (read(hierarchy.max)?, read(hierarchy.current)?);
        let bytes = of_group(&max, &current, &stat, hierarchy.cached)?;
        Some((bytes, format!("of the control group {}", group.display())))
    });
    left.collect()
}

/// Files in which one of the two versions of control groups has its numbers.
struct Hierarchy {
    mount: &'static str,
    max: &'static str,
    current: &'static str,
    cached: &'static str,
}

const V2: Hierarchy = Hierarchy {
    mount: "",
    max: "memory.max",
    current: "memory.current",
    cached: "inactive_file ",
};
const V1: Hierarchy = Hierarchy {
    mount: "memory",
    max: "memory.limit_in_bytes",
    current: "memory.usage_in_bytes",
    cached: "total_inactive_file ",
};

/// The group in a line of /proc/self/cgroup (cgroups(7)), if memory is counted there.
fn hierarchy_of(line: &str) -> Option<(Hierarchy, &str)> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    match controllers {
        "" => Some((V2, group)),
        controllers => {
            let mut controllers = controllers.split(',');
            controllers
                .any(|name| name == "memory")
                .then_some((V1, group))
        }
    }
}

/// By the files of a group. What is only cached from files is given back when it is needed.
fn of_group(max: &str, current: &str, stat: &str, cached: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let mut lines = stat.lines();
    let cached = lines.find_map(|line| line.strip_prefix(cached));
    let cached: u64 = cached.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_understood() {
        let meminfo = "MemTotal:       100 kB\nMemAvailable:   64 kB\n";
        assert_eq!(of_system(meminfo), Some(64 << 10));
        assert_eq!(of_system("MemTotal: 1 kB\n"), None);
        let stat = "anon 5\ninactive_file 10\nactive_file 3\n";
        let left = |max: &str, current: &str, stat: &str| of_group(max, current, stat, V2.cached);
        assert_eq!(left("100\n", "50\n", stat), Some(60));
        assert_eq!(left("100\n", "150\n", ""), Some(0));
        assert_eq!(left("max\n", "50\n", stat), None);
        let of = |line| hierarchy_of(line).map(|(hierarchy, group)| (hierarchy.mount, group));
        assert_eq!(
            of("0::/system.slice/breakout.service"),
            Some(("", "/system.slice/breakout.service"))
        );
        assert_eq!(of("4:memory:/a/b"), Some(("memory", "/a/b")));
        assert_eq!(of("4:cpu,memory:/a:b"), Some(("memory", "/a:b")));
        assert_eq!(of("8:pids:/"), None);
        assert_eq!(of("8"), None);
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        require(1, || unreachable!("there is room for a byte")).unwrap();
        let error = require(u64::MAX, || "a table".to_owned()).unwrap_err();
        assert!(error.to_string().starts_with("a table needs"), "{error}");
    }
}
