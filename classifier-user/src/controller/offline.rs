//! Fetching lists while no controller runs.

use anyhow::Result;

use super::applied::AppliedRulesets;
use super::change::longest_grace;
use super::sources::Sources;
use super::state::StateDirectory;
use crate::config::{Apply, Config};
use crate::control::{FetchReport, Fetching};
use crate::exit::{Code, WithCode};
use crate::links::Links;
use crate::list::{FetchError, Fetched, InForce, Instance, Judge, Kept, with_grace};
use crate::policy::Build;
use crate::timestamp::Timestamp;

/// Looks at the lists' source once and keeps what it has, for the next controller.
///
/// # Errors
///
/// When a controller runs, or the lists are not followed. That the source fails is no error here.
pub async fn fetch(config: &Config) -> Result<FetchReport> {
    let _state = StateDirectory::lock(&config.state.directory)?;
    let mut sources = Sources::open(config, None)?;
    sources.may_be_asked(Timestamp::now())?;
    let instances: Vec<Instance> = sources.kept.iter().map(Kept::instance).collect();
    let own = Links::open().code(Code::System)?.own_networks().await?;
    let judge = Judge::new(&config.list, own);
    let (looked, _) = sources.look(&instances).take().await;
    let mut report = FetchReport {
        instances: Vec::new(),
    };
    for (instance, outcome) in looked {
        let now = Timestamp::now();
        sources.note(instance, outcome.as_ref().map(|_| ()), now);
        report
            .instances
            .push(take_in(config, &mut sources, instance, outcome, &judge)?);
    }
    Ok(report)
}

fn take_in(
    config: &Config,
    sources: &mut Sources,
    instance: Instance,
    outcome: Result<Option<Fetched>, FetchError>,
    judge: &Judge,
) -> Result<Fetching> {
    let now = Timestamp::now();
    let mut fetching = Fetching {
        instance: instance.to_string(),
        outcome: "unchanged".to_owned(),
        version: None,
        fetched: None,
        why: None,
        findings: Vec::new(),
    };
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
                fetching.outcome = "applied".to_owned();
                let preferences = super::offline_preferences(config);
                let build = Build {
                    config,
                    preferences: &preferences,
                };
                let grace = longest_grace(&build.policy().code(Code::Config)?);
                let list = with_grace(&kept.in_force(), record.list()?, now, grace);
                let in_force = InForce {
                    record: Some(record.number),
                    withdrawn: list.withdrawn().cloned().collect(),
                    held: None,
                };
                kept.set_in_force(disk, in_force)?;
                kept.prune(disk, config.list.keep, &needed)?;
            }
        }
    }
    fetching.version = kept.in_force().version;
    Ok(fetching)
}
