//! Files that are either there as a whole or not at all, whenever the machine stops.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::hex::hex;
use crate::rights::{self, as_owner};

/// Prefix of temporary files.
const TEMPORARY: &str = ".new-";
/// The largest file that is read.
const MAX_FILE: u64 = 256 << 20;

/// Writes files. In tests, it fails at a chosen step as a crash or a full disk would.
#[derive(Debug, Default)]
pub struct Disk {
    /// Steps that still succeed, with one added; 0 for all.
    steps_left: AtomicUsize,
}

impl Disk {
    /// A disk whose steps all succeed.
    pub const fn reliable() -> Self {
        Disk {
            steps_left: AtomicUsize::new(0),
        }
    }

    /// A disk that fails after so many steps, as if the machine had stopped there: nothing is tidied up.
    pub const fn failing_after(steps: usize) -> Self {
        Disk {
            steps_left: AtomicUsize::new(steps + 1),
        }
    }

    /// One step: all that a crash can come before or after.
    fn step(&self) -> io::Result<()> {
        let left = self.steps_left.load(Ordering::Relaxed);
        match left {
            0 => Ok(()),
            1 => Err(io::Error::from(io::ErrorKind::StorageFull)),
            _ => {
                self.steps_left.store(left - 1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Returns whether the machine is supposed to have stopped.
    fn has_crashed(&self) -> bool {
        self.steps_left.load(Ordering::Relaxed) == 1
    }

    /// Replaces a file: afterwards all of it is there, or what was there before.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        as_owner(path, || self.replace(path, bytes))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        self.step()?;
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(directory)?;
        match self.fill(&mut file, bytes) {
            Err(error) if self.has_crashed() => {
                file.disable_cleanup(true);
                return Err(error);
            }
            filled => filled?,
        }
        file.persist(path)?;
        self.step()?;
        File::open(directory)?.sync_all()
    }

    fn fill(&self, file: &mut NamedTempFile, bytes: &[u8]) -> io::Result<()> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.step()?;
        file.write_all(first)?;
        self.step()?;
        file.write_all(second)?;
        self.step()?;
        file.as_file().sync_all()?;
        self.step()
    }

    /// Writes a value as JSON that a person can read, with a hash that shows damage.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_sealed(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        let content = serde_json::to_string_pretty(value)?;
        let seal = hex(&Sha256::digest(&content));
        self.write(
            path,
            format!("{{\n\"sha256\": \"{seal}\",\n\"content\": {content}\n}}\n").as_bytes(),
        )
    }

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be removed.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        remove(path)
    }
}

/// Removes a file.
///
/// # Errors
///
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match as_owner(path, || fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a file.
///
/// # Errors
///
/// When it cannot be read, or is larger than any file of ours.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = rights::open(path, File::options().read(true))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file of text.
///
/// # Errors
///
/// As [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The files in a directory.
///
/// # Errors
///
/// When it cannot be read.
pub fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    as_owner(directory, || {
        let entries = fs::read_dir(directory)?.flatten();
        Ok(entries.map(|entry| entry.path()).collect())
    })
}

/// Returns whether an error says that nothing can be written where something could be: the disk is full, or may only be read.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Opens a file to add to it, and makes it if need be.
///
/// # Errors
///
/// When it cannot be opened.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    rights::open(path, File::options().create(true).read(true).append(true))
}

/// Makes a directory and those above it that are missing.
///
/// # Errors
///
/// When it cannot be made.
pub fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directory(parent)?;
    }
    as_owner(path, || fs::create_dir(path))
}

/// Reads what [`Disk::write_sealed`] has written.
///
/// # Errors
///
/// When it cannot be read, is damaged, or is of another kind.
pub fn read_sealed<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    #[derive(serde::Deserialize)]
    struct Sealed {
        sha256: String,
        content: Box<RawValue>,
    }
    let text = read_text(path)?;
    let sealed: Sealed = serde_json::from_str(&text)?;
    let found = hex(&Sha256::digest(sealed.content.get()));
    if found != sealed.sha256 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} is damaged: its content has another hash",
                path.display()
            ),
        ));
    }
    Ok(serde_json::from_str(sealed.content.get())?)
}

/// Removes what writes that were broken off have left in a directory.
pub fn remove_unfinished(directory: &Path) {
    for file in files(directory).unwrap_or_default() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(TEMPORARY) {
            let _ = remove(&file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_at_any_step_leaves_the_old_or_the_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("value.json");
        let mut finished = false;
        for steps in 0..20 {
            Disk::reliable().write_sealed(&path, &"old").unwrap();
            let disk = Disk::failing_after(steps);
            finished = disk.write_sealed(&path, &"new").is_ok();
            let value: String = read_sealed(&path).unwrap();
            assert!(value == "old" || value == "new", "{steps}: {value}");
            assert!(!finished || value == "new");
            remove_unfinished(directory.path());
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
        assert!(finished, "the steps have been gone through");
    }

    #[test]
    fn damage_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("value.json");
        Disk::reliable()
            .write_sealed(&path, &["40.96.0.0/13"])
            .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("/13", "/12")).unwrap();
        let error = read_sealed::<Vec<String>>(&path).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}
