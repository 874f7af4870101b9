//! `breakout explain`.

use anyhow::{Context as _, Result, anyhow};

use super::arguments::{ConfigArgument, Explain};
use super::offline::{Offline, live, offline_config};
use super::output::print_json;
use crate::config::lan_number;
use crate::control::SetReport;
use crate::exit::{Code, WithCode};
use crate::explain::{Context, Explanation, Query, Source, explain as ask};
use crate::ruleset::compile;

pub(super) async fn explain(config: &ConfigArgument, arguments: &Explain) -> Result<()> {
    let list = arguments.list.as_deref();
    let mut client = live(config, list).await?;
    // By the configuration in force, which may be another one than the file has.
    let lans: Vec<String> = match (&mut client, &arguments.lan) {
        (_, None) => Vec::new(),
        (Some(client), _) => {
            let lans = client.status().await?.lan.into_iter();
            lans.map(|lan| lan.interface).collect()
        }
        (None, _) => {
            let lans = offline_config(config)?.lan.into_iter();
            lans.map(|lan| lan.interface).collect()
        }
    };
    let lan = match &arguments.lan {
        None => 0,
        Some(name) => {
            let number = lans.iter().position(|lan| lan == name);
            let number = number.with_context(|| format!("there is no [[lan]] {name}"));
            u32::from(lan_number(number.code(Code::Config)?))
        }
    };
    let is_v6 = arguments.destination.is_ipv6();
    if let Some(from) = arguments.from.filter(|from| from.is_ipv6() != is_v6) {
        let error = anyhow!(
            "--from {from} is of another address family than {}",
            arguments.destination
        );
        return Err(error).code(Code::Usage);
    }
    let query = Query {
        destination: arguments.destination,
        proto: arguments.proto,
        port: arguments.port,
        from: arguments.from,
        lan,
        vlan: arguments.vlan,
    };
    let answer = match client {
        Some(mut client) => client.explain(query).await?,
        None => answer_offline(&Offline::load(offline_config(config)?, list)?, query)?,
    };
    if arguments.json {
        return print_json(&answer);
    }
    print(&answer);
    Ok(())
}

fn answer_offline(offline: &Offline, query: Query) -> Result<Explanation> {
    let image = compile(&offline.ruleset).code(Code::List)?;
    let context = Context {
        table: image.words(),
        ruleset: &offline.ruleset,
        preferences: &offline.preferences,
        lists: &offline.lists,
        generation: None,
        paths: None,
    };
    Ok(ask(query, &context))
}

/// A set in a line, as in `Worldwide 11 (Skype, Optimize)`.
pub(super) fn set_name(set: &SetReport) -> String {
    match set.id {
        Some(id) => format!(
            "{} {id} ({}, {})",
            set.instance, set.service_area, set.category
        ),
        None => format!("custom {}", set.service_area),
    }
}

fn print(answer: &Explanation) {
    let target = match &answer.egress {
        Some(egress) => format!("steer to egress \"{egress}\""),
        None => "pass: the ordinary path".to_owned(),
    };
    out!(
        "{} {} port {}: {target}",
        format!("{:?}", answer.proto).to_uppercase(),
        answer.destination,
        answer.port
    );
    let line = |name: &str, text: &str| out!("  {name:<13} {text}");
    line(
        "reason",
        &format!("{} ({})", answer.reason, answer.description),
    );
    if let Some(preference) = answer
        .preference
        .as_ref()
        .filter(|text| Some(*text) != answer.egress.as_ref())
    {
        line("preference", preference);
    }
    if let Some(set) = &answer.endpoint_set {
        line("endpoint set", &set_name(set));
        let rule = answer.rule.as_deref();
        let none = if answer.depends_on_client {
            "none of those about it is for this client"
        } else {
            "none is about it"
        };
        line(
            "rule",
            &rule.map_or(none.to_owned(), |rule| format!("\"{rule}\"")),
        );
    }
    if let Some(prefix) = &answer.prefix {
        line("prefix", prefix);
    }
    if let Some(ports) = &answer.ports {
        line("ports", ports);
    }
    if let Some(until) = answer.pending_until {
        line(
            "pending",
            &format!("Microsoft uses the prefix from {until} on"),
        );
    }
    if let Some(since) = answer.withdrawn_since {
        line(
            "withdrawn",
            &format!("no longer published since {since}; kept up for its grace time"),
        );
    }
    if answer.depends_on_client {
        line(
            "client",
            "rules ask who it is: see --from, --lan and --vlan",
        );
    }
    line(
        "list",
        &format!(
            "version {} from {}",
            answer.list_version.as_deref().unwrap_or("unknown"),
            answer.list_source
        ),
    );
    match (answer.source, answer.generation) {
        (Source::Live, Some(generation)) => {
            line(
                "asked",
                &format!("the table in the kernel, generation {generation}"),
            );
        }
        _ => line("asked", "offline"),
    }
}
