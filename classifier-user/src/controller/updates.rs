//! Following the lists: what becomes of a look at their source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinError;

use super::Controller;
use super::change::{Cause, Wanted, longest_grace};
use super::faults;
use super::looks::{Done, Sight};
use super::sources::{Looked, Seen};
use crate::config::Apply;
use crate::control::{FetchReport, Fetching, Reloaded, Reply};
use crate::durable::Disk;
use crate::exit::{Code, code_of};
use crate::journal::Who;
use crate::list::{
    Beside, Candidate, FetchError, Fetched, Held, InForce, Instance, Judge, Judgement, Kept,
    ParseError, Record,
};
use crate::timestamp::Timestamp;

impl Controller {
    /// Looks at the source where that is due.
    pub(super) fn look_if_due(&mut self) {
        if self.looks.is_idle() {
            let due = self.sources.due(Timestamp::now());
            if !due.is_empty() {
                self.look(&due, false);
            }
        }
    }

    /// Looks at the source of all instances because an operator asked for it. Those who ask meanwhile get the same answer.
    pub(super) fn look_now(&mut self, reply: Reply<FetchReport>) {
        match self.sources.may_be_asked(Timestamp::now()) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(instances) => {
                self.looks.wait_for(reply);
                if self.looks.is_idle() {
                    self.look(&instances, true);
                }
            }
        }
    }

    fn look(&mut self, instances: &[Instance], is_of_all: bool) {
        let look = self.sources.look(instances);
        self.looks.begin(is_of_all, async move {
            let (looked, seen) = look.take().await;
            Done::Fetched(looked, seen)
        });
    }

    /// Does what a look at the source asks for.
    pub(super) async fn looked(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(Done::Fetched(looked, seen)) => match self.judge().await {
                Ok(judge) => self.judge_beside(judge, looked, seen),
                Err(error) => {
                    tracing::error!("lists cannot be judged: {error:#}");
                    self.looks.abandon(&format!("{error:#}"));
                }
            },
            Ok(Done::Judged(sights, seen)) => self.judged(sights, seen).await,
            Err(error) => {
                tracing::error!("a look at the lists' source failed: {error}");
                self.looks
                    .abandon("the look at the lists' source failed; see the log");
            }
        }
    }

    /// The judge of lists, by the configuration and policy in force.
    async fn judge(&self) -> Result<Judge> {
        let own = self.links.own_networks().await?;
        let policy = self.policy(&self.config)?;
        Ok(Judge::new(&self.config.list, own).steering(Arc::new(move |set| policy.steers(set))))
    }

    /// Reads and judges what was fetched, beside everything else: large lists take seconds.
    fn judge_beside(&mut self, judge: Judge, looked: Looked, seen: Option<Seen>) {
        let beside = |instance: Instance, is_new: bool| {
            let refused = self.sources.kept(instance)?.refused();
            let in_force = self.lists.iter().find(|list| list.instance == instance)?;
            (is_new || refused.is_some()).then(|| Beside {
                in_force: in_force.clone(),
                refused: refused.cloned(),
            })
        };
        let looked: Vec<_> = looked
            .into_iter()
            .map(|(instance, outcome)| {
                let is_new = matches!(outcome, Ok(Some(_)));
                (instance, beside(instance, is_new), outcome)
            })
            .collect();
        self.looks.go_on(move || {
            let sights = looked.into_iter().map(|(instance, beside, outcome)| {
                let sight = outcome.map(|fetched| match (fetched, beside) {
                    (Some(fetched), Some(beside)) => {
                        match Candidate::new(fetched, instance, &beside, &judge) {
                            Ok(candidate) => Sight::New(Box::new(candidate)),
                            Err(unreadable) => Sight::Unreadable(unreadable),
                        }
                    }
                    (_, beside) => {
                        Sight::Unchanged(beside.and_then(|beside| beside.judged_again(&judge)))
                    }
                });
                (instance, sight)
            });
            Done::Judged(sights.collect(), seen)
        });
    }

    async fn judged(
        &mut self,
        sights: Vec<(Instance, Result<Sight, FetchError>)>,
        seen: Option<Seen>,
    ) {
        let mut report = FetchReport {
            instances: Vec::with_capacity(sights.len()),
        };
        let mut is_taken_in = true;
        let mut problem = None;
        for (instance, sight) in sights {
            if let Ok(Sight::Unreadable(unreadable)) = &sight {
                problem = Some(self.unreadable(instance, unreadable));
            }
            let (fetching, is_done) = self.looked_at(instance, sight, problem.clone()).await;
            is_taken_in &= is_done;
            report.instances.push(fetching);
        }
        if is_taken_in {
            // What could not be written down is looked at again.
            self.sources.note_seen(seen.map(|seen| match problem {
                Some(problem) => seen.with_problem(Some(problem)),
                None => seen,
            }));
        }
        for (instance, why) in self.sources.left_alone(Timestamp::now()) {
            let name = instance.to_string();
            if report.instances.iter().all(|other| other.instance != name) {
                let mut fetching = self.fetching(instance);
                fetching.fail(why);
                report.instances.push(fetching);
            }
        }
        if self.looks.end(&report) {
            let instances = self.sources.may_be_asked(Timestamp::now());
            match instances {
                Ok(instances) => self.look(&instances, true),
                Err(error) => self.looks.abandon(&format!("{error:#}")),
            }
        }
    }

    /// Puts what is no list aside.
    fn unreadable(&mut self, instance: Instance, unreadable: &(ParseError, Fetched)) -> FetchError {
        let (error, fetched) = unreadable;
        let reason = match self.sources.kept_mut(instance) {
            Ok((kept, disk)) => format!("{:#}", kept.put_aside(disk, fetched, error)),
            Err(_) => error.to_string(),
        };
        FetchError::Answer {
            url: fetched.source.clone(),
            expected: "a list that can be kept",
            reason,
        }
    }

    fn fetching(&self, instance: Instance) -> Fetching {
        let list = self.lists.iter().find(|list| list.instance == instance);
        Fetching::of(instance, list.and_then(|list| list.version.clone()))
    }

    /// Takes in what was seen of an instance. Returns as well whether nothing stood in the way.
    async fn looked_at(
        &mut self,
        instance: Instance,
        sight: Result<Sight, FetchError>,
        problem: Option<FetchError>,
    ) -> (Fetching, bool) {
        let now = Timestamp::now();
        let mut is_done = true;
        let taken = match sight {
            Err(error) => Err(error),
            Ok(Sight::Unreadable(unreadable)) => Err(problem.unwrap_or(FetchError::Answer {
                url: unreadable.1.source.clone(),
                expected: "a list",
                reason: unreadable.0.to_string(),
            })),
            Ok(Sight::Unchanged(judged_again)) => {
                if let Some((number, judgement)) = judged_again {
                    self.note_judgement(instance, number, judgement);
                }
                Ok(None)
            }
            Ok(Sight::New(candidate)) => match self.take_in(instance, *candidate, now).await {
                Ok(record) => Ok(Some(record)),
                Err(error) => {
                    is_done = false;
                    Err(FetchError::Answer {
                        url: self.sources.name(),
                        expected: "a list that can be kept",
                        reason: format!("{error:#}"),
                    })
                }
            },
        };
        let before = self
            .sources
            .kept(instance)
            .and_then(|kept| kept.schedule.last_error.clone());
        self.sources.note(instance, taken.as_ref().map(|_| ()), now);
        let mut fetching = self.fetching(instance);
        match taken {
            Err(error) => {
                let text = error.to_string();
                if before.as_ref() != Some(&text) {
                    tracing::warn!("list {instance}: {text}; the one in force stays");
                }
                fetching.fail(text);
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
        fetching.version = self.fetching(instance).version;
        (fetching, is_done)
    }

    /// Keeps what was fetched and judged.
    async fn take_in(
        &mut self,
        instance: Instance,
        candidate: Candidate,
        now: Timestamp,
    ) -> Result<Record> {
        let judge = self.judge().await?;
        let (needed, keep) = (self.applied.needed(instance), self.config.list.keep);
        let (kept, disk) = self.sources.kept_mut(instance)?;
        let record = kept.keep(disk, candidate, &judge, now)?.clone();
        kept.prune(disk, keep, &needed)?;
        Ok(record)
    }

    fn note_judgement(&mut self, instance: Instance, number: u32, judgement: Judgement) {
        let Ok((kept, disk)) = self.sources.kept_mut(instance) else {
            return;
        };
        let is_passed = judgement.is_passed();
        match kept.amend(disk, number, |record| record.judgement = judgement) {
            Ok(()) if is_passed => tracing::info!(
                "list {instance}: what was refused passes judgement now, beside the list in force"
            ),
            Ok(()) => {}
            Err(error) => tracing::warn!("{error:#}"),
        }
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
            .apply_record(instance, record.number, grace, None, &cause)
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

    /// Puts a kept list into force, with what it lacks of the one before in its grace time. Later lists wait if it is `held`.
    pub(super) async fn apply_record(
        &mut self,
        instance: Instance,
        number: u32,
        grace: Duration,
        held: Option<Held>,
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
        let (list, in_force) = kept.after(record, now, grace)?;
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
        self.keep_in_force(instance, InForce { held, ..in_force });
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
            // For this process it holds in any case.
            faults::step("note the list in force").or_else(|error| {
                kept.set_in_force(&Disk::failing_after(0), in_force.clone())
                    .map_err(|_| error)
            })?;
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
