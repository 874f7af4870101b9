//! The journal: a line for every change that was put into force, never changed afterwards. The oldest go once there are many.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::durable::{open_to_append, read_text};
use crate::rights::as_owner;
use crate::timestamp::Timestamp;

/// Originator of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// A command.
    Operator,
    /// The controller, because the list has changed.
    Service,
    /// The controller, because a time was over.
    Timer,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// Time.
    pub at: Timestamp,
    /// Originator.
    pub who: Who,
    /// Action: `start`, `list`, `reload`, `apply`, `rollback`, `accept`, `release`, `grace`, `bypass`.
    pub action: String,
    /// The generation before.
    pub from_generation: u32,
    /// The generation since.
    pub to_generation: u32,
    /// The ruleset's hash before.
    pub from_hash: String,
    /// The ruleset's hash since.
    pub to_hash: String,
    /// The lists since, as `Worldwide 2026033100`.
    pub lists: Vec<String>,
    /// Reason in a sentence.
    pub why: String,
}

/// The file of a state directory.
pub fn path(state_directory: &Path) -> PathBuf {
    state_directory.join("journal.jsonl")
}

/// The file is put aside, in place of the one before, when it is as long as this: some ten thousand changes.
const FILE_BYTES: u64 = 4 << 20;

/// Adds a line.
///
/// # Errors
///
/// When it cannot be written.
pub fn append(path: &Path, entry: &Entry) -> io::Result<()> {
    let mut file = open_to_append(path)?;
    if file.metadata()?.len() > FILE_BYTES {
        as_owner(path, || std::fs::rename(path, aside(path)))?;
        file = open_to_append(path)?;
    }
    let mut line = Vec::new();
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        // A line that a crash has cut off stays, but alone.
        if last != *b"\n" {
            line.push(b'\n');
        }
    }
    serde_json::to_writer(&mut line, entry)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

/// Reads all lines, the oldest first, and counts those that are damaged.
///
/// # Errors
///
/// When the file is there and cannot be read.
pub fn read(path: &Path) -> io::Result<(Vec<Entry>, usize)> {
    let (mut entries, mut damaged) = (Vec::new(), 0);
    for file in [&aside(path), path] {
        let text = match read_text(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(entry) => entries.push(entry),
                Err(_) => damaged += 1,
            }
        }
    }
    Ok((entries, damaged))
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_costs_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path());
        let entry = Entry {
            at: Timestamp::from_seconds(5),
            who: Who::Operator,
            action: "reload".to_owned(),
            from_generation: 1,
            to_generation: 2,
            from_hash: "a".to_owned(),
            to_hash: "b".to_owned(),
            lists: vec!["Worldwide 2026033100".to_owned()],
            why: "an edited configuration".to_owned(),
        };
        assert_eq!(read(&path).unwrap(), (Vec::new(), 0));
        append(&path, &entry).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{}", &text[..20])).unwrap();
        append(&path, &entry).unwrap();
        let both = (vec![entry.clone(), entry.clone()], 1);
        assert_eq!(read(&path).unwrap(), both);
        // However much happens, it does not grow.
        let full = "x\n".repeat(usize::try_from(FILE_BYTES).unwrap() / 2 + 1);
        std::fs::write(&path, full).unwrap();
        append(&path, &entry).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 1000);
        assert_eq!(read(&path).unwrap().0, [entry]);
    }
}
