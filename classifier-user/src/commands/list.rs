//! `breakout list`.

use std::path::Path;

use anyhow::Result;

use super::arguments::ConfigArgument;
use super::explain::{live, offline_config};
use super::output::{print_json, table};
use crate::control::ListReport;
use crate::controller::{make_ruleset, offline_indices, read_list, report};
use crate::exit::{Code, WithCode};
use crate::ruleset::Slots;

pub(super) async fn show(config: &ConfigArgument, list: Option<&Path>, json: bool) -> Result<()> {
    let shown = match live(config, list).await? {
        Some(mut client) => client.list().await?,
        None => {
            let config = offline_config(config)?;
            let list = read_list(&config, list)?;
            let indices = offline_indices(&config);
            let ruleset = make_ruleset(&config, &list, &indices, &mut Slots::default());
            report(&indices, &list, &ruleset.code(Code::List)?)
        }
    };
    if json {
        return print_json(&shown);
    }
    print(&shown);
    Ok(())
}

fn print(shown: &ListReport) {
    println!(
        "{} version {} from {}",
        shown.summary.instance,
        shown.summary.version.as_deref().unwrap_or("unknown"),
        shown.summary.source
    );
    println!();
    let mut sets = table(
        &["id", "area", "category", "egress", "ports", "prefixes"],
        &[0],
    );
    for set in &shown.endpoint_sets {
        sets.add_row([
            set.id.to_string(),
            set.service_area.clone(),
            set.category.clone(),
            set.egress.clone().unwrap_or_else(|| "-".to_owned()),
            set.ports.join("\n"),
            set.prefixes.join("\n"),
        ]);
    }
    println!("{sets}");
    for unusable in &shown.unusable {
        println!(
            "not usable: endpoint set {}: {}",
            unusable.id, unusable.problem
        );
    }
}
