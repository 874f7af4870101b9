//! `breakout doctor`.

use anyhow::{Result, anyhow};

use super::arguments::ConfigArgument;
use super::offline::Offline;
use super::output::print_json;
use crate::config;
use crate::doctor::{Finding, Level, examine};
use crate::exit::{Code, WithCode, coded};

pub(super) async fn doctor(config: &ConfigArgument, json: bool) -> Result<()> {
    let offline = Offline::load(config::load(&config.path()).code(Code::Config)?, None)?;
    let findings = examine(&offline.config, &offline.ruleset)
        .await
        .code(Code::System)?;
    if json {
        print_json(&findings)?;
    } else if findings.is_empty() {
        out!("nothing found that stands in the way");
    } else {
        findings.iter().for_each(print);
    }
    match findings.first() {
        Some(worst) if worst.level >= Level::Warning => {
            Err(coded(anyhow!("{}", worst.what), Code::Attention))
        }
        _ => Ok(()),
    }
}

pub(super) fn print(finding: &Finding) {
    let level = match finding.level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Note => "note",
    };
    out!("{level}: {}", finding.what);
    out!("    {}", finding.advice);
}
