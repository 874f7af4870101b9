//! `breakout sysdump`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::arguments::ConfigArgument;
use super::offline::Offline;
use crate::config;
use crate::sysdump::{Case, write};
use crate::timestamp::Timestamp;

pub(super) async fn sysdump(
    config_argument: &ConfigArgument,
    output: Option<&Path>,
    with_clients: bool,
) -> Result<()> {
    let path = config_argument.path();
    // What cannot be used is no reason to have no archive, but often why one is wanted.
    let loaded = config::load(&path);
    let problem = loaded.as_ref().err().map(|error| format!("{error:#}"));
    let config = loaded.unwrap_or_default();
    let offline = Offline::load(config.clone(), None).ok();
    let output = output.map_or_else(default_name, Path::to_owned);
    let case = Case {
        config_path: &path,
        config: &config,
        problem: problem.as_deref(),
        ruleset: offline.as_ref().map(|offline| &offline.ruleset),
    };
    let summary = write(&output, &case, with_clients).await?;
    out!("{}: {} files", output.display(), summary.files.len());
    if let Some(problem) = &problem {
        out!("  the configuration cannot be used, so it is by the defaults: {problem}");
    }
    for missing in &summary.missing {
        out!("  without {missing}");
    }
    if with_clients {
        out!("it has clients' addresses");
    }
    Ok(())
}

fn default_name() -> PathBuf {
    let now = Timestamp::now().to_string().replace([':', '-'], "");
    PathBuf::from(format!("breakout-sysdump-{now}.tar.gz"))
}
