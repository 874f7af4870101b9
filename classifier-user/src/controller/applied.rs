//! The rulesets that were in force: which lists they were made of, so that they can be made again.
//!
//! ```text
//! rulesets/0000000012-2be4a1f0c3d5-2026033100.json   generation, hash, versions of the lists
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::durable::{Disk, create_directory, files, is_full, read_sealed, remove_unfinished};
use crate::journal::Who;
use crate::list::{EndpointSet, Instance};
use crate::timestamp::Timestamp;

/// A ruleset that was put into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    /// Its first generation.
    pub(super) generation: u32,
    /// Its hash.
    pub(super) hash: String,
    /// Time of activation.
    pub(super) at: Timestamp,
    /// The time that grace times were reckoned from.
    pub(super) as_of: Timestamp,
    /// Originator of the activation.
    pub(super) who: Who,
    /// Reason.
    pub(super) why: String,
    /// The lists.
    pub(super) lists: Vec<AppliedList>,
    /// Each endpoint set with what the policy said about it, for people.
    pub(super) rules: Vec<String>,
}

/// A list of a ruleset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AppliedList {
    /// The instance.
    pub(super) instance: Instance,
    /// The number of the kept list; none for the built-in one, and for one that is used as it is.
    pub(super) record: Option<u32>,
    /// Its version, where it is known.
    pub(super) version: Option<String>,
    /// The hash of its content.
    pub(super) hash: String,
    /// Sets of earlier lists that were still steered.
    pub(super) withdrawn: Vec<EndpointSet>,
}

impl Applied {
    /// Returns whether a person means it by the version of a list, or by the start of a list's or its own hash.
    pub(super) fn is_called(&self, name: &str) -> bool {
        let starts = |hash: &str| name.len() >= 6 && hash.starts_with(&name.to_ascii_lowercase());
        let is_version = |list: &AppliedList| list.version.as_deref() == Some(name);
        starts(&self.hash) || (self.lists.iter()).any(|list| is_version(list) || starts(&list.hash))
    }
}

/// The kept rulesets of a state directory.
pub(super) struct AppliedRulesets {
    directory: PathBuf,
    /// The oldest first.
    all: Vec<Applied>,
}

impl AppliedRulesets {
    /// Opens what is kept, and makes place for it. What is damaged is left out.
    pub(super) fn open(state_directory: &Path) -> Result<Self> {
        let directory = state_directory.join("rulesets");
        match create_directory(&directory) {
            Err(error) if is_full(&error) => {
                tracing::warn!("cannot make the directory {}: {error}", directory.display());
                let all = Vec::new();
                return Ok(AppliedRulesets { directory, all });
            }
            made => {
                made.with_context(|| format!("cannot make the directory {}", directory.display()))?;
            }
        }
        remove_unfinished(&directory);
        let mut all: Vec<Applied> = Vec::new();
        for file in files(&directory)? {
            match read_sealed(&file) {
                Ok(applied) => all.push(applied),
                Err(error) => tracing::warn!("{}: {error}", file.display()),
            }
        }
        all.sort_by_key(|applied| (applied.at, applied.generation));
        Ok(AppliedRulesets { directory, all })
    }

    /// The newest ruleset that is meant by `name`, or without a name the newest one of other lists than these.
    pub(super) fn find(&self, name: Option<&str>, current: &[AppliedList]) -> Option<&Applied> {
        let mut newest_first = self.all.iter().rev();
        match name {
            Some(name) => newest_first.find(|applied| applied.is_called(name)),
            // The same list may have been fetched twice, and have two numbers.
            None => newest_first.find(|applied| !is_same(&applied.lists, current)),
        }
    }

    /// The numbers of the kept lists of an instance that are needed to go back to any of the rulesets.
    pub(super) fn needed(&self, instance: Instance) -> Vec<u32> {
        let lists = self.all.iter().flat_map(|applied| &applied.lists);
        let of_instance = lists.filter(|list| list.instance == instance);
        of_instance.filter_map(|list| list.record).collect()
    }

    /// Keeps a ruleset that was put into force, and lets go of those beyond the newest `keep`. One that is the newest already is not
    /// kept again.
    pub(super) fn add(&mut self, disk: &Disk, applied: Applied, keep: usize) -> Result<()> {
        if self
            .all
            .last()
            .is_some_and(|last| last.hash == applied.hash && last.lists == applied.lists)
        {
            return Ok(());
        }
        let path = self.path(&applied);
        disk.write_sealed(&path, &applied)
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.all.push(applied);
        while self.all.len() > keep {
            let oldest = self.all.remove(0);
            disk.remove(&self.path(&oldest))?;
        }
        Ok(())
    }

    fn path(&self, applied: &Applied) -> PathBuf {
        let hash = applied.hash.get(..12).unwrap_or(&applied.hash);
        // A list of other versions may make the same ruleset.
        let versions: Vec<&str> = (applied.lists.iter())
            .map(|list| list.version.as_deref().unwrap_or("unknown"))
            .collect();
        self.directory.join(format!(
            "{:010}-{hash}-{}.json",
            applied.generation,
            versions.join("-")
        ))
    }
}

/// Tells whether lists say the same, whatever their numbers.
fn is_same(lists: &[AppliedList], others: &[AppliedList]) -> bool {
    let content = |list: &AppliedList| AppliedList {
        record: None,
        ..list.clone()
    };
    lists.iter().map(content).eq(others.iter().map(content))
}
