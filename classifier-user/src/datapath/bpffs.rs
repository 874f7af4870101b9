//! The directory in the BPF file system where links and counters outlive the controller.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{UnlinkatFlags, unlinkat};
use sha2::{Digest, Sha256};

use crate::mounts::{foreign_namespaces, within};

const MOUNT_POINT: &str = "/sys/fs/bpf";
/// The directory of all controllers below it.
const HOME: &str = "breakout";
/// Names, in the environment, where that directory is for a service that is not root. It cannot reach the mount point, which
/// systemd makes root's alone.
const PLACE: &str = "BREAKOUT_PINS";

/// Changes when the maps that outlive a controller mean something else. Links stand in every layout under the same names,
/// so that programs of any version can take them over.
const LAYOUT: &str = "v2";

/// A directory of pins. It stays reachable whatever mount namespace the controller runs in.
pub(super) struct PinDirectory {
    /// A directory of the BPF file system, often its root.
    root: File,
    /// The directory of the controller below it, with one directory for each layout.
    site: PathBuf,
    /// Path that is shown to operators.
    shown: PathBuf,
}

impl PinDirectory {
    /// Finds the place of the pin directory that belongs to a state directory.
    pub(super) fn open(state_directory: &Path) -> Result<Self> {
        let name = directory_name(state_directory);
        let shown = Path::new(MOUNT_POINT).join(HOME).join(&name);
        if let Some(home) = std::env::var_os(PLACE).map(PathBuf::from) {
            if !is_bpffs(&home) {
                bail!(
                    "{PLACE} is {}, which is no directory of a BPF file system",
                    home.display()
                );
            }
            let root = File::open(&home);
            return Ok(PinDirectory {
                root: root.with_context(|| format!("cannot open {}", home.display()))?,
                site: name,
                shown,
            });
        }
        let site = Path::new(HOME).join(name);
        Ok(PinDirectory {
            root: open_root(&site)?,
            site,
            shown,
        })
    }

    /// Makes the directory, unless it is there.
    pub(super) fn create(&self) -> Result<()> {
        fs::create_dir_all(self.path(""))
            .with_context(|| format!("cannot make the directory {} for pins", self.display("")))
    }

