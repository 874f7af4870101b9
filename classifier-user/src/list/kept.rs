//! The lists of one instance that the state directory keeps, and which of them is in force.
//!
//! ```text
//! lists/Worldwide/00000007-2026033100.json   a list: what was sent, and what became of it
//! lists/Worldwide/in-force.json              which one is in force, and what of those before is still kept up
//! lists/Worldwide/unreadable                 the last thing that was sent and is no list
//! lists/Worldwide/schedule.json              when the service was asked, and when it is asked again
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{
    Beside, Candidate, EndpointSet, Fetched, Instance, Judge, List, ParseError, Pending, Record,
    Schedule, embedded, pending, with_grace,
};
use crate::durable::{Disk, create_directory, files, is_full, read_sealed, remove_unfinished};
use crate::timestamp::Timestamp;

/// Splits `INSTANCE/VERSION`; the instance may be missing.
pub fn split_name(name: &str) -> (Option<Instance>, &str) {
    match name.split_once('/') {
        Some((instance, version)) => match Instance::from_name(instance) {
            Some(instance) => (Some(instance), version),
            None => (None, name),
        },
        None => (None, name),
    }
}

/// Bytes that are saved of a response that is no list.
const MAX_PUT_ASIDE: usize = 64 << 10;

/// Bytes of lists that are stored beyond those that are needed.
const MAX_KEPT: usize = 32 << 20;

/// List in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The number of its record; none for the built-in list.
    pub record: Option<u32>,
    /// Sets of earlier lists that are still steered for the grace period.
    pub withdrawn: Vec<EndpointSet>,
    /// Set after a rollback: later lists wait until an operator releases them.
    pub held: Option<Held>,
}

/// A rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Time.
    pub since: Timestamp,
    /// The time at which the ruleset was made that is in force again. Grace times do not run meanwhile.
    pub as_of: Timestamp,
}

/// The kept lists of one instance.
#[derive(Clone, Debug)]
pub struct Kept {
    directory: PathBuf,
    instance: Instance,
    records: Vec<Record>,
    in_force: InForce,
    /// True if it is written down.
    is_saved: bool,
    /// The numbers of lists whose amendment is not.
    unsaved: BTreeSet<u32>,
    /// Times of past requests and of the next one.
    pub schedule: Schedule,
    /// Files that could not be read.
    damaged: Vec<String>,
}

