//! `breakout sysdump`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::arguments::ConfigArgument;
use super::offline::Offline;
use crate::config;
use crate::exit::{Code, WithCode};
use crate::sysdump::write;
use crate::timestamp::Timestamp;

pub(super) async fn sysdump(
    config_argument: &ConfigArgument,
    output: Option<&Path>,
    with_clients: bool,
) -> Result<()> {
    let path = config_argument.path();
    let config = config::load(&path).code(Code::Config)?;
    // A list that cannot be read is no reason to have no archive.
    let offline = Offline::load(config.clone(), None).ok();
    let output = output.map_or_else(default_name, Path::to_owned);
    let ruleset = offline.as_ref().map(|offline| &offline.ruleset);
    let summary = write(&output, &path, &config, ruleset, with_clients).await?;
    println!("{}: {} files", output.display(), summary.files.len());
    for missing in &summary.missing {
        println!("  without {missing}");
    }
    if with_clients {
        println!("it has clients' addresses");
    }
    Ok(())
}

fn default_name() -> PathBuf {
    let now = Timestamp::now().to_string().replace([':', '-'], "");
    PathBuf::from(format!("breakout-sysdump-{now}.tar.gz"))
}
