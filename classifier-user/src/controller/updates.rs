//! Following the lists: what becomes of a look at their source.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::oneshot;

use super::Controller;
use super::change::{Cause, Wanted, longest_grace};
use super::sources::Looked;
use crate::config::Apply;
use crate::control::{FetchReport, Fetching, Reloaded, Reply};
use crate::exit::{Code, code_of};
use crate::journal::Who;
use crate::list::{FetchError, Fetched, InForce, Instance, Judge, Kept, Record, with_grace};
use crate::timestamp::Timestamp;

/// A look at the source that was taken.
pub(super) struct Done {
    pub(super) looked: Looked,
    pub(super) seen: Option<(std::time::SystemTime, u64)>,
    /// Who wants to know, if an operator asked for it.
    pub(super) reply: Option<Reply<FetchReport>>,
}

impl Controller {
    /// Looks at the source where that is due.
    pub(super) fn look_if_due(&mut self) {
        if self.looks.is_empty() {
            let due = self.sources.due(Timestamp::now());
            if !due.is_empty() {
                self.look(&due, None);
            }
        }
    }

    /// Looks at the source of all instances because an operator asked for it.
    pub(super) fn look_now(&mut self, reply: Reply<FetchReport>) {
        if let Err(error) = self.sources.may_be_asked(Timestamp::now()) {
            let _ = reply.send(Err(error));
            return;
        }
        let instances: Vec<Instance> = self.sources.kept.iter().map(Kept::instance).collect();
        self.look(&instances, Some(reply));
    }

    fn look(
        &mut self,
        instances: &[Instance],
        reply: Option<oneshot::Sender<Result<FetchReport>>>,
    ) {
        let look = self.sources.look(instances);
        self.looks.spawn(async move {
            let (looked, seen) = look.take().await;
            Done {
                looked,
                seen,
                reply,
            }
        });
    }

    /// Does what a look at the source asks for.
    pub(super) async fn looked(&mut self, done: Done) {
        let mut instances = Vec::with_capacity(done.looked.len());
        for (instance, outcome) in done.looked {
            instances.push(self.looked_at(instance, outcome).await);
        }
        if instances.iter().all(|list| list.outcome != "failed") {
            // What could not be taken in is looked at again.
            self.sources.note_seen(done.seen);
        }
        if let Some(reply) = done.reply {
            let _ = reply.send(Ok(FetchReport { instances }));
        }
    }

    async fn looked_at(
        &mut self,
        instance: Instance,
        outcome: Result<Option<Fetched>, FetchError>,
    ) -> Fetching {
        let now = Timestamp::now();
        let mut fetching = Fetching {
            instance: instance.to_string(),
            outcome: "unchanged".to_owned(),
            version: None,
            fetched: None,
            why: None,
            findings: Vec::new(),
        };
        let taken = match outcome {
            Err(error) => Err(error),
            Ok(None) => Ok(None),
            Ok(Some(fetched)) => match self.take_in(instance, &fetched, now).await {
                Ok(record) => Ok(Some(record)),
                Err(error) => Err(FetchError::Answer {
                    url: fetched.source.clone(),
                    expected: "a list that can be kept",
                    reason: format!("{error:#}"),
                }),
            },
        };
        let before = self
            .sources
            .kept(instance)
            .and_then(|kept| kept.schedule.last_error.clone());
        self.sources.note(instance, taken.as_ref().map(|_| ()), now);
        match taken {
            Err(error) => {
                let text = error.to_string();
                if before.as_ref() != Some(&text) {
                    tracing::warn!("list {instance}: {text}; the one in force stays");
                }
                fetching.outcome = "failed".to_owned();
                fetching.why = Some(text);
            }
            Ok(None) => {
                self.apply_waiting(instance).await;
                if let Some(kept) = self.sources.kept(instance) {
                    fetching.not_applied(kept);
                }
            }
            Ok(Some(record)) => {
                fetching.fetched = Some(record.name());
                fetching.findings.clone_from(&record.judgement.findings);
                (fetching.outcome, fetching.why) = self.judge_and_apply(instance, &record).await;
            }
        }
        let list = self.lists.iter().find(|list| list.instance == instance);
        fetching.version = list.and_then(|list| list.version.clone());
        fetching
    }

