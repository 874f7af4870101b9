//! `breakout addresses`.

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;

use super::arguments::AddressesArguments;
use super::output::{print_json, table};
use crate::addresses::{KnownBy, Ledger, PublicAddress, export, objection, path};
use crate::config::Config;
use crate::timestamp::Timestamp;

pub(super) fn addresses(config: &Config, arguments: &AddressesArguments) -> Result<()> {
    let directory = &config.state.directory;
    let ledger = Ledger::read(directory)
        .with_context(|| format!("cannot read {}", path(directory).display()))?;
    let now = Timestamp::now();
    let entries = ledger.entries();
    let why_not =
        |entry: &PublicAddress| objection(entries, entry, config.egress.get(&entry.egress), now);
    if let Some(format) = arguments.format {
        let (good, bad): (Vec<_>, Vec<_>) =
            entries.iter().partition(|entry| why_not(entry).is_none());
        for entry in bad {
            let why = why_not(entry).unwrap_or_default();
            eprintln!(
                "note: {} of {} is left out: {why}",
                entry.address, entry.egress
            );
        }
        let mut ranges: Vec<IpNet> = good
            .into_iter()
            .map(|entry| IpNet::from(entry.address))
            .collect();
        ranges.sort_unstable();
        ranges.dedup();
        let text = export(format, &arguments.site, arguments.trusted, &ranges)
            .map_err(|why| anyhow!(why))?;
        out!("{}", text.trim_end());
        return Ok(());
    }
    if arguments.json {
        return print_json(&entries);
    }
    if entries.is_empty() {
        eprintln!(
            "note: no public address is known yet; an egress needs a probe stun:HOST (beside the others, as docs/identity.md has it), or a public address itself"
        );
        return Ok(());
    }
    let mut rows = table(
        &[
            "egress",
            "address",
            "known by",
            "first seen",
            "last seen",
            "register",
        ],
        &[],
    );
    for entry in entries {
        rows.add_row([
            entry.egress.clone(),
            entry.address.to_string(),
            match entry.known_by {
                KnownBy::Stun => "STUN",
                KnownBy::Interface => "interface",
            }
            .to_owned(),
            entry.first.to_string(),
            entry.last.to_string(),
            why_not(entry).map_or_else(|| "yes".to_owned(), |why| format!("no: {why}")),
        ]);
    }
    out!("{rows}");
    Ok(())
}
