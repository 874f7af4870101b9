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
    /// Source.
    pub source: String,
    /// Query of the request, beyond the instance.
    pub query: String,
    /// Time.
    pub fetched: Timestamp,
    /// Verdict of the validation.
    pub judgement: Judgement,
    /// The list before, if that was refused as well and this one agrees with it.
    #[serde(default)]
    pub agrees_with: Option<String>,
    /// Reason why it could not be loaded all the same, if so.
    pub failure: Option<String>,
    /// Time at which an operator overruled the validation, if so.
    pub accepted: Option<Timestamp>,
    /// Additions that were announced with it.
    pub pending: Vec<Pending>,
    /// The sets, as they were sent.
    pub endpoints: Box<RawValue>,
}

impl Record {
    /// Returns whether it may be applied.
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && (self.judgement.is_passed() || self.accepted.is_some())
    }

    /// Returns why it may not be applied, in a sentence.
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

    /// Returns whether a person means it by a version, or by the start of a hash.
    pub fn is_called(&self, name: &str) -> bool {
        self.version.as_deref() == Some(name)
            || name.len() >= 6 && self.hash.starts_with(&name.to_ascii_lowercase())
    }

    /// Returns what a person calls it.
    pub fn name(&self) -> String {
        match &self.version {
            Some(version) => version.clone(),
            None => self.hash[..12.min(self.hash.len())].to_owned(),
        }
    }
}
