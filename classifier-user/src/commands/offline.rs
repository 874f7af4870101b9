//! Answers without a controller: the configuration, the lists and what the policy makes of them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Result, anyhow};

use super::arguments::ConfigArgument;
use super::connect_beside;
use crate::config::{self, Config};
use crate::control::Client;
use crate::controller::{make_ruleset, offline_preferences, read_lists};
use crate::exit::{Code, WithCode};
use crate::list::{Kept, List, embedded, split_name};
use crate::ruleset::{Ruleset, Slots};
use crate::timestamp::Timestamp;

/// Ruleset that a controller would put into force.
pub(super) struct Offline {
    pub(super) config: Config,
    pub(super) lists: Vec<List>,
    pub(super) preferences: BTreeMap<String, u8>,
    pub(super) ruleset: Ruleset,
}

impl Offline {
    /// From a configuration, and from lists if some are named: a file, a kept version, or the start of a hash.
    pub(super) fn load(config: Config, list: Option<&Path>) -> Result<Self> {
        let lists = match list {
            Some(name) if !name.exists() => named(&config, &name.to_string_lossy())?,
            list => read_lists(&config, list)?,
        };
        let preferences = offline_preferences(&config);
        let (mut slots, now) = (Slots::default(), Timestamp::now());
        Ok(Offline {
            ruleset: make_ruleset(&config, &lists, &preferences, &mut slots, now)?,
            config,
            lists,
            preferences,
        })
    }
}

/// The kept list that is meant by a name.
fn named(config: &Config, name: &str) -> Result<Vec<List>> {
    if name == "builtin" {
        return Ok(config.list.instances().into_iter().map(embedded).collect());
    }
    let (wanted, name) = split_name(name);
    let mut outcome = Err(anyhow!(
        "[list] instance names no {}",
        wanted.map_or_else(|| "instance".to_owned(), |wanted| wanted.to_string())
    ))
    .code(Code::List);
    let instances = config.list.instances().into_iter();
    for instance in instances.filter(|instance| wanted.is_none_or(|wanted| wanted == *instance)) {
        let kept = Kept::read_only(&config.state.directory, instance);
        match kept.find(name) {
            Ok(record) => return Ok(vec![record.list().code(Code::List)?]),
            Err(error) => {
                let error = error.context(format!("there is no file {name}, and"));
                outcome = Err(error).code(Code::List);
            }
        }
    }
    outcome
}

/// The running controller, unless a list was named or none can be asked; then it is said why the answer is offline.
pub(super) async fn live(config: &ConfigArgument, list: Option<&Path>) -> Result<Option<Client>> {
    if list.is_some() {
        return Ok(None);
    }
    if let Some(error) = config.absence() {
        eprintln!(
            "note: {}: {error}; so no controller is asked, and this answer is from the built-in list",
            config.path().display()
        );
        return Ok(None);
    }
    let config = match config::load(&config.path()) {
        Ok(config) => config,
        Err(error) => return connect_beside(config, error).await.map(Some),
    };
    match Client::connect(&config.control.socket).await {
        Ok(client) => Ok(Some(client)),
        Err(error) => {
            eprintln!("note: {error}");
            eprintln!("note: this answer is offline, from the configured list");
            Ok(None)
        }
    }
}

/// The configuration for an offline answer: the defaults, if none is named and there is none for this user in the usual place.
pub(super) fn offline_config(config: &ConfigArgument) -> Result<Config> {
    let Some(error) = config.absence() else {
        return config::load(&config.path()).code(Code::Config);
    };
    if error.kind() == ErrorKind::PermissionDenied {
        eprintln!(
            "note: {}: {error}; this is by the defaults. Name another one with --config, or use sudo",
            config.path().display()
        );
    }
    Ok(Config::default())
}
