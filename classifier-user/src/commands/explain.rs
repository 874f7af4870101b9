//! `breakout explain`.

use std::path::Path;

use anyhow::Result;

use super::arguments::{ConfigArgument, Explain};
use super::output::print_json;
use crate::config::{self, Config};
use crate::control::Client;
use crate::controller::{make_ruleset, offline_indices, read_list};
use crate::exit::{Code, WithCode};
use crate::explain::{Context, Explanation, Query, Source, explain as ask};
use crate::ruleset::{Slots, compile};

pub(super) async fn explain(config: &ConfigArgument, arguments: &Explain) -> Result<()> {
    let query = Query {
        destination: arguments.destination,
        proto: arguments.proto,
        port: arguments.port,
    };
    let list = arguments.list.as_deref();
    let answer = match live(config, list).await? {
        Some(mut client) => client.explain(query).await?,
        None => offline(&offline_config(config)?, list, query)?,
    };
    if arguments.json {
        return print_json(&answer);
    }
    print(&answer);
    Ok(())
}

/// The running controller, unless a list was named or none can be asked; then it is said why the answer is offline.
pub(super) async fn live(config: &ConfigArgument, list: Option<&Path>) -> Result<Option<Client>> {
    if list.is_some() {
        return Ok(None);
    }
    if config.is_absent() {
        eprintln!(
            "note: there is no {}, so no controller can be found; this answer is from the built-in list",
            config.path().display()
        );
        return Ok(None);
    }
    let config = config::load(&config.path()).code(Code::Config)?;
    match Client::connect(&config.control.socket).await {
        Ok(client) => Ok(Some(client)),
        Err(error) => {
            eprintln!("note: {error}");
            eprintln!("note: this answer is offline, from the configured list");
            Ok(None)
        }
    }
}

/// The configuration for an offline answer: the defaults, if none is named and none is in the usual place.
pub(super) fn offline_config(config: &ConfigArgument) -> Result<Config> {
    if config.is_absent() {
        return Ok(Config::default());
    }
    config::load(&config.path()).code(Code::Config)
}

fn offline(config: &Config, list: Option<&Path>, query: Query) -> Result<Explanation> {
    let list = read_list(config, list)?;
    let indices = offline_indices(config);
    let ruleset = make_ruleset(config, &list, &indices, &mut Slots::default()).code(Code::List)?;
    let image = compile(&ruleset).code(Code::List)?;
    let context = Context {
        table: image.words(),
        ruleset: &ruleset,
        egresses: &indices,
        list: (list.version.clone(), list.source.clone()),
        generation: None,
        ways_out: None,
    };
    Ok(ask(query, &context))
}

fn print(answer: &Explanation) {
    let target = match &answer.egress {
        Some(egress) => format!("steer to egress \"{egress}\""),
        None => "pass: the ordinary path".to_owned(),
    };
    println!(
        "{} {} port {}: {target}",
        format!("{:?}", answer.proto).to_uppercase(),
        answer.destination,
        answer.port
    );
    println!("  reason        {} ({})", answer.reason, answer.description);
    if let Some(set) = &answer.endpoint_set {
        println!(
            "  endpoint set  {} {} ({}, {})",
            set.instance, set.id, set.service_area, set.category
        );
    }
    if let Some(prefix) = &answer.prefix {
        println!("  prefix        {prefix}");
    }
    if let Some(ports) = &answer.ports {
        println!("  ports         {ports}");
    }
    println!(
        "  list          version {} from {}",
        answer.list_version.as_deref().unwrap_or("unknown"),
        answer.list_source
    );
    match (answer.source, answer.generation) {
        (Source::Live, Some(generation)) => {
            println!("  asked         the table in the kernel, generation {generation}");
        }
        _ => println!("  asked         offline"),
    }
}
