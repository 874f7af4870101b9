//! State that survives the controller: the lock that keeps a second one out, the generation, and which endpoint set
//! has which counter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use breakout_common::egress::MAX_EGRESSES;
use breakout_common::path::MAX_PREFERENCES;
use serde::{Deserialize, Serialize};

use super::ways::EgressVerdict;
use crate::config::{Config, Routing};
use crate::control::BypassStatus;
use crate::durable::{Disk, create_directory, is_full, read, remove_unfinished};
use crate::exit::{Code, WithCode};
use crate::list::SetKey;
use crate::rights;
use crate::ruleset::Slots;

/// The state directory, locked for this process.
pub(super) struct StateDirectory {
    path: PathBuf,
    _lock: Lock,
}

/// Lock that keeps a second controller out while it is held.
enum Lock {
    /// A file in the directory, or the directory.
    File { _locked: File },
    /// Without a directory: a name that the kernel lets one process of this network namespace have (unix(7), abstract).
    Name { _bound: UnixDatagram },
}

/// The file of a state directory that the rest of this module is about.
const FILE: &str = "state.json";

/// The content of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Persistent {
    /// The last generation that was loaded.
    pub(super) generation: u32,
    /// The counter slot of every endpoint set that ever had one.
    pub(super) slots: Vec<Slot>,
    /// True if rules and routes of ours may be in the kernel.
    pub(super) installed: bool,
    /// The index of every egress that ever had one, so that a mark never changes its meaning while programs run.
    #[serde(default)]
    pub(super) egresses: BTreeMap<String, u8>,
    /// The index of every preference that ever had one, by its text.
    #[serde(default)]
    pub(super) preferences: BTreeMap<String, u8>,
    /// True if our nftables table may be in the kernel.
    #[serde(default)]
    pub(super) nat: bool,
    /// The routing numbers that are installed.
    #[serde(default)]
    pub(super) routing: Option<Routing>,
    /// Those that were installed before, and may be still.
    #[serde(default)]
    pub(super) former_routing: Vec<Routing>,
    /// The boot in which that was.
    #[serde(default)]
    pub(super) boot: String,
    /// Difference between the system's clock and the time since that boot, in seconds.
    #[serde(default)]
    pub(super) clock: Option<i64>,
    /// Inode of the network namespace that they are installed in.
    #[serde(default)]
    pub(super) namespace: u64,
    /// Health of the egresses.
    #[serde(default)]
    pub(super) verdicts: Vec<EgressVerdict>,
    /// If steering is switched off for a time.
    #[serde(default)]
    pub(super) bypass: Option<BypassStatus>,
    /// Interfaces whose clsact qdisc is ours to remove, on kernels before 6.6.
    pub(super) clsact: Vec<String>,
    /// The LAN interfaces that programs may be attached to.
    #[serde(default)]
    pub(super) lans: BTreeSet<String>,
}

/// One endpoint set's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    #[serde(flatten)]
    key: SetKey,
    slot: u16,
}

impl Persistent {
    /// Reads the state of a controller, running or not, if there is any that can be read.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&read(&directory.join(FILE)).ok()?).ok()
    }

    /// Gives each egress and each preference of a configuration an index that no other one has.
    pub(super) fn assign_indices(&mut self, config: &Config) -> Result<()> {
        let egresses: Vec<String> = config.egress.keys().cloned().collect();
        let preferences = config.preferences();
        let preferences: Vec<String> = preferences.iter().map(ToString::to_string).collect();
        assign(&mut self.egresses, &egresses, MAX_EGRESSES, "egress")?;
        assign(
            &mut self.preferences,
            &preferences,
            MAX_PREFERENCES,
            "preference",
        )
    }

    /// Moves along what is due after the clock was set.
    pub(super) fn move_by(&mut self, step: i64) {
        if let Some(bypass) = &mut self.bypass {
            bypass.since = bypass.since.moved_by(step);
            bypass.until = bypass.until.map(|until| until.moved_by(step));
        }
        for verdict in &mut self.verdicts {
            verdict.verdict.since = verdict.verdict.since.moved_by(step);
        }
    }

    /// Notes other routing numbers. Those before are kept until what has them is removed.
    pub(super) fn change_routing(&mut self, routing: &Routing) {
        let before = self.routing.replace(routing.clone());
        self.former_routing.extend(before);
        self.former_routing.dedup();
        self.former_routing.retain(|former| former != routing);
    }

    /// The slots as the ruleset wants them.
    pub(super) fn slots(&self) -> Slots {
        let slots = self.slots.iter();
        Slots::from_assigned(slots.map(|slot| (slot.key.clone(), slot.slot)))
    }

    /// Takes over the slots of a ruleset.
    pub(super) fn set_slots(&mut self, slots: &Slots) {
        let entries = slots.iter().map(|(key, slot)| Slot { key, slot });
        self.slots = entries.collect();
    }
}

/// Gives each name an index below `limit`. Those that are no longer wanted keep theirs as long as there are others.
fn assign(
    indices: &mut BTreeMap<String, u8>,
    wanted: &[String],
    limit: usize,
    what: &str,
) -> Result<()> {
    for name in wanted {
        if indices.contains_key(name) {
            continue;
        }
        let taken = |index: &u8| indices.values().any(|other| other == index);
        let free = (0..u8::MAX).take(limit).find(|index| !taken(index));
        let index = free.or_else(|| {
            let unused = indices.iter().find(|(name, _)| !wanted.contains(name));
            unused.map(|(_, index)| *index)
        });
        let index = index.with_context(|| format!("there is no index left for {what} {name}"))?;
        indices.retain(|_, other| *other != index);
        indices.insert(name.clone(), index);
    }
    Ok(())
}

