//! Lists in answers.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::list::{Finding, Instance, Kept, List, Pending, Record};
use crate::timestamp::Timestamp;

/// A list in a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListSummary {
    /// Its instance.
    pub instance: String,
    /// Microsoft's version, where it is known.
    pub version: Option<String>,
    /// Source.
    pub source: String,
    /// Endpoint sets in it.
    pub sets: usize,
    /// The hash of its content.
    pub hash: String,
    /// Number of rows and values in it that cannot be used.
    pub problems: usize,
    /// Parts of earlier lists that are kept up in their grace time.
    pub withdrawn: usize,
    /// Additions that are announced for later.
    pub pending: usize,
}

/// The list in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListReport {
    /// The list of the first instance in a line.
    #[serde(flatten)]
    pub summary: ListSummary,
    /// The lists of all instances.
    pub lists: Vec<ListSummary>,
    /// Their endpoint sets.
    pub endpoint_sets: Vec<ListedSet>,
    /// Rows and values in it that cannot be used.
    pub unusable: Vec<Unusable>,
    /// Additions that are announced for later.
    pub pending_additions: Vec<PendingReport>,
}

/// Additions that are announced for later, and in force already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingReport {
    /// The instance.
    pub instance: String,
    /// Addition, and the time from which it is used.
    #[serde(flatten)]
    pub pending: Pending,
}

impl PendingReport {
    /// Returns what of a list is announced for later.
    pub fn of(list: &List) -> impl Iterator<Item = PendingReport> {
        list.pending_at(Timestamp::now())
            .map(|pending| PendingReport {
                instance: list.instance.to_string(),
                pending: pending.clone(),
            })
    }
}

/// Output of `breakout list pending`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingList {
    /// Additions that are announced for later and already in force.
    pub pending: Vec<PendingReport>,
    /// Sets that are withdrawn and still steered for the grace period.
    pub withdrawn: Vec<ListedSet>,
}

/// A list that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptReport {
    /// The instance.
    pub instance: String,
    /// Its number, which grows with each list of the instance.
    pub number: u32,
    /// Microsoft's version, where it is known.
    pub version: Option<String>,
    /// The hash of its content.
    pub hash: String,
    /// Source.
    pub source: String,
    /// Time.
    pub fetched: Timestamp,
    /// True if it is in force.
    pub in_force: bool,
    /// `passed`, `refused` or `accepted` in spite of the judge.
    pub outcome: String,
    /// Reason why it was refused; null if it does not apply.
    pub why: Option<String>,
    /// Time at which an operator accepted it, if so.
    pub accepted: Option<Timestamp>,
}

impl KeptReport {
    /// Returns what became of a list.
    pub fn of(record: &Record, in_force: bool) -> Self {
        let is_passed = record.failure.is_none() && record.judgement.is_passed();
        let outcome = match (is_passed, record.is_good()) {
            (true, _) => "passed",
            (false, true) => "accepted",
            (false, false) => "refused",
        };
        KeptReport {
            instance: record.instance.to_string(),
            number: record.number,
            version: record.version.clone(),
            hash: record.hash.clone(),
            source: record.source.clone(),
            fetched: record.fetched,
            in_force,
            outcome: outcome.to_owned(),
            why: (!is_passed).then(|| record.refusal()),
            accepted: record.accepted,
        }
    }
}

/// Result of a look at the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FetchReport {
    /// By instance.
    pub instances: Vec<Fetching>,
}

/// Result of a look at the source for an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fetching {
    /// The instance.
    pub instance: String,
    /// `unchanged`, `applied`, `waiting`, `refused` or `failed`.
    pub outcome: String,
    /// The version in force, where it is known.
    pub version: Option<String>,
    /// The version that was fetched, or the start of its hash.
    pub fetched: Option<String>,
    /// Reason for a refusal, wait or failure; null without.
    pub why: Option<String>,
    /// Findings about the list that was fetched.
    pub findings: Vec<Finding>,
}

/// One endpoint set of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListedSet {
    /// Its instance.
    pub instance: Option<String>,
    /// Its id.
    pub id: Option<u32>,
    /// Its service area.
    pub service_area: String,
    /// Its category.
    pub category: String,
    /// Its prefixes.
    pub prefixes: Vec<String>,
    /// Its protocols and ports.
    pub ports: Vec<String>,
    /// The egresses it may be steered to; none where it passes.
    pub egress: Option<String>,
    /// Since when it is withdrawn, if so.
    pub withdrawn: Option<Timestamp>,
}

impl Fetching {
    /// Nothing new of an instance, of which this version is in force.
    pub fn of(instance: Instance, version: Option<String>) -> Self {
        Fetching {
            instance: instance.to_string(),
            outcome: "unchanged".to_owned(),
            version,
            fetched: None,
            why: None,
            findings: Vec::new(),
        }
    }

    /// Notes that the source could not be used.
    pub fn fail(&mut self, why: String) {
        "failed".clone_into(&mut self.outcome);
        self.why = Some(why);
    }

    /// If there is no newer list than the one that is known: whether that is in force.
    pub fn not_applied(&mut self, kept: &Kept) {
        if let Some(record) = kept.refused() {
            "refused".clone_into(&mut self.outcome);
            self.fetched = Some(record.name());
            self.why = Some(record.refusal());
        } else if let Some(record) = kept.waiting() {
            "waiting".clone_into(&mut self.outcome);
            self.fetched = Some(record.name());
        }
    }
}

/// Something in a list that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unusable {
    /// The instance.
    pub instance: String,
    /// The endpoint set's id, if it can be read.
    pub id: Option<u32>,
    /// Message.
    pub problem: String,
}

impl Unusable {
    /// Returns what of a list cannot be used.
    pub fn of(list: &List) -> impl Iterator<Item = Unusable> {
        list.problems.iter().map(|problem| Unusable {
            instance: list.instance.to_string(),
            id: problem.id,
            problem: problem.problem.clone(),
        })
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "endpoint set {} {id}: {}", self.instance, self.problem),
            None => write!(f, "a row of {}: {}", self.instance, self.problem),
        }
    }
}