    /// Keeps what was fetched, judged.
    async fn take_in(
        &mut self,
        instance: Instance,
        fetched: &Fetched,
        now: Timestamp,
    ) -> Result<Record> {
        let own = self.links.own_networks().await?;
        let judge = Judge::new(&self.config.list, own);
        let (needed, keep) = (self.applied.needed(instance), self.config.list.keep);
        let (kept, disk) = self.sources.kept_mut(instance)?;
        let record = kept.add(disk, fetched, &judge, now)?.clone();
        kept.prune(disk, keep, &needed)?;
        Ok(record)
    }

    /// Applies a list that was kept, unless something speaks against it. Returns what became of it, and why.
    async fn judge_and_apply(
        &mut self,
        instance: Instance,
        record: &Record,
    ) -> (String, Option<String>) {
        let name = record.name();
        let Some(kept) = self.sources.kept(instance) else {
            return ("failed".to_owned(), None);
        };
        let outcome = |outcome: &str, why: String| (outcome.to_owned(), Some(why));
        if kept.state().record == Some(record.number) {
            return ("unchanged".to_owned(), None);
        }
        if !record.is_good() {
            let why = record.refusal();
            tracing::error!(
                "list {instance} {name} is refused, the one in force stays: {why}. Look at it with `breakout list diff`, and \
                 overrule with `breakout list accept {name}`"
            );
            return outcome("refused", why);
        }
        if kept.state().held.is_some() {
            tracing::warn!("list {instance} {name} waits: updates are held since a rollback");
            return outcome(
                "waiting",
                "updates are held since a rollback; see breakout list release".to_owned(),
            );
        }
        if self.config.list.apply == Apply::Manual {
            tracing::warn!("list {instance} {name} waits for `breakout apply`");
            return outcome(
                "waiting",
                "[list] apply = \"manual\"; see breakout plan and breakout apply".to_owned(),
            );
        }
        let cause = Cause {
            who: Who::Service,
            action: "list",
            why: format!("{instance} {name} was published and passed judgement"),
        };
        let grace = match self.grace() {
            Ok(grace) => grace,
            Err(error) => return outcome("waiting", format!("{error:#}")),
        };
        match self
            .apply_record(instance, record.number, grace, &cause)
            .await
        {
            Ok(done) => {
                tracing::info!(
                    "list {instance} {name} is in force: generation {}",
                    done.to_generation
                );
                ("applied".to_owned(), None)
            }
            Err(error) if code_of(&error) != Code::List => {
                // That is not the list's fault, so it is tried again.
                tracing::error!("list {instance} {name} is not in force yet: {error:#}");
                self.retry_later();
                outcome("waiting", format!("{error:#}; it is tried again"))
            }
            Err(error) => {
                let why = format!("it cannot be loaded: {error:#}");
                tracing::error!("list {instance} {name} is not in force: {why}");
                let note = |record: &mut Record| record.failure = Some(why.clone());
                let noted = self.sources.kept_mut(instance);
                if let Err(error) =
                    noted.and_then(|(kept, disk)| kept.amend(disk, record.number, note))
                {
                    tracing::warn!("{error:#}");
                }
                outcome("refused", why)
            }
        }
    }

    /// Tries again to apply a good list that should be in force already, as after a crash or a failure.
    pub(super) async fn apply_waiting(&mut self, instance: Instance) {
        if self
            .retry_at
            .is_some_and(|retry_at| retry_at > Instant::now())
        {
            return;
        }
        let kept = self.sources.kept(instance);
        let waiting = kept.filter(|kept| kept.state().held.is_none());
        let waiting = waiting.and_then(Kept::waiting).cloned();
        if let Some(record) = waiting.filter(|_| self.config.list.apply == Apply::Auto) {
            self.judge_and_apply(instance, &record).await;
        }
    }

