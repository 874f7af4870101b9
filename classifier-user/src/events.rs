//! Events: changes of egresses, links and lists, with reasons. The newest are in memory, and in a file of limited size.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::durable::{open_to_append, read_text};
use crate::rights::as_owner;
use crate::timestamp::Timestamp;

/// Number of events that can be asked for.
const KEPT: usize = 1000;
/// The file is put aside, in place of the one before, when it is as long as this.
const FILE_BYTES: u64 = 1 << 20;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its number, which goes up by one from event to event.
    pub number: u64,
    /// Time.
    pub at: Timestamp,
    /// Subject: `clock`, `egress`, `link`, `nat`, `program` or `ruleset`.
    pub kind: String,
    /// Name of the subject: an egress and address family, an interface, a generation.
    pub subject: String,
    /// Event in a few words.
    pub what: String,
    /// Reason.
    pub why: String,
}

/// The events of a controller.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    newest: VecDeque<Event>,
    next: u64,
}

impl Events {
    /// Goes on where the last controller with this state directory stopped.
    pub fn open(state_directory: &Path) -> Self {
        let path = state_directory.join("events.jsonl");
        let mut newest = VecDeque::new();
        for file in [aside(&path), path.clone()] {
            let text = read_text(&file).unwrap_or_default();
            // A line that a crash has cut off is left out.
            newest.extend(
                text.lines()
                    .filter_map(|line| serde_json::from_str::<Event>(line).ok()),
            );
        }
        newest.drain(..newest.len().saturating_sub(KEPT));
        let next = newest.back().map_or(1, |event| event.number + 1);
        Events { path, newest, next }
    }

    /// Notes that something happened now.
    pub fn note(
        &mut self,
        kind: &str,
        subject: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) {
        let event = Event {
            number: self.next,
            at: Timestamp::now(),
            kind: kind.to_owned(),
            subject: subject.into(),
            what: what.into(),
            why: why.into(),
        };
        self.next += 1;
        if let Err(error) = self.append(&event) {
            tracing::debug!("cannot write {}: {error}", self.path.display());
        }
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(event);
    }

    /// Those with a higher number, the oldest first.
    pub fn after(&self, number: u64) -> Vec<Event> {
        self.newest
            .iter()
            .filter(|event| event.number > number)
            .cloned()
            .collect()
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        let mut file = open_to_append(&self.path)?;
        if file.metadata()?.len() > FILE_BYTES {
            as_owner(&self.path, || fs::rename(&self.path, aside(&self.path)))?;
            file = open_to_append(&self.path)?;
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_after_a_restart_and_the_file_stays_short() {
        let directory = tempfile::tempdir().unwrap();
        let mut events = Events::open(directory.path());
        let long = "x".repeat(2000);
        for _ in 0..KEPT + 200 {
            events.note("egress", "local IPv4", "down", &long);
        }
        assert_eq!(events.after(0).len(), KEPT);
        let newest = events.after(0).last().unwrap().clone();
        let path = directory.path().join("events.jsonl");
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"number\":").unwrap();
        let mut again = Events::open(directory.path());
        assert_eq!(
            again.after(newest.number - 1),
            std::slice::from_ref(&newest)
        );
        again.note("egress", "local IPv4", "up", "");
        assert_eq!(again.after(newest.number)[0].number, newest.number + 1);
        let bytes: u64 = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes < 3 * FILE_BYTES, "{bytes}");
    }
}
