//! Looks at the lists' source that are being taken, and who waits for them.

use anyhow::anyhow;
use tokio::task::{JoinError, JoinSet};

use super::sources::{Looked, Seen};
use crate::control::{FetchReport, Reply};
use crate::list::{Candidate, FetchError, Fetched, Instance, Judgement, ParseError};

/// Result of a part of a look.
pub(super) enum Done {
    /// The source has answered.
    Fetched(Looked, Option<Seen>),
    /// Its answer was read and validated.
    Judged(Vec<(Instance, Result<Sight, FetchError>)>, Option<Seen>),
}

/// Observation of an instance's list.
pub(super) enum Sight {
    /// There is no other one than before. If that was refused and is judged otherwise now: its number, and how.
    Unchanged(Option<(u32, Judgement)>),
    /// Another list.
    New(Box<Candidate>),
    /// Something else.
    Unreadable(Box<(ParseError, Fetched)>),
}

/// The looks being taken. There is one at a time.
#[derive(Default)]
pub(super) struct Looks {
    parts: JoinSet<Done>,
    /// The operators who wait for a look at everything.
    askers: Vec<Reply<FetchReport>>,
    is_of_all: bool,
}

impl Looks {
    pub(super) fn is_idle(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn has_askers(&self) -> bool {
        !self.askers.is_empty()
    }

    /// Begins a look.
    pub(super) fn begin(
        &mut self,
        is_of_all: bool,
        part: impl Future<Output = Done> + Send + 'static,
    ) {
        self.is_of_all = is_of_all;
        self.parts.spawn(part);
    }

    /// Goes on with one.
    pub(super) fn go_on(&mut self, part: impl FnOnce() -> Done + Send + 'static) {
        self.parts.spawn_blocking(part);
    }

    /// Has somebody wait for the look that is being taken, or for the next one.
    pub(super) fn wait_for(&mut self, asker: Reply<FetchReport>) {
        self.askers.push(asker);
    }

    pub(super) async fn next(&mut self) -> Option<Result<Done, JoinError>> {
        self.parts.join_next().await
    }

    /// Ends a look. Returns whether somebody waits for another one.
    pub(super) fn end(&mut self, report: &FetchReport) -> bool {
        if self.is_of_all {
            for asker in self.askers.drain(..) {
                let _ = asker.send(Ok(report.clone()));
            }
        }
        self.has_askers()
    }

    /// Gives up the look that is being taken.
    pub(super) fn abandon(&mut self, why: &str) {
        self.parts = JoinSet::new();
        for asker in self.askers.drain(..) {
            let _ = asker.send(Err(anyhow!("{why}")));
        }
    }
}
