//! Fetching lists while no controller runs.

use std::sync::Arc;

use anyhow::Result;

use super::applied::AppliedRulesets;
use super::change::longest_grace;
use super::make_loadable;
use super::sources::Sources;
use super::state::StateDirectory;
use crate::config::{Apply, Config};
use crate::control::{FetchReport, Fetching};
use crate::exit::{Code, WithCode};
use crate::links::Links;
use crate::list::{FetchError, Fetched, Instance, Judge, List};
use crate::policy::{Build, Policy};
use crate::ruleset::Slots;
use crate::timestamp::Timestamp;

/// Looks at the lists' source once and keeps what it has, for the next controller.
///
/// # Errors
///
/// When a controller runs, or the lists are not followed. That the source fails is no error here.
pub async fn fetch(config: &Config) -> Result<FetchReport> {
    let _state = StateDirectory::lock(&config.state.directory)?;
    let mut sources = Sources::open(config, None)?;
    let instances = sources.may_be_asked(Timestamp::now())?;
    let own = Links::open().code(Code::System)?.own_networks().await?;
    let preferences = super::offline_preferences(config);
    let build = Build {
        config,
        preferences: &preferences,
    };
    let policy = Arc::new(build.policy().code(Code::Config)?);
    let steering = Arc::clone(&policy);
    let judge = Judge::new(&config.list, own).steering(Arc::new(move |set| steering.steers(set)));
    let (looked, _) = sources.look(&instances).take().await;
    let mut report = FetchReport {
        instances: Vec::new(),
    };
    for (instance, outcome) in looked {
        let now = Timestamp::now();
        sources.note(instance, outcome.as_ref().map(|_| ()), now);
        report.instances.push(take_in(
            config,
            &mut sources,
            instance,
            outcome,
            &judge,
            &policy,
        )?);
    }
    Ok(report)
}

fn take_in(
    config: &Config,
    sources: &mut Sources,
    instance: Instance,
    outcome: Result<Option<Fetched>, FetchError>,
    judge: &Judge,
    policy: &Policy,
) -> Result<Fetching> {
    let now = Timestamp::now();
    let mut fetching = Fetching::of(instance, None);
    let needed = AppliedRulesets::open(&config.state.directory)?.needed(instance);
    let (kept, disk) = sources.kept_mut(instance)?;
    let fetched = match outcome {
        Err(error) => Some(Err(anyhow::Error::from(error))),
        Ok(None) => None,
        Ok(Some(fetched)) => Some(kept.add(disk, &fetched, judge, now).cloned()),
    };
    match fetched {
        None => fetching.not_applied(kept),
        Some(Err(error)) => {
            fetching.outcome = "failed".to_owned();
            fetching.why = Some(format!("{error:#}"));
        }
        Some(Ok(record)) => {
            fetching.fetched = Some(record.name());
            fetching.findings.clone_from(&record.judgement.findings);
            let is_in_force = kept.state().record == Some(record.number);
            let waits = kept.state().held.is_some() || config.list.apply == Apply::Manual;
            if !record.is_good() {
                fetching.outcome = "refused".to_owned();
                fetching.why = Some(record.judgement.refusal());
            } else if waits && !is_in_force {
                fetching.outcome = "waiting".to_owned();
            } else if !is_in_force {
                let (list, state) = kept.after(&record, now, longest_grace(policy))?;
                match loads(config, sources, list) {
                    Ok(()) => {
                        fetching.outcome = "applied".to_owned();
                        let (kept, disk) = sources.kept_mut(instance)?;
                        kept.set_in_force(disk, state)?;
                    }
                    Err(error) => {
                        let why = format!("it cannot be loaded: {error:#}");
                        fetching.outcome = "refused".to_owned();
                        fetching.why = Some(why.clone());
                        let (kept, disk) = sources.kept_mut(instance)?;
                        kept.amend(disk, record.number, |record| record.failure = Some(why))?;
                    }
                }
            }
        }
    }
    let (kept, disk) = sources.kept_mut(instance)?;
    kept.prune(disk, config.list.keep, &needed)?;
    fetching.version = kept.in_force().version;
    Ok(fetching)
}

/// Fails if the lists cannot be loaded with this one among them.
fn loads(config: &Config, sources: &Sources, list: List) -> Result<()> {
    let mut lists = sources.lists();
    for other in lists
        .iter_mut()
        .filter(|other| other.instance == list.instance)
    {
        *other = list.clone();
    }
    let preferences = super::offline_preferences(config);
    let mut slots = Slots::default();
    make_loadable(config, &lists, &preferences, &mut slots, Timestamp::now())?;
    Ok(())
}
