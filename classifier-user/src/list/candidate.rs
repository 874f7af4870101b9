//! A list that was fetched, read and judged, before it is kept.

use serde_json::value::RawValue;

use super::{Fetched, Instance, Judge, Judgement, List, ParseError, Record, parse};
use crate::text::decode;

/// Reference that a list is validated against.
#[derive(Clone, Debug)]
pub struct Beside {
    /// The list in force.
    pub in_force: List,
    /// The newest list, if it was refused.
    pub refused: Option<Record>,
}

impl Beside {
    /// Judges the newest list again if it was refused: what it would replace, or what is asked of lists, may be another now. Returns
    /// its number and the judgement if that is another one.
    pub fn judged_again(&self, judge: &Judge) -> Option<(u32, Judgement)> {
        let record = self.refused.as_ref()?;
        let judgement = judge.judge(&self.in_force, &record.list().ok()?);
        let is_another = record.failure.is_none() && judgement != record.judgement;
        is_another.then_some((record.number, judgement))
    }
}

/// A list that was fetched, with all of it that takes long to compute.
#[derive(Debug)]
pub struct Candidate {
    pub(super) list: List,
    pub(super) hash: String,
    pub(super) judgement: Judgement,
    pub(super) agrees_with: Option<String>,
    /// The number of the list that it was judged beside.
    pub(super) beside: Option<u32>,
    pub(super) fetched: Fetched,
    pub(super) endpoints: Box<RawValue>,
}

impl Candidate {
    /// Reads and judges what was fetched.
    ///
    /// # Errors
    ///
    /// When it is no list; gives it back.
    pub fn new(
        fetched: Fetched,
        instance: Instance,
        beside: &Beside,
        judge: &Judge,
    ) -> Result<Self, Box<(ParseError, Fetched)>> {
        let mut list = match parse(&fetched.endpoints, instance, &fetched.source) {
            Ok(list) => list,
            Err(error) => return Err(Box::new((error, fetched))),
        };
        list.version.clone_from(&fetched.version);
        let text = decode(&fetched.endpoints).unwrap_or_default();
        let endpoints = match RawValue::from_string(text.into_owned()) {
            Ok(endpoints) => endpoints,
            Err(error) => {
                let error = ParseError::Json(fetched.source.clone(), error.to_string());
                return Err(Box::new((error, fetched)));
            }
        };
        let judgement = judge.judge(&beside.in_force, &list);
        let refused = beside.refused.as_ref().filter(|_| !judgement.is_passed());
        let agrees = refused.filter(|record| {
            let is_small_step = |before: List| judge.judge(&before, &list).is_passed();
            record.judgement.refusals().eq(judgement.refusals())
                || record.list().is_ok_and(is_small_step)
        });
        Ok(Candidate {
            hash: list.hash(),
            judgement,
            agrees_with: agrees.map(Record::name),
            beside: beside.in_force.record,
            list,
            fetched,
            endpoints,
        })
    }
}
