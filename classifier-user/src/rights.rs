//! Rights with which files are touched.
//!
//! The state directory is the service's user's. Whoever has become that user can put links there that lead to root's files, so
//! a command that root runs must not have more rights in there than the directory's owner.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, absolute};

use nix::unistd::{Gid, Uid, geteuid, getgroups, setfsgid, setfsuid};

/// Runs an operation on a path with the rights of the first user other than root whom a directory on the way there, or the
/// file itself, belongs to; with root's own if there is none. What it makes is that user's.
///
/// Only for what this thread does itself, and only root's rights change.
///
/// # Errors
///
/// Those of the operation, and when the rights cannot be changed.
pub fn as_owner<T>(path: &Path, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if !geteuid().is_root() {
        return operation();
    }
    match owner(path)? {
        Some((user, group)) => {
            let _lent = Lent::to(user, group)?;
            operation()
        }
        None => operation(),
    }
}

/// Opens a regular file, as its owner. Never follows a link at its end, nor waits for the other end of a pipe.
///
/// # Errors
///
/// When it cannot be opened, or is no regular file.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let options = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file =
        as_owner(path, || options.open(path)).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => io::Error::other("it is a symbolic link, which is not followed"),
            _ => error,
        })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// The first owner other than root of what is on the way to a path.
fn owner(path: &Path) -> io::Result<Option<(Uid, Gid)>> {
    let path = absolute(path)?;
    let mut ways: Vec<&Path> = path.ancestors().collect();
    ways.reverse();
    for way in ways {
        match fs::metadata(way) {
            Ok(data) if data.uid() != 0 => {
                return Ok(Some((data.uid().into(), data.gid().into())));
            }
            Ok(_) => {}
            // What is not there belongs to nobody, nor does what is behind it.
            Err(_) => break,
        }
    }
    Ok(None)
}

/// The rights of another user, until this is dropped.
struct Lent {
    groups: Vec<Gid>,
    user: Uid,
    group: Gid,
}

impl Lent {
    fn to(user: Uid, group: Gid) -> io::Result<Self> {
        let groups = getgroups()?;
        set_groups(&[])?;
        let lent = Lent {
            groups,
            group: setfsgid(group),
            user: setfsuid(user),
        };
        // These calls do not say whether they have failed; setting what is set already tells what is set.
        if setfsuid(user) == user && setfsgid(group) == group {
            Ok(lent)
        } else {
            Err(io::Error::from(io::ErrorKind::PermissionDenied))
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        setfsuid(self.user);
        setfsgid(self.group);
        if let Err(error) = set_groups(&self.groups) {
            tracing::error!("cannot get the groups of this process back: {error}");
        }
    }
}

/// Sets the supplementary groups of this thread alone: the system call is about one thread, the C library's function about all.
fn set_groups(groups: &[Gid]) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    // SAFETY: the kernel reads as many numbers from the vector as it has.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    /// A directory of another user, with root's file beside it; none where this is not root.
    fn places() -> Option<(tempfile::TempDir, std::path::PathBuf)> {
        if !geteuid().is_root() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let theirs = directory.path().join("state");
        fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(65534), Some(65534)).unwrap();
        fs::write(directory.path().join("secret"), "root's").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode;
        fs::set_permissions(directory.path().join("secret"), mode(0o640)).unwrap();
        fs::set_permissions(directory.path(), mode(0o755)).unwrap();
        Some((directory, theirs))
    }

    #[test]
    fn links_in_a_directory_of_somebody_else_lead_to_nothing_of_roots() {
        let Some((directory, theirs)) = places() else {
            return;
        };
        let link = theirs.join("lists");
        symlink(directory.path(), &link).unwrap();
        let secret = link.join("secret");
        let read = as_owner(&secret, || fs::read(&secret));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let made = as_owner(&secret, || fs::write(link.join("new"), ""));
        assert_eq!(made.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        // With its own rights again, root may.
        assert_eq!(fs::read(&secret).unwrap(), b"root's");
        let own = theirs.join("own");
        open(&own, OpenOptions::new().create(true).write(true)).unwrap();
        assert_eq!(fs::metadata(&own).unwrap().uid(), 65534);
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        open(&file, OpenOptions::new().read(true)).unwrap();
        let error = open(&link, OpenOptions::new().read(true)).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = open(&pipe, OpenOptions::new().read(true)).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
        assert!(open(directory.path(), OpenOptions::new().read(true)).is_err());
    }
}