    /// A path by which this process reaches the pin `name`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.site().join(LAYOUT).join(name)
    }

    /// A path by which this process reaches the directory of the controller.
    fn site(&self) -> PathBuf {
        let root = format!("/proc/self/fd/{}", self.root.as_raw_fd());
        Path::new(&root).join(&self.site)
    }

    /// The pin `name` as an operator finds it.
    pub(super) fn display(&self, name: &str) -> String {
        self.shown.join(LAYOUT).join(name).display().to_string()
    }

    /// Opens a directory of the controller, or its own. None if there is none.
    ///
    /// The directory is the service's user's, who must not lead root, as at the removal of the package, to the pins of others:
    /// no link is followed. One step at a time, because the service may not call openat2 (RestrictSUIDSGID=).
    fn open_directory(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mut directory = OwnedFd::from(self.root.try_clone()?);
        for step in self.site.join(name).components() {
            let Component::Normal(step) = step else {
                return Err(Errno::EXDEV.into());
            };
            directory = match openat(&directory, step, flags, Mode::empty()) {
                Ok(opened) => opened,
                Err(Errno::ENOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(Some(directory))
    }

    /// The names in a directory of the controller, or its own.
    fn names_in(&self, directory: &str) -> Result<Vec<String>> {
        let what = || {
            format!(
                "cannot look at the pins in {}",
                self.shown.join(directory).display()
            )
        };
        let Some(opened) = self.open_directory(directory).with_context(what)? else {
            return Ok(Vec::new());
        };
        let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let mut names = Vec::new();
        for entry in fs::read_dir(path).with_context(what)? {
            names.push(
                entry
                    .with_context(what)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        Ok(names)
    }

    /// Removes what has a name in a directory of the controller, or its own. What does not exist is fine.
    fn remove_in(&self, directory: &str, name: &str, flag: UnlinkatFlags) -> Result<()> {
        let what = || {
            format!(
                "cannot remove the pin {}",
                self.shown.join(directory).join(name).display()
            )
        };
        let Some(opened) = self.open_directory(directory).with_context(what)? else {
            return Ok(());
        };
        match unlinkat(&opened, name, flag) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error).with_context(what),
        }
    }

    /// The names of all pins; none if there is no directory.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        self.names_in(LAYOUT)
    }

    /// Removes a pin; one that does not exist is fine.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.remove_in(LAYOUT, name, UnlinkatFlags::NoRemoveDir)
    }

    /// Gives a pin another name.
    pub(super) fn rename(&self, name: &str, other: &str) -> Result<()> {
        self.move_pin(LAYOUT, name, other)
    }

    /// Moves a pin of a layout to another name in ours, or gives one of ours another name.
    fn move_pin(&self, layout: &str, name: &str, other: &str) -> Result<()> {
        let what = || {
            format!(
                "cannot rename the pin {}",
                self.shown.join(layout).join(name).display()
            )
        };
        let from = self.open_directory(layout).with_context(what)?;
        let to = self.open_directory(LAYOUT).with_context(what)?;
        let (Some(from), Some(to)) = (from, to) else {
            bail!("{}: there is no such directory", what());
        };
        renameat(&from, name, &to, other).with_context(what)
    }

    /// The names of the directories that programs of other versions pinned in.
    fn other_layouts(&self) -> Result<Vec<String>> {
        let mut names = self.names_in("")?;
        names.retain(|name| name != LAYOUT);
        Ok(names)
    }

    /// Takes the links of another layout into this one, where programs find them to take over. Returns whether there is
    /// another layout.
    pub(super) fn adopt_links(&self, is_link: impl Fn(&str) -> bool) -> Result<bool> {
        let others = self.other_layouts()?;
        for layout in &others {
            tracing::info!(
                "pins of another version of Breakout are there ({}); its programs are replaced, and its counters and pinned \
                 flows are not used",
                self.shown.join(layout).display()
            );
            self.create()?;
            for name in self.names_in(layout)?.iter().filter(|name| is_link(name)) {
                if !self.path(name).exists() {
                    self.move_pin(layout, name, name)?;
                }
            }
        }
        Ok(!others.is_empty())
    }

    /// Removes what other layouts have, once nothing uses it any more.
    pub(super) fn remove_other_layouts(&self) -> Result<()> {
        for layout in self.other_layouts()? {
            for name in self.names_in(&layout)? {
                self.remove_in(&layout, &name, UnlinkatFlags::NoRemoveDir)?;
            }
            self.remove_in("", &layout, UnlinkatFlags::RemoveDir)?;
        }
        Ok(())
    }

    /// Removes the directory, which must be empty, and those above it that nobody else uses.
    pub(super) fn remove_directory(&self) -> Result<()> {
        self.remove_in("", LAYOUT, UnlinkatFlags::RemoveDir)?;
        let root = format!("/proc/self/fd/{}", self.root.as_raw_fd());
        for parent in self.site.ancestors() {
            // Other controllers may still need these, and a service its place; the last one is the root itself.
            let directory = Path::new(&root).join(parent);
            let is_roots = fs::metadata(&directory).is_ok_and(|data| data.uid() == 0);
            if parent == Path::new(HOME) && !is_roots || fs::remove_dir(directory).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The name says which state directory it belongs to; the hash keeps similar ones apart. BPF file systems
/// allow no dots in names.
fn directory_name(state_directory: &Path) -> PathBuf {
    let text = state_directory.to_string_lossy();
    let readable: String = text
        .trim_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(64)
        .collect();
    let hash = Sha256::digest(text.as_bytes());
    let hash: String = hash
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    PathBuf::from(format!("{readable}-{hash}"))
}

/// Opens the root of a BPF file system that outlives this process, preferably the one in which `relative` exists.
///
/// `ip netns exec` and some service managers give a process a mount namespace of its own, with a new /sys and no
/// BPF file system in it. One mounted there would end with the process and take the programs along. So the
/// namespace of the oldest process that we may look at is used then: on most systems that of process 1.
fn open_root(relative: &Path) -> Result<File> {
    if is_bpffs(Path::new(MOUNT_POINT)) {
        return mount_and_open();
    }
    let mut first = None;
    for (number, namespace) in foreign_namespaces().into_iter().enumerate() {
        // Only the oldest process's namespace is the system's own, where a missing file system may be mounted.
        let Ok(root) = open_root_in(&namespace, number == 0) else {
            continue;
        };
        if Path::new(&format!("/proc/self/fd/{}", root.as_raw_fd()))
            .join(relative)
            .exists()
        {
            return Ok(root);
        }
        first = first.or(Some(root));
    }
    match first {
        Some(root) => Ok(root),
        None => mount_and_open(),
    }
}

fn open_root_in(namespace: &File, may_mount: bool) -> Result<File> {
    within(namespace, || {
        if !may_mount && !is_bpffs(Path::new(MOUNT_POINT)) {
            bail!("no BPF file system is mounted there");
        }
        mount_and_open()
    })
}

fn mount_and_open() -> Result<File> {
    let root = Path::new(MOUNT_POINT);
    if !is_bpffs(root) {
        mount(
            Some("bpf"),
            root,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=700"),
        )
        .with_context(|| {
            format!("no BPF file system is at {MOUNT_POINT} and it cannot be mounted")
        })?;
    }
    File::open(root).with_context(|| format!("cannot open {MOUNT_POINT}"))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_have_no_dots() {
        let a = directory_name(Path::new("/var/lib/breakout.d"));
        let b = directory_name(Path::new("/var/lib/breakout-d"));
        assert_ne!(a, b);
        assert!(!a.to_string_lossy().contains('.'));
        assert!(a.to_string_lossy().starts_with("var-lib-breakout-d-"));
    }
}
