//! Entries of a listing by `nft`: what stands in its JSON, and in its text.

use std::collections::BTreeMap;

use serde_json::Value;

/// Returns whether a flag is among flags, of which `nft` prints one as it is and several in an array.
pub(super) fn names(flags: &Value, flag: &str) -> bool {
    flags == flag
        || flags
            .as_array()
            .is_some_and(|flags| flags.iter().any(|one| one == flag))
}

pub(super) fn expressions(rule: &Value) -> impl Iterator<Item = &Value> {
    rule["expr"].as_array().into_iter().flatten()
}

/// The target of iptables that a statement is, if it is one.
pub(super) fn target_of(statement: &Value) -> Option<&str> {
    let xt = statement.get("xt")?;
    (xt["type"] == "target")
        .then(|| xt["name"].as_str())
        .flatten()
}

pub(super) fn is_drop(statement: &Value) -> bool {
    statement.get("drop").is_some()
        || statement.get("reject").is_some()
        || matches!(target_of(statement), Some("REJECT" | "DROP"))
}

/// Returns whether an expression neither asks nor decides anything.
pub(super) fn is_idle(expression: &Value) -> bool {
    const STATEMENTS: [&str; 9] = [
        "counter",
        "comment",
        "log",
        "mangle",
        "notrack",
        "ct helper",
        "flow",
        "dup",
        "ct timeout",
    ];
    const TARGETS: [&str; 10] = [
        "LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CT", "NOTRACK", "CLASSIFY", "DSCP", "TRACE",
    ];
    STATEMENTS.iter().any(|name| expression.get(name).is_some())
        || target_of(expression).is_some_and(|target| TARGETS.contains(&target))
}

/// Returns what an entry is found by: its family, its table (its own name, of a table), and what has this key.
pub(super) fn key<'a>(entry: &'a Value, name: &str) -> [&'a str; 3] {
    ["family", "table", name].map(|key| entry[key].as_str().unwrap_or_default())
}

/// The rules that `nft -a list ruleset` prints, by family, table and handle.
pub(super) fn texts(listing: &str) -> BTreeMap<(String, String, u64), String> {
    let mut texts = BTreeMap::new();
    let mut table = (String::new(), String::new());
    for line in listing.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("table") {
            let mut word = || words.next().unwrap_or_default().to_owned();
            table = (word(), word());
        } else if let Some((rule, handle)) = line.rsplit_once("# handle ")
            && let Ok(handle) = handle.trim().parse()
            && rule.contains("ct state ")
        {
            let (family, name) = table.clone();
            texts.insert((family, name, handle), rule.trim().to_owned());
        }
    }
    texts
}

pub(super) fn place_of(entry: &Value, chain: &str) -> String {
    key(entry, chain).join(" ")
}
