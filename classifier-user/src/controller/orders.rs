//! Operators' orders: apply, accept, roll back, release, bypass.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::Controller;
use super::change::{Cause, Waiting, Wanted};
use super::sources::WithWaiting;
use crate::control::{BypassOrder, BypassStatus, ListOrder, Reloaded};
use crate::exit::{Code, WithCode};
use crate::journal::Who;
use crate::list::{Held, InForce, Instance, Kept, Record, split_name};
use crate::timestamp::Timestamp;

impl Controller {
    /// Reads the configuration again and applies the lists that wait, also after a rollback.
    pub(super) async fn apply(&mut self) -> Result<Reloaded> {
        let next = self.next(Waiting::Apply)?;
        let why = match next.causes.as_slice() {
            [] => "the configuration was read again".to_owned(),
            causes => format!("applied by hand: {}", causes.join("; ")),
        };
        let cause = Cause::operator("apply", why);
        let done = self.go_over(next, Timestamp::now(), &cause).await?;
        self.release();
        Ok(done)
    }

    /// Accepts, rolls back or releases.
    pub(super) async fn change_list(&mut self, order: ListOrder) -> Result<Reloaded> {
        if !self.sources.is_followed() {
            return Err(anyhow!(
                "the list is used as it is, from {}; there is nothing to accept or to go back to. Set [list] source to follow \
                 it",
                self.sources.name()
            ))
            .code(Code::List);
        }
        match order {
            ListOrder::Accept { version } => self.accept(&version).await,
            ListOrder::Rollback { version } => self.roll_back(version.as_deref()).await,
            ListOrder::Release => self.release_lists().await,
        }
        .code(Code::List)
    }

    /// Applies the lists that were held.
    async fn release_lists(&mut self) -> Result<Reloaded> {
        let now = Timestamp::now();
        let grace = self.grace()?;
        let WithWaiting {
            lists,
            states,
            names,
        } = self.sources.with_waiting(now, grace)?;
        let mut causes = vec!["updates are no longer held".to_owned()];
        causes.extend(names.iter().map(|name| format!("{name} comes into force")));
        let wanted = Wanted {
            config: self.config.clone(),
            lists,
            bypass: self.ruleset.bypass,
            as_of: now,
        };
        let cause = Cause::operator("release", causes.join("; "));
        let done = self.put_into_force(wanted, &cause).await?;
        for (instance, state) in states {
            self.keep_in_force(instance, state);
        }
        self.release();
        Ok(done)
    }

    /// Applies a list whatever the judge says. If it is older than another good one, that waits.
    async fn accept(&mut self, version: &str) -> Result<Reloaded> {
        let (instance, number) = self.find_record(version)?;
        let kept = self.sources.kept(instance);
        let record = kept.and_then(|kept| kept.record(number));
        let refusal = record.map(Record::refusal);
        let refusal = refusal.filter(|refusal| !refusal.is_empty());
        let why = format!(
            "{instance} {version} was accepted{}",
            refusal.map_or(String::new(), |refusal| format!(" in spite of: {refusal}"))
        );
        let cause = Cause::operator("accept", why);
        let now = Timestamp::now();
        let newest = kept.and_then(|kept| kept.records().iter().rfind(|record| record.is_good()));
        let is_older = newest.is_some_and(|newest| newest.number > number);
        let held = is_older.then_some(Held {
            since: now,
            as_of: now,
        });
        let grace = self.grace()?;
        let mut done = self
            .apply_record(instance, number, grace, held, &cause)
            .await?;
        let (kept, disk) = self.sources.kept_mut(instance)?;
        let noted = kept.amend(disk, number, |record| {
            record.accepted = Some(now);
            record.failure = None;
        });
        if let Err(error) = noted {
            let note = format!("{error:#}; after a restart it may be refused again");
            tracing::warn!("{note}");
            done.notes.push(note);
        }
        if is_older {
            done.notes.push(HELD.to_owned());
        }
        Ok(done)
    }

    /// The kept list that is meant by a name. Where several instances have one, a refused one is meant.
    fn find_record(&self, name: &str) -> Result<(Instance, u32)> {
        let mut missing = anyhow!("no instance in [list] has a list {name}");
        let (instance, name) = split_name(name);
        let mut found = Vec::new();
        let kept = self.sources.kept.iter();
        for kept in kept.filter(|kept| instance.is_none_or(|instance| instance == kept.instance()))
        {
            match kept.find(name) {
                Ok(record) => found.push((record.is_good(), kept.instance(), record.number)),
                Err(error) => missing = error,
            }
        }
        let refused: Vec<_> = found
            .iter()
            .filter(|(is_good, ..)| !is_good)
            .copied()
            .collect();
        match (refused.as_slice(), found.as_slice()) {
            ([(_, instance, number)], _) | ([], [(_, instance, number)]) => {
                Ok((*instance, *number))
            }
            (_, []) => Err(missing),
            _ => bail!("several instances have a list {name}; name one as INSTANCE/{name}"),
        }
    }