impl StateDirectory {
    /// Makes the directory if need be, and locks it.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or another controller has it.
    pub(super) fn lock(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            match create_directory(path) {
                Err(error) if is_full(&error) => {
                    tracing::error!(
                        "cannot make the state directory {}: {error}; nothing is remembered over a restart",
                        path.display()
                    );
                    return Ok(StateDirectory {
                        path: path.to_owned(),
                        _lock: Lock::Name {
                            _bound: bind_name(path)?,
                        },
                    });
                }
                made => made
                    .with_context(|| format!("cannot make the state directory {}", path.display()))
                    .code(Code::System)?,
            }
            rights::as_owner(path, || {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            })?;
        }
        let file = path.join("lock");
        let mut lock = open_lock(path, &file)
            .with_context(|| format!("cannot open {}", file.display()))
            .code(Code::System)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                return Err(busy(path, pid.trim())).code(Code::Busy);
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", file.display()));
            }
        }
        remove_unfinished(path);
        // Only for people; the lock holds without.
        let noted = lock
            .set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()));
        if let Err(error) = noted {
            tracing::warn!("cannot write {}: {error}", file.display());
        }
        Ok(StateDirectory {
            path: path.to_owned(),
            _lock: Lock::File { _locked: lock },
        })
    }

    /// Reads the state. `None` if there is none, or none that can be understood.
    pub(super) fn load(&self) -> Option<Persistent> {
        let text = read(&self.file()).ok()?;
        match serde_json::from_slice::<Persistent>(&text) {
            Ok(mut state) => {
                if state.boot != boot_id() {
                    // Nothing in the kernel outlives a reboot.
                    state.installed = false;
                    state.clock = None;
                    state.routing = None;
                    state.former_routing.clear();
                    state.clsact.clear();
                    state.lans.clear();
                }
                Some(state)
            }
            Err(error) => {
                tracing::warn!(
                    "{} is damaged ({error}); counters start afresh",
                    self.file().display()
                );
                None
            }
        }
    }

    /// Writes the state: either all of it is there afterwards, or what was there before.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(super) fn save(&self, state: &Persistent) -> Result<()> {
        let mut text = serde_json::to_string_pretty(state)?;
        text.push('\n');
        let written = Disk::reliable().write(&self.file(), text.as_bytes());
        written.with_context(|| format!("cannot write {}", self.file().display()))
    }

    fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }
}

fn busy(directory: &Path, pid: &str) -> anyhow::Error {
    let process = match pid {
        "" => String::new(),
        pid => format!(" (process {pid})"),
    };
    anyhow!(
        "another controller{process} uses the state directory {}. Stop it, or give this one its own [state] directory and \
         [control] socket",
        directory.display()
    )
}

/// Takes the name that stands for a directory which cannot be made.
fn bind_name(directory: &Path) -> Result<UnixDatagram> {
    let name = format!("breakout {}", directory.display());
    let name: String = name.chars().take(100).collect();
    let bound =
        SocketAddr::from_abstract_name(name).and_then(|name| UnixDatagram::bind_addr(&name));
    bound.map_err(|_| busy(directory, "")).code(Code::Busy)
}

/// Opens the file that is locked, or what can be locked in its place where nothing can be written: it as it is, or the
/// directory.
fn open_lock(directory: &Path, file: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).read(true).write(true).truncate(false);
    match rights::open(file, &mut options) {
        Err(error) if is_full(&error) => {
            tracing::warn!("cannot write {}: {error}", file.display());
            rights::open(file, File::options().read(true)).or_else(|_| File::open(directory))
        }
        opened => opened,
    }
}

/// Returns what tells this boot of the machine from others.
pub(super) fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Capabilities that the controller needs (capabilities(7)), by the number of its bit. Only CAP_PERFMON lets the verifier pass programs
/// without the guards against speculation that it puts into those of ordinary users.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// Stands for those that were once part of it.
const CAP_SYS_ADMIN: u32 = 21;

/// Fails unless this process may change the data path and the routing.
///
/// # Errors
///
/// Names the capabilities that are missing.
pub fn require_privileges() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let effective = effective.context("cannot read the capabilities from /proc/self/status")?;
    let missing = missing_capabilities(effective);
    if !missing.is_empty() {
        bail!(
            "this needs root, or the capability {}: it loads eBPF programs and sets routes. Run it with sudo, or as the \
             service breakout",
            missing.join(" and ")
        );
    }
    Ok(())
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing = CAPABILITIES
        .iter()
        .filter(|(bit, name)| !has(*bit) && (*name == "CAP_NET_ADMIN" || !has(CAP_SYS_ADMIN)));
    missing.map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::Instance;

    #[test]
    fn state_survives_and_a_second_controller_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::lock(directory.path()).unwrap();
        assert_eq!(state.load(), None);
        let mut persistent = Persistent {
            generation: 7,
            boot: boot_id(),
            ..Persistent::default()
        };
        let key = SetKey::published(Instance::China, 3);
        persistent.set_slots(&Slots::from_assigned([(key.clone(), 5)]));
        state.save(&persistent).unwrap();
        assert_eq!(state.load(), Some(persistent.clone()));
        assert_eq!(persistent.slots().iter().next(), Some((key, 5)));

        let error = StateDirectory::lock(directory.path()).err().unwrap();
        assert_eq!(crate::exit::code_of(&error), Code::Busy);
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid), "{error}");
        drop(state);
        StateDirectory::lock(directory.path()).unwrap();
    }

    #[test]
    fn a_damaged_state_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::lock(directory.path()).unwrap();
        fs::write(directory.path().join("state.json"), "{\"generation\":").unwrap();
        assert_eq!(state.load(), None);
    }
}