    /// Puts a kept list into force, with what it lacks of the one before in its grace time.
    pub(super) async fn apply_record(
        &mut self,
        instance: Instance,
        number: u32,
        grace: Duration,
        cause: &Cause,
    ) -> Result<Reloaded> {
        let now = Timestamp::now();
        let Some((kept, record)) = self
            .sources
            .kept(instance)
            .and_then(|kept| Some((kept, kept.record(number)?)))
        else {
            bail!("list number {number} of {instance} is not kept");
        };
        let mut list = with_grace(&kept.in_force(), record.list()?, now, grace);
        list.record = Some(number);
        let in_force = InForce {
            record: Some(number),
            withdrawn: list.withdrawn().cloned().collect(),
            held: None,
        };
        let mut lists = self.sources.lists();
        for other in &mut lists {
            if other.instance == instance {
                *other = list.clone();
            }
        }
        let wanted = Wanted {
            config: self.config.clone(),
            lists,
            bypass: self.ruleset.bypass,
            as_of: now,
        };
        let done = self.put_into_force(wanted, cause).await?;
        self.keep_in_force(instance, in_force);
        Ok(done)
    }

    /// The longest grace time of any rule in force.
    pub(super) fn grace(&self) -> Result<Duration> {
        Ok(longest_grace(&self.policy(&self.config)?))
    }

    /// Notes which list is in force. The data path is right already, so a full disk is no reason to fail.
    pub(super) fn keep_in_force(&mut self, instance: Instance, in_force: InForce) {
        let needed = self.applied.needed(instance);
        let keep = self.config.list.keep;
        let saved = self.sources.kept_mut(instance).and_then(|(kept, disk)| {
            kept.set_in_force(disk, in_force)?;
            kept.prune(disk, keep, &needed)
        });
        if let Err(error) = saved {
            tracing::warn!("{error:#}; after a restart an earlier list may be in force");
        }
    }

    /// Lets go of what is withdrawn and whose grace time is over.
    pub(super) async fn end_graces(&mut self) -> Result<()> {
        let now = Timestamp::now();
        let is_held = self
            .sources
            .kept
            .iter()
            .any(|kept| kept.state().held.is_some());
        if is_held || !self.has_grace_ended(now)? {
            return Ok(());
        }
        let cause = Cause {
            who: Who::Timer,
            action: "grace",
            why: "the grace time of withdrawn endpoints is over".to_owned(),
        };
        let grace = self.grace()?;
        let mut lists = self.lists.clone();
        for list in &mut lists {
            let lasts = |since: Timestamp| now < since.after(grace);
            list.sets.retain(|set| set.withdrawn.is_none_or(lasts));
        }
        let wanted = Wanted {
            config: self.config.clone(),
            lists,
            bypass: self.ruleset.bypass,
            as_of: now,
        };
        let done = self.put_into_force(wanted, &cause).await?;
        for list in self.lists.clone() {
            if let Some(kept) = self.sources.kept(list.instance) {
                let state = InForce {
                    withdrawn: list.withdrawn().cloned().collect(),
                    ..kept.state().clone()
                };
                self.keep_in_force(list.instance, state);
            }
        }
        tracing::info!("{}: generation {}", cause.why, done.to_generation);
        Ok(())
    }

    fn has_grace_ended(&self, now: Timestamp) -> Result<bool> {
        let withdrawn = || self.lists.iter().flat_map(|list| list.withdrawn());
        if withdrawn().next().is_none() {
            return Ok(false);
        }
        let policy = self.policy(&self.config)?;
        let ends = withdrawn().flat_map(|set| {
            let rules = policy.rules.iter().filter(|rule| rule.is_about(set));
            rules.filter_map(|rule| Some(set.withdrawn?.after(rule.grace)))
        });
        Ok(ends.into_iter().any(|end| self.as_of < end && end <= now))
    }
}
