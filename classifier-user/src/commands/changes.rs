//! `breakout plan`, `apply`, `reload`, `bypass` and `history`: what changes.

use anyhow::{Context, Result};

use super::output::{print_json, table};
use crate::config::Config;
use crate::control::{Plan, Reloaded, RuleDelta, RulesetDelta};
use crate::journal;

/// Prefixes of one set that are named one by one.
const NAMED: usize = 20;

pub(super) fn print_reloaded(done: &Reloaded, json: bool) -> Result<()> {
    if json {
        return print_json(done);
    }
    out!(
        "generation {} -> {}: {}",
        done.from_generation,
        done.to_generation,
        if done.changed {
            "what is matched or steered has changed"
        } else {
            "the same rules as before"
        },
    );
    for list in &done.lists {
        out!(
            "list {} version {} from {}",
            list.instance,
            list.version.as_deref().unwrap_or("unknown"),
            list.source
        );
    }
    print_delta(&done.delta);
    for note in &done.notes {
        out!("note: {note}");
    }
    Ok(())
}

pub(super) fn print_plan(plan: &Plan, json: bool) -> Result<()> {
    if json {
        return print_json(plan);
    }
    if plan.causes.is_empty() {
        out!("nothing waits: configuration and lists are in force as they are");
    }
    for cause in &plan.causes {
        out!("{cause}");
    }
    if plan.from_hash == plan.to_hash {
        out!("the rules would be the same as now");
        return Ok(());
    }
    print_delta(&plan.delta);
    out!("to put it into force: breakout apply");
    Ok(())
}

fn print_delta(delta: &RulesetDelta) {
    for set in &delta.sets {
        print_set(set);
    }
    for (what, (before, since)) in [
        ("steered IPv4 addresses", delta.steered_v4),
        ("steered IPv6 networks (/64)", delta.steered_v6),
    ] {
        if before != since {
            out!("{what}: {before} -> {since}");
        }
    }
}

fn print_set(set: &RuleDelta) {
    out!("{} {} ({})", set.change, set.set, set.service_area);
    if let Some((before, since)) = &set.category {
        out!("  category  {} -> {}", or_none(before), or_none(since));
    }
    for (what, lists) in [("policy", &set.policy), ("ports", &set.ports)] {
        if let Some((before, since)) = lists {
            out!(
                "  {what:<9} {} -> {}",
                or_none(&before.join("; ")),
                or_none(&since.join("; "))
            );
        }
    }
    for (sign, prefixes) in [("+", &set.added), ("-", &set.removed)] {
        for prefix in prefixes.iter().take(NAMED) {
            out!("  {sign} {prefix}");
        }
        if prefixes.len() > NAMED {
            out!("  {sign} and {} more prefixes", prefixes.len() - NAMED);
        }
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

pub(super) fn history(config: &Config, json: bool, limit: Option<usize>) -> Result<()> {
    let path = journal::path(&config.state.directory);
    let (mut entries, damaged) =
        journal::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let beyond = limit.map_or(0, |limit| entries.len().saturating_sub(limit));
    entries.drain(..beyond);
    if damaged > 0 {
        eprintln!("note: {damaged} lines of {} cannot be read", path.display());
    }
    if json {
        return print_json(&entries);
    }
    let mut lines = table(&["when", "who", "what", "generation", "lists", "why"], &[3]);
    for entry in &entries {
        lines.add_row([
            entry.at.to_string(),
            format!("{:?}", entry.who).to_lowercase(),
            entry.action.clone(),
            format!("{} -> {}", entry.from_generation, entry.to_generation),
            entry.lists.join("\n"),
            entry.why.clone(),
        ]);
    }
    out!("{lines}");
    Ok(())
}