impl Kept {
    /// Opens what is kept of an instance, and makes place for it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn open(state_directory: &Path, instance: Instance) -> Result<Self> {
        let directory = place(state_directory, instance);
        match create_directory(&directory) {
            Err(error) if is_full(&error) => {
                tracing::warn!("cannot make the directory {}: {error}", directory.display());
            }
            made => {
                made.with_context(|| format!("cannot make the directory {}", directory.display()))?;
            }
        }
        remove_unfinished(&directory);
        let mut kept = Self::read_only(state_directory, instance);
        if !directory.join("in-force.json").exists() && kept.records.is_empty() {
            // From now on a list is in force only once it was put there. A full disk is told of when something is kept.
            let _ = kept.set_in_force(&Disk::reliable(), InForce::default());
        }
        Ok(kept)
    }

    /// Reads what is kept of an instance, without changing anything.
    pub fn read_only(state_directory: &Path, instance: Instance) -> Self {
        let directory = place(state_directory, instance);
        let mut damaged = Vec::new();
        let mut records = read_records(&directory, instance, &mut damaged);
        records.sort_by_key(|record| record.number);
        let path = directory.join("in-force.json");
        let in_force = read_sealed(&path).map_or_else(
            |error: io::Error| {
                if error.kind() != io::ErrorKind::NotFound {
                    damaged.push(format!("{}: {error}", path.display()));
                }
                None
            },
            Some,
        );
        let is_there = |number: u32| {
            let mut records = records.iter();
            records.any(|record: &Record| record.number == number && record.list().is_ok())
        };
        let mut in_force: InForce = in_force.unwrap_or_else(|| InForce {
            record: Some(u32::MAX),
            ..InForce::default()
        });
        if let Some(number) = in_force.record.filter(|number| !is_there(*number)) {
            // It is damaged, or it is not known which one it is: the newest good one before it. A hold stays.
            let before = records
                .iter()
                .rev()
                .filter(|record| record.number <= number);
            let mut good = before.filter(|record| record.is_good() && record.list().is_ok());
            in_force.record = good.next().map(|record| record.number);
        }
        Kept {
            schedule: read_sealed(&directory.join("schedule.json")).unwrap_or_default(),
            directory,
            instance,
            records,
            in_force,
            is_saved: true,
            unsaved: BTreeSet::new(),
            damaged,
        }
    }

    /// The instance.
    pub fn instance(&self) -> Instance {
        self.instance
    }

    /// The kept lists, the oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Returns what could not be read.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// Returns which list is in force.
    pub fn state(&self) -> &InForce {
        &self.in_force
    }

    /// The list in force, with what is withdrawn but kept up.
    pub fn in_force(&self) -> List {
        let list = self.list_of(&self.in_force);
        list.unwrap_or_else(|_| embedded(self.instance))
    }

    /// The list that was in force at some time, with what was withdrawn but kept up.
    ///
    /// # Errors
    ///
    /// When it is not kept any more.
    pub fn list_of(&self, state: &InForce) -> Result<List> {
        let mut list = match state.record {
            None => embedded(self.instance),
            Some(number) => {
                let record = self.record(number);
                let record = record.with_context(|| {
                    format!(
                        "list number {number} of {} is not kept any more",
                        self.instance
                    )
                })?;
                record.list()?
            }
        };
        list.sets.extend(state.withdrawn.iter().cloned());
        Ok(list)
    }

    /// The record with a number.
    pub fn record(&self, number: u32) -> Option<&Record> {
        self.records.iter().find(|record| record.number == number)
    }

    /// The newest record that a person means by a version, or by the start of a hash.
    ///
    /// # Errors
    ///
    /// When there is none; names those that there are.
    pub fn find(&self, name: &str) -> Result<&Record> {
        let mut records = self.records.iter().rev();
        records
            .find(|record| record.is_called(name))
            .ok_or_else(|| {
                let names: Vec<String> = self.records.iter().map(Record::name).collect();
                anyhow!(
                    "no list {name} of {} is kept; there are: {}",
                    self.instance,
                    if names.is_empty() {
                        "none".to_owned()
                    } else {
                        names.join(", ")
                    }
                )
            })
    }

    /// The version that the service need not send again.
    pub fn known_version(&self, query: &str) -> Option<&str> {
        let newest = self.records.last()?;
        newest.version.as_deref().filter(|_| newest.query == query)
    }

    /// A good list that is newer than the one in force, if there is one.
    pub fn waiting(&self) -> Option<&Record> {
        let newest = self.records.iter().rev().find(|record| record.is_good())?;
        (Some(newest.number) > self.in_force.record).then_some(newest)
    }

    /// The newest list, if it was refused.
    pub fn refused(&self) -> Option<&Record> {
        self.records.last().filter(|record| !record.is_good())
    }

    /// The list that comes into force with a record, with what it lacks of the one before in its grace time; and what is noted then.
    ///
    /// # Errors
    ///
    /// When this version of Breakout cannot read it.
    pub fn after(
        &self,
        record: &Record,
        now: Timestamp,
        grace: Duration,
    ) -> Result<(List, InForce)> {
        let mut list = with_grace(&self.in_force(), record.list()?, now, grace);
        list.record = Some(record.number);
        let state = InForce {
            record: Some(record.number),
            withdrawn: list.withdrawn().cloned().collect(),
            held: None,
        };
        Ok((list, state))
    }

    /// Notes that the list in force cannot be loaded, and goes back to the good one before it, or to the built-in one.
    ///
    /// # Errors
    ///
    /// When it cannot be written down.
    pub fn step_back(&mut self, disk: &Disk, why: &str) -> Result<()> {
        let Some(number) = self.in_force.record else {
            return Ok(());
        };
        let noted = self.amend(disk, number, |record| {
            record.failure = Some(why.to_owned());
            record.accepted = None;
        });
        let mut before = self.records.iter().rev();
        let before = before.find(|record| record.number < number && record.is_good());
        let state = InForce {
            record: before.map(|record| record.number),
            withdrawn: Vec::new(),
            held: self.in_force.held.clone(),
        };
        noted.and(self.set_in_force(disk, state))
    }

    /// Returns what a list that follows is judged beside.
    pub fn beside(&self) -> Beside {
        Beside {
            in_force: self.in_force(),
            refused: self.refused().cloned(),
        }
    }

    /// Reads, judges and keeps a list that was fetched.
    ///
    /// # Errors
    ///
    /// When it is no list, or cannot be written.
    pub fn add(
        &mut self,
        disk: &Disk,
        fetched: &Fetched,
        judge: &Judge,
        now: Timestamp,
    ) -> Result<&Record> {
        match Candidate::new(fetched.clone(), self.instance, &self.beside(), judge) {
            Ok(candidate) => self.keep(disk, candidate, judge, now),
            Err(unreadable) => Err(self.put_aside(disk, fetched, &unreadable.0)),
        }
    }

    /// Keeps a list that was read and judged. One that is kept already as the newest is not kept again.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn keep(
        &mut self,
        disk: &Disk,
        candidate: Candidate,
        judge: &Judge,
        now: Timestamp,
    ) -> Result<&Record> {
        let Candidate {
            list,
            hash,
            mut judgement,
            agrees_with,
            beside,
            fetched,
            endpoints,
        } = candidate;
        if let Some(newest) = self.records.last()
            && newest.hash == hash
            && newest.version == list.version
        {
            return self.records.last().context("there is one");
        }
        if beside != self.in_force.record {
            // Another list has come into force meanwhile.
            judgement = judge.judge(&self.in_force(), &list);
        }
        let record = Record {
            number: self.records.last().map_or(1, |newest| newest.number + 1),
            instance: self.instance,
            version: list.version.clone(),
            hash,
            source: fetched.source,
            query: fetched.query,
            fetched: now,
            agrees_with: agrees_with.filter(|_| !judgement.is_passed()),
            judgement,
            failure: None,
            accepted: None,
            pending: self.still_pending(&list, pending(&fetched.changes, now), now),
            endpoints,
        };
        self.write(disk, &record)?;
        self.records.push(record);
        self.records.last().context("it was just added")
    }

    /// Returns what is announced, and what was announced before and is still to come.
    fn still_pending(
        &self,
        list: &List,
        mut announced: Vec<Pending>,
        now: Timestamp,
    ) -> Vec<Pending> {
        let before = self.in_force();
        let is_there = |id: u32| list.sets.iter().any(|set| set.key.id() == Some(id));
        let earlier = before
            .pending_at(now)
            .filter(|pending| is_there(pending.id));
        for pending in earlier {
            if !announced.contains(pending) {
                announced.push(pending.clone());
            }
        }
        announced
    }

    /// Keeps what is no list for whoever wants to look at it, in the place of what was kept so before.
    pub fn put_aside(&self, disk: &Disk, fetched: &Fetched, error: &ParseError) -> anyhow::Error {
        let path = self.directory.join("unreadable");
        let beginning = &fetched.endpoints[..fetched.endpoints.len().min(MAX_PUT_ASIDE)];
        let error = anyhow!("{error}");
        match disk.write(&path, beginning) {
            Ok(()) => error.context(format!("what was sent is kept in {}", path.display())),
            Err(_) => error,
        }
    }

    /// Notes that a list was accepted by an operator, or could not be loaded: in any case for this process.
    ///
    /// # Errors
    ///
    /// When there is no such list, or it cannot be written down.
    pub fn amend(
        &mut self,
        disk: &Disk,
        number: u32,
        amend: impl FnOnce(&mut Record),
    ) -> Result<()> {
        let place = self
            .records
            .iter()
            .position(|record| record.number == number);
        let Some(place) = place else {
            bail!("there is no list with the number {number}");
        };
        amend(&mut self.records[place]);
        let written = self.write(disk, &self.records[place]);
        match written {
            Ok(()) => self.unsaved.remove(&number),
            Err(_) => self.unsaved.insert(number),
        };
        written
    }

    /// Notes which list is in force: in any case for this process.
    ///
    /// # Errors
    ///
    /// When it cannot be written down.
    pub fn set_in_force(&mut self, disk: &Disk, in_force: InForce) -> Result<()> {
        let path = self.directory.join("in-force.json");
        self.in_force = in_force;
        self.is_saved = disk.write_sealed(&path, &self.in_force).is_ok();
        if !self.is_saved {
            bail!("cannot write {}; it is tried again", path.display());
        }
        Ok(())
    }

    /// Tells whether all is written down.
    pub fn is_saved(&self) -> bool {
        self.is_saved && self.unsaved.is_empty()
    }

    /// Writes again what could not be written before: which list is in force, and what became of others.
    ///
    /// # Errors
    ///
    /// When it still cannot be written.
    pub fn save_again(&mut self, disk: &Disk) -> Result<()> {
        for number in self.unsaved.clone() {
            if let Some(record) = self.record(number) {
                self.write(disk, record)?;
            }
            self.unsaved.remove(&number);
        }
        if self.is_saved {
            return Ok(());
        }
        self.set_in_force(disk, self.in_force.clone())
    }

    /// Removes lists beyond the newest `keep`, and those beyond 32 MiB, but never the one in force, nor the newest good one; nor
    /// those whose numbers are `needed`, as long as there is room.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed.
    pub fn prune(&mut self, disk: &Disk, keep: usize, needed: &[u32]) -> Result<()> {
        let newest_good = self.records.iter().rev().find(|record| record.is_good());
        let kept_anyway = [
            self.in_force.record,
            newest_good.map(|record| record.number),
        ];
        let mut bytes = 0;
        let newest_first = self.records.iter().rev().enumerate();
        let gone = newest_first.filter_map(|(place, record)| {
            bytes += record.endpoints.get().len();
            let is_beyond = place >= keep && !needed.contains(&record.number);
            let is_gone = is_beyond || bytes > MAX_KEPT;
            (is_gone && !kept_anyway.contains(&Some(record.number))).then_some(record.number)
        });
        let gone: Vec<u32> = gone.collect();
        for number in gone {
            if let Some(record) = self.record(number) {
                let path = self.path(record);
                disk.remove(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
            self.records.retain(|record| record.number != number);
        }
        Ok(())
    }

    /// Moves along what is due after the clock was set: in any case for this process.
    ///
    /// # Errors
    ///
    /// When it cannot be written down.
    pub fn move_by(&mut self, disk: &Disk, step: i64) -> Result<()> {
        self.schedule.move_by(step);
        let mut state = self.in_force.clone();
        for set in &mut state.withdrawn {
            set.move_by(step);
        }
        if let Some(held) = &mut state.held {
            held.since = held.since.moved_by(step);
            held.as_of = held.as_of.moved_by(step);
        }
        let saved = if state == self.in_force {
            Ok(())
        } else {
            self.set_in_force(disk, state)
        };
        self.save_schedule(disk).and(saved)
    }

    /// Writes the schedule.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn save_schedule(&self, disk: &Disk) -> Result<()> {
        let path = self.directory.join("schedule.json");
        disk.write_sealed(&path, &self.schedule)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn write(&self, disk: &Disk, record: &Record) -> Result<()> {
        let path = self.path(record);
        disk.write_sealed(&path, record)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn path(&self, record: &Record) -> PathBuf {
        self.directory
            .join(format!("{:08}-{}.json", record.number, record.name()))
    }
}

fn place(state_directory: &Path, instance: Instance) -> PathBuf {
    state_directory.join("lists").join(instance.name())
}

fn read_records(directory: &Path, instance: Instance, damaged: &mut Vec<String>) -> Vec<Record> {
    let mut records = Vec::new();
    for file in files(directory).unwrap_or_default() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(|first: char| first.is_ascii_digit()) || !name.ends_with(".json") {
            continue;
        }
        match read_sealed::<Record>(&file) {
            Ok(record) if record.instance == instance => records.push(record),
            Ok(_) => damaged.push(format!("{}: it is of another instance", file.display())),
            Err(error) => damaged.push(format!("{}: {error}", file.display())),
        }
    }
    records
}

#[cfg(test)]
mod tests;
