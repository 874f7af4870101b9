//! A list as it is kept: what the service sent, and what became of it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Instance, Judgement, List, ParseError, Pending, parse};
use crate::timestamp::Timestamp;

/// A kept list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its number, which grows with each list of the instance.
    pub number: u32,
    /// The instance.
    pub instance: Instance,
    /// Microsoft's version, where it is known.
    pub version: Option<String>,
    /// The hash of its content; see [`List::hash`].
    pub hash: String,
    /// Where it came from.
    pub source: String,
    /// What it was asked for with, beyond the instance.
    pub query: String,
    /// When.
    pub fetched: Timestamp,
    /// What the judge said.
    pub judgement: Judgement,
    /// The list before, if that was refused as well and this one agrees with it.
    #[serde(default)]
    pub agrees_with: Option<String>,
    /// Why it could not be loaded all the same, if so.
    pub failure: Option<String>,
    /// When an operator overruled the judge, if so.
    pub accepted: Option<Timestamp>,
    /// Additions that were announced with it.
    pub pending: Vec<Pending>,
    /// The sets, as they were sent.
    pub endpoints: Box<RawValue>,
}

impl Record {
    /// Whether it may be applied.
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && (self.judgement.is_passed() || self.accepted.is_some())
    }

    /// Why it may not be applied, in a sentence.
    pub fn refusal(&self) -> String {
        let failure = self.failure.clone();
        failure.unwrap_or_else(|| self.judgement.refusal())
    }

    /// The list.
    ///
    /// # Errors
    ///
    /// When this version of Breakout cannot read it.
    pub fn list(&self) -> Result<List, ParseError> {
        let text = self.endpoints.get().as_bytes();
        let mut list = parse(text, self.instance, &self.source)?;
        list.version.clone_from(&self.version);
        list.fetched = Some(self.fetched);
        list.record = Some(self.number);
        list.pending.clone_from(&self.pending);
        Ok(list)
    }

    /// Whether a person means it by a version, or by the start of a hash.
    pub fn is_called(&self, name: &str) -> bool {
        self.version.as_deref() == Some(name)
            || name.len() >= 6 && self.hash.starts_with(&name.to_ascii_lowercase())
    }

    /// What a person calls it.
    pub fn name(&self) -> String {
        match &self.version {
            Some(version) => version.clone(),
            None => self.hash[..12.min(self.hash.len())].to_owned(),
        }
    }
}
