//! `breakout assess`.

use anyhow::{Result, anyhow};

use super::arguments::{AssessArguments, ConfigArgument};
use super::connect_to;
use super::output::{print_json, table};
use crate::assess::{Assessment, Options, Outcome, Verdict, assess as measure};
use crate::config;
use crate::controller::require_privileges;
use crate::exit::{Code, WithCode, coded};

pub(super) async fn assess(config: &ConfigArgument, arguments: &AssessArguments) -> Result<()> {
    require_privileges().code(Code::Permission)?;
    let config = config::load(&config.path()).code(Code::Config)?;
    let status = connect_to(&config).await?.status().await?;
    let options = Options {
        egress: arguments.egress.clone(),
        call: arguments.call,
        idle: arguments.idle,
        loads_metered: arguments.load_metered,
    };
    let assessment = measure(&config, &status, &options, |what| eprintln!("... {what}"))
        .await
        .code(Code::System)?;
    if arguments.json {
        print_json(&assessment)?;
    } else {
        print(&assessment);
    }
    let failed = assessment
        .results
        .iter()
        .find(|outcome| outcome.verdict == Verdict::Fail);
    match failed {
        Some(worst) => Err(coded(
            anyhow!("{}: {}: {}", worst.path, worst.test.title(), worst.found),
            Code::Attention,
        )),
        None => Ok(()),
    }
}

fn print(assessment: &Assessment) {
    let mut rows = table(
        &["path", "test", "target", "measured", "limit", "verdict"],
        &[],
    );
    for outcome in &assessment.results {
        rows.add_row([
            outcome.path.to_string(),
            outcome.test.title().to_owned(),
            outcome.target.clone().unwrap_or_else(|| "-".to_owned()),
            outcome.found.clone(),
            limit(outcome),
            verdict(outcome.verdict).to_owned(),
        ]);
    }
    out!("{rows}");
    for score in &assessment.scores {
        out!(
            "{}: {} {:.0} of 100 points",
            score.path,
            score.service,
            score.points
        );
    }
    let mut told = Vec::new();
    for outcome in &assessment.results {
        if let Some(advice) = outcome
            .advice
            .as_ref()
            .filter(|advice| !told.contains(advice))
        {
            told.push(advice);
            out!("{}: {}", outcome.test.title(), advice);
        }
    }
}

fn limit(outcome: &Outcome) -> String {
    let limits = outcome.measured.and(outcome.test.limits());
    limits.map_or(String::new(), |limits| {
        format!("{} {}", limits.warning, limits.unit)
    })
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Skipped => "-",
        Verdict::Pass => "pass",
        Verdict::Warning => "WARNING",
        Verdict::Fail => "FAIL",
    }
}