    /// Puts an earlier ruleset into force again. Later lists wait until they are released.
    async fn roll_back(&mut self, version: Option<&str>) -> Result<Reloaded> {
        let Some(target) = self.applied.find(version, &self.applied_lists()).cloned() else {
            return match version {
                Some(version) => self.go_to_list(version).await,
                None => bail!("there is no earlier ruleset to go back to"),
            };
        };
        let mut lists = self.sources.lists();
        let mut states = Vec::new();
        for list in &mut lists {
            let earlier = target
                .lists
                .iter()
                .find(|other| other.instance == list.instance);
            let kept = self.sources.kept(list.instance);
            let (Some(earlier), Some(kept)) = (earlier, kept) else {
                continue;
            };
            let state = InForce {
                record: earlier.record,
                withdrawn: earlier.withdrawn.clone(),
                held: Some(Held {
                    since: Timestamp::now(),
                    as_of: target.as_of,
                }),
            };
            let what = || format!("cannot go back to generation {}", target.generation);
            *list = kept.list_of(&state).with_context(what)?;
            if list.hash() != earlier.hash {
                bail!("{}: its list {} is not kept", what(), list.name());
            }
            states.push((list.instance, state));
        }
        let wanted = Wanted {
            config: self.config.clone(),
            lists,
            bypass: self.ruleset.bypass,
            as_of: target.as_of,
        };
        let cause = Cause::operator(
            "rollback",
            format!(
                "back to the ruleset of generation {}, of {}",
                target.generation, target.at
            ),
        );
        let mut done = self.put_into_force(wanted, &cause).await?;
        for (instance, state) in states {
            self.keep_in_force(instance, state);
        }
        if done.to_hash != target.hash {
            done.notes.push(
                "the lists are those of then, but the policy has changed since; it applies as it is now".to_owned(),
            );
        }
        done.notes.push(HELD.to_owned());
        Ok(done)
    }

    /// Goes to a kept list of which no ruleset was ever in force, or is kept no longer.
    async fn go_to_list(&mut self, version: &str) -> Result<Reloaded> {
        let (instance, number) = self.find_record(version)?;
        let record = self
            .sources
            .kept(instance)
            .and_then(|kept| kept.record(number));
        if !record.is_some_and(Record::is_good) {
            bail!(
                "list {instance} {version} was refused; to use it: breakout list accept {version}"
            );
        }
        let cause = Cause::operator("rollback", format!("to list {instance} {version}"));
        // What the list before had beyond it is what is gone back from.
        let now = Timestamp::now();
        let held = Held {
            since: now,
            as_of: now,
        };
        let mut done = self
            .apply_record(instance, number, Duration::ZERO, Some(held), &cause)
            .await?;
        done.notes.push(HELD.to_owned());
        Ok(done)
    }

    /// Ends what a rollback has begun.
    fn release(&mut self) {
        let held: Vec<(Instance, InForce)> = (self.sources.kept.iter())
            .filter(|kept| kept.state().held.is_some())
            .map(|kept: &Kept| {
                let state = InForce {
                    held: None,
                    ..kept.state().clone()
                };
                (kept.instance(), state)
            })
            .collect();
        for (instance, state) in held {
            self.keep_in_force(instance, state);
        }
    }

    /// Switches steering off or on.
    pub(super) async fn bypass(&mut self, order: BypassOrder) -> Result<Reloaded> {
        let now = Timestamp::now();
        let bypass = order.on.then(|| BypassStatus {
            since: self
                .persistent
                .bypass
                .as_ref()
                .map_or(now, |bypass| bypass.since),
            until: order.duration.map(|duration| now.after(duration)),
        });
        let why = match &bypass {
            None => "steering is switched on".to_owned(),
            Some(BypassStatus { until: None, .. }) => {
                "steering is switched off until further notice".to_owned()
            }
            Some(BypassStatus {
                until: Some(until), ..
            }) => format!("steering is switched off until {until}"),
        };
        self.set_bypass(bypass, Cause::operator("bypass", why))
            .await
    }

    /// Switches steering on again if its time has come.
    pub(super) async fn end_bypass(&mut self) -> Result<()> {
        let until = self
            .persistent
            .bypass
            .as_ref()
            .and_then(|bypass| bypass.until);
        if until.is_none_or(|until| Timestamp::now() < until) {
            return Ok(());
        }
        let cause = Cause {
            who: Who::Timer,
            action: "bypass",
            why: "the time of the bypass is over, steering is switched on".to_owned(),
        };
        self.set_bypass(None, cause).await.map(|_| ())
    }

    async fn set_bypass(&mut self, bypass: Option<BypassStatus>, cause: Cause) -> Result<Reloaded> {
        let wanted = Wanted {
            config: self.config.clone(),
            lists: self.lists.clone(),
            bypass: bypass.is_some(),
            as_of: self.as_of,
        };
        // Written down before it is in force: a bypass must survive a crash, and so must its end.
        let before = std::mem::replace(&mut self.persistent.bypass, bypass);
        self.save("after a restart the bypass may be as it was before");
        let mut done = self.put_into_force(wanted, &cause).await;
        match &mut done {
            Ok(done) => {
                done.notes.push(cause.why.clone());
                tracing::warn!("{}: generation {}", cause.why, done.to_generation);
            }
            Err(_) => {
                self.persistent.bypass = before;
                self.save("after a restart the bypass may be another");
            }
        }
        done
    }
}

const HELD: &str = "later lists wait now; `breakout list release` lets them be applied again";
