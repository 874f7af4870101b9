//! Obstacles: what loses steered packets or keeps them from being steered, as `breakout doctor` finds it in the gateway's own firewall and links:
//! looked for at the start, now and then, and when an egress fails; in a task of its own, since `nft` may take long.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::Controller;
use crate::doctor::{Finding, Level, examine_again};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(300);
/// Time that a look may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The findings of the last look, and the look that is being taken.
#[derive(Default)]
pub(super) struct Obstacles {
    running: JoinSet<Result<Vec<Finding>>>,
    next: Option<Instant>,
    /// None before the first look.
    found: Option<Vec<Finding>>,
}

impl Obstacles {
    /// Has a look taken as soon as possible.
    pub(super) fn want_look(&mut self) {
        self.next = None;
    }

    /// Names what loses steered packets.
    pub(super) fn alerts(&self) -> impl Iterator<Item = String> {
        let lost = self.found.iter().flatten();
        lost.filter(|finding| finding.level == Level::Error)
            .map(Finding::to_string)
    }

    /// Waits for a look that was taken. May be dropped at any time without losing it.
    pub(super) async fn found(&mut self) -> Result<Vec<Finding>> {
        match self.running.join_next().await {
            Some(found) => found.unwrap_or_else(|error| Err(anyhow!("{error}"))),
            None => std::future::pending().await,
        }
    }
}

impl Controller {
    /// Begins a look, if it is time for one.
    pub(super) fn look_for_obstacles(&mut self) {
        let now = Instant::now();
        let is_due = self.obstacles.next.is_none_or(|next| now >= next);
        if !is_due || !self.obstacles.running.is_empty() {
            return;
        }
        self.obstacles.next = Some(now + INTERVAL);
        let (config, ruleset) = (self.config.clone(), self.ruleset.clone());
        self.obstacles.running.spawn(async move {
            let examined = timeout(LIMIT, examine_again(&config, &ruleset));
            examined.await?
        });
    }

    /// Takes in what was found, and tells of what is new.
    pub(super) fn found_obstacles(&mut self, found: Result<Vec<Finding>>) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("cannot look for what loses steered packets: {error:#}");
                return;
            }
        };
        // What there was at the start has been told with all that doctor finds.
        let Some(before) = self.obstacles.found.replace(found) else {
            return;
        };
        for finding in self.obstacles.found.iter().flatten() {
            if finding.level > Level::Note && !before.contains(finding) {
                tracing::warn!("{finding}");
                let what = finding.what.clone();
                self.events.note("gateway", "set-up", what, &finding.advice);
            }
        }
    }
}
