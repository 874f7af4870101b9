//! Mounts of other namespaces. `ip netns exec` and some service managers give a process a mount namespace of its own, with a new
//! /sys, in which neither the system's BPF file system nor its control groups are.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// The mount namespaces of other processes that differ from ours, oldest process first, each once.
pub fn foreign_namespaces() -> Vec<File> {
    let inode = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|data| data.ino());
    let mut seen: Vec<u64> = inode("self").into_iter().collect();
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut namespaces = Vec::new();
    for pid in pids {
        if let Ok(inode) = inode(&pid.to_string())
            && !seen.contains(&inode)
            && let Ok(namespace) = File::open(format!("/proc/{pid}/ns/mnt"))
        {
            seen.push(inode);
            namespaces.push(namespace);
        }
    }
    namespaces
}

/// Does something in a mount namespace, in a thread of its own.
///
/// # Errors
///
/// Those of what is done, and when the namespace cannot be entered.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // A thread needs its own working directory and root before it may change namespaces.
            unshare(CloneFlags::CLONE_FS).context("cannot unshare the file system context")?;
            setns(namespace, CloneFlags::CLONE_NEWNS).context("cannot enter a mount namespace")?;
            work()
        });
        let done = thread.join();
        done.unwrap_or_else(|_| bail!("the thread in a mount namespace failed"))
    })
}
