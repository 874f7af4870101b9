//! Lists in order through the judge: what would have been in force.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Coverage, Family, Finding, Judge, Judgement, List};

/// Simulated outcome of one list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Simulated {
    /// Source.
    pub source: String,
    /// Its instance.
    pub instance: String,
    /// Its version, where it is known.
    pub version: Option<String>,
    /// `start` for the list that is begun with, `in_force`, `refused` or `unreadable`.
    pub outcome: String,
    /// Reason why it is refused or cannot be read.
    pub why: Option<String>,
    /// Findings about it.
    pub findings: Vec<Finding>,
    /// The refused list before that it agrees with, if so.
    pub agrees_with: Option<String>,
    /// Steered prefixes from then on.
    pub steered: Vec<SteeredFamily>,
}

/// Steered prefixes of one address family, and how they changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SteeredFamily {
    /// `IPv4`, in addresses, or `IPv6`, in networks of 64 bits.
    pub family: String,
    /// Addresses (IPv4) or networks (IPv6) that are steered.
    pub steered: u64,
    /// Those that are newly steered.
    pub added: u64,
    /// Those that are no longer steered.
    pub removed: u64,
}

/// The lists of one instance, as a gateway would follow them.
pub struct Simulation<'a> {
    judge: &'a Judge,
    in_force: Option<List>,
    refused: Option<(List, Judgement)>,
}

impl<'a> Simulation<'a> {
    /// Begins with a list, or with the first one that comes.
    pub fn new(judge: &'a Judge, in_force: Option<List>) -> Self {
        Simulation {
            judge,
            in_force,
            refused: None,
        }
    }

    /// Takes the next list. `loads` says why one cannot be loaded, if so.
    pub fn next(
        &mut self,
        list: List,
        loads: impl FnOnce(&List) -> Result<(), String>,
    ) -> Simulated {
        let mut judgement = self
            .in_force
            .as_ref()
            .map(|before| self.judge.judge(before, &list));
        let may_load = judgement.as_ref().is_none_or(Judgement::is_passed);
        if let Some(Err(why)) = may_load.then(|| loads(&list)) {
            let refused = judgement.get_or_insert_default();
            refused.find(None, true, format!("it cannot be loaded: {why}"));
        }
        let is_passed = judgement.as_ref().is_none_or(Judgement::is_passed);
        let refused = self.refused.as_ref().zip(judgement.as_ref());
        let agrees = refused.filter(|((before, earlier), judgement)| {
            !is_passed
                && (earlier.refusals().eq(judgement.refusals())
                    || self.judge.judge(before, &list).is_passed())
        });
        let agrees_with = agrees.map(|((before, _), _)| before.name());
        let mut simulated = Simulated {
            source: list.source.clone(),
            instance: list.instance.to_string(),
            version: list.version.clone(),
            outcome: match (&judgement, is_passed) {
                (None, _) => "start",
                (_, true) => "in_force",
                (_, false) => "refused",
            }
            .to_owned(),
            why: (judgement.as_ref().filter(|_| !is_passed)).map(Judgement::refusal),
            findings: (judgement.clone()).map_or_else(Vec::new, |judgement| judgement.findings),
            agrees_with,
            steered: Vec::new(),
        };
        let before = self.in_force.clone();
        if is_passed {
            self.refused = None;
            self.in_force = Some(list);
        } else {
            self.refused = judgement.map(|judgement| (list, judgement));
        }
        let after = self.in_force.as_ref();
        simulated.steered = Family::ALL
            .map(|family| self.steered(family, before.as_ref(), after))
            .into();
        simulated
    }

    fn steered(
        &self,
        family: Family,
        before: Option<&List>,
        after: Option<&List>,
    ) -> SteeredFamily {
        let coverage = |list: Option<&List>| {
            let sets = list
                .map(|list| self.judge.steered_sets(list))
                .unwrap_or_default();
            Coverage::of(sets.into_iter().flat_map(|set| &set.prefixes), family)
        };
        let (before, after) = (coverage(before), coverage(after));
        let count = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        let common = before.common(&after);
        SteeredFamily {
            family: family.to_string(),
            steered: count(after.size()),
            added: count(after.size() - common),
            removed: count(before.size() - common),
        }
    }
}
