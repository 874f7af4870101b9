//! `breakout export`.

use std::io::{Write, stdout};

use anyhow::{Context, Result};

use super::arguments::{ConfigArgument, Export};
use super::offline::{Offline, offline_config};
use crate::exit::{Code, WithCode};
use crate::export::{Pac, Source, export as write};

pub(super) fn export(config: &ConfigArgument, arguments: &Export) -> Result<()> {
    let offline = Offline::load(offline_config(config)?, arguments.list.as_deref())?;
    let source = Source {
        config: &offline.config,
        lists: &offline.lists,
        ruleset: &offline.ruleset,
        preferences: &offline.preferences,
        only: &arguments.policy,
    };
    let pac = Pac {
        kind: arguments.pac_type,
        proxy: arguments.proxy.clone(),
    };
    let text = write(&source, arguments.format, &pac).code(Code::Config)?;
    stdout()
        .write_all(text.as_bytes())
        .context("cannot write to stdout")
}
