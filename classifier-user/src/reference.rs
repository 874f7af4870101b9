//! Parts of the manual that are written from the types: the configuration's keys, the commands, reasons and exit codes, and the fields of what
//! `--json` prints. With BREAKOUT_WRITE_DOCS=1 these tests write it, else they fail if the manual has something else.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use breakout_common::verdict::Reason;
use clap::CommandFactory;
use schemars::{JsonSchema, schema_for};
use serde_json::Value;

use crate::addresses::PublicAddress;
use crate::assess::Assessment;
use crate::commands::Arguments;
use crate::commands::check::CheckReport;
use crate::config::Config;
use crate::control::{
    EventsReport, FetchReport, FlowsReport, KeptReport, ListReport, PendingList, Plan, Reloaded,
    Stats, Status,
};
use crate::doctor::Finding;
use crate::exit::Code;
use crate::explain::Explanation;
use crate::journal::Entry;
use crate::list::{ListDelta, Simulated};

const END: &str = "<!-- end of what is written from the types -->";
/// Width of the commands' help in the manual, in characters.
const WIDTH: usize = 110;

#[test]
fn the_manual_has_the_keys() {
    let schema = serde_json::to_value(schema_for!(Config)).unwrap();
    let mut text = String::from("| key | default | meaning |\n| --- | --- | --- |\n");
    rows(&schema, &schema, "", &mut |key, property, is_required| {
        let default = match &property["default"] {
            Value::Null if is_required => "required".to_owned(),
            Value::Null => String::new(),
            // Bits are read in hexadecimal.
            Value::Number(mask) if key.ends_with("_mask") => {
                format!("`{:#x}`", mask.as_u64().unwrap_or_default())
            }
            default => format!("`{default}`"),
        };
        let _ = writeln!(text, "| `{key}` | {default} | {} |", meaning(property));
    });
    is_in_the_manual("configuration.md", "keys", &text);
}

#[test]
fn the_manual_has_the_fields_of_json() {
    let mut text = String::new();
    fields::<Status>(&mut text, "status");
    fields::<Stats>(&mut text, "stats");
    fields::<EventsReport>(&mut text, "events");
    fields::<FlowsReport>(&mut text, "flows");
    fields::<Explanation>(&mut text, "explain");
    fields::<ListReport>(&mut text, "list show");
    fields::<FetchReport>(&mut text, "list fetch");
    fields::<Vec<KeptReport>>(&mut text, "list history");
    fields::<ListDelta>(&mut text, "list diff");
    fields::<Vec<Simulated>>(&mut text, "list simulate");
    fields::<PendingList>(&mut text, "list pending");
    fields::<Plan>(&mut text, "plan");
    fields::<Reloaded>(
        &mut text,
        "reload`, `apply`, `bypass`, `list accept`, `list rollback`, `list release",
    );
    fields::<Vec<Entry>>(&mut text, "history");
    fields::<CheckReport>(&mut text, "check");
    fields::<Vec<Finding>>(&mut text, "doctor");
    fields::<Assessment>(&mut text, "assess");
    fields::<Vec<PublicAddress>>(&mut text, "addresses");
    is_in_the_manual("json.md", "fields", &text);
}

#[test]
fn the_manual_has_the_commands() {
    let mut command = Arguments::command().term_width(WIDTH);
    command.build();
    let (mut overview, mut text) = (
        String::from("| command | |\n| --- | --- |\n"),
        String::new(),
    );
    commands(&command, "breakout", &mut overview, &mut text);
    is_in_the_manual("commands.md", "commands", &format!("{overview}{text}"));
}

/// The commands at the leaves: a line in the overview, and the help.
fn commands(command: &clap::Command, name: &str, overview: &mut String, text: &mut String) {
    let mut parts = command
        .get_subcommands()
        .filter(|part| part.get_name() != "help")
        .peekable();
    if parts.peek().is_none() {
        let about = command.get_about().map(ToString::to_string);
        let anchor = name.replace(' ', "-");
        let about = about.unwrap_or_default();
        let _ = writeln!(overview, "| [`{name}`](#{anchor}) | {about} |");
        let help = command.clone().render_long_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = write!(
            text,
            "\n## {name}\n\n```text\n{}\n```\n",
            lines.join("\n").trim()
        );
    }
    for part in parts {
        commands(part, &format!("{name} {}", part.get_name()), overview, text);
    }
}

#[test]
fn the_manual_has_the_exit_codes() {
    let mut text = String::from("| code | meaning |\n| --- | --- |\n");
    for (code, meaning) in Code::MEANINGS {
        let _ = writeln!(text, "| {code} | {meaning} |");
    }
    is_in_the_manual("configuration.md", "exit codes", &text);
}

#[test]
fn the_manual_has_the_reasons() {
    let mut text = String::from("| reason | verdict | meaning |\n| --- | --- | --- |\n");
    for reason in Reason::ALL {
        let verdict = if reason.is_steer() { "steer" } else { "pass" };
        let _ = writeln!(
            text,
            "| `{}` | {verdict} | {} |",
            reason.name(),
            reason.description()
        );
    }
    is_in_the_manual("configuration.md", "reasons", &text);
}

/// A table of what a command prints.
fn fields<T: JsonSchema>(text: &mut String, command: &str) {
    let schema = serde_json::to_value(schema_for!(T)).unwrap();
    let (object, prefix) = match schema["items"].is_object() {
        true => (resolve(&schema, &schema["items"]), "[]."),
        false => (&schema, ""),
    };
    let _ = write!(
        text,
        "\n## `{command}`\n\n| field | type | meaning |\n| --- | --- | --- |\n"
    );
    rows(&schema, object, prefix, &mut |key, property, _| {
        let kind = kind_of(&schema, property);
        let _ = writeln!(text, "| `{key}` | {kind} | {} |", meaning(property));
    });
}

fn is_in_the_manual(page: &str, part: &str, wanted: &str) {
    let begin = format!("<!-- written from the types: {part} -->\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(page);
    let manual = fs::read_to_string(&path).unwrap();
    let (before, rest) = manual
        .split_once(&begin)
        .expect("the page has a place for it");
    let (found, after) = rest.split_once(END).expect("the place has an end");
    if std::env::var_os("BREAKOUT_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{wanted}{END}{after}")).unwrap();
    } else {
        let known: HashSet<&str> = found.lines().collect();
        let missing: Vec<&str> = wanted
            .lines()
            .filter(|line| !known.contains(line))
            .collect();
        assert!(
            found == wanted,
            "{page} is not what the types say (missing: {missing:#?}); write it with: \
             BREAKOUT_WRITE_DOCS=1 cargo test -p breakout manual -- --test-threads 1"
        );
    }
}

/// Calls `row` for each key of an object, with those of its sections in their place: the key, its schema, and whether it is
/// always there.
fn rows(root: &Value, object: &Value, prefix: &str, row: &mut dyn FnMut(&str, &Value, bool)) {
    let required = object["required"].as_array().cloned().unwrap_or_default();
    let properties = object["properties"].as_object().into_iter().flatten();
    for (name, property) in properties {
        let key = format!("{prefix}{name}");
        let value = resolve(root, property);
        let item = resolve(root, &value["items"]);
        let entry = resolve(root, &value["additionalProperties"]);
        if value["properties"].is_object() {
            rows(root, value, &format!("{key}."), row);
        } else if item["properties"].is_object() {
            rows(root, item, &format!("{key}[]."), row);
        } else if entry["properties"].is_object() {
            rows(root, entry, &format!("{key}.NAME."), row);
        } else {
            row(&key, property, required.contains(&name.as_str().into()));
        }
    }
}

fn meaning(property: &Value) -> String {
    let meaning = property["description"].as_str().unwrap_or_default();
    meaning.replace('\n', " ").replace('|', "\\|")
}

/// Returns what a value may be, in a few words.
fn kind_of(root: &Value, property: &Value) -> String {
    let alternatives = property["anyOf"].as_array().into_iter().flatten();
    let mut alternatives = alternatives.map(|one| &one["type"]);
    if alternatives.any(|kind| kind == "null") {
        return format!("{} or null", kind_of(root, resolve(root, property)));
    }
    let value = resolve(root, property);
    let name = |kind: &Value| match kind.as_str().unwrap_or_default() {
        "integer" | "number" => "number".to_owned(),
        other => other.to_owned(),
    };
    let names: Vec<&str> = value["enum"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let constants = value["oneOf"].as_array().into_iter().flatten();
    let constants = constants.filter_map(|one| one["const"].as_str());
    let words: Vec<String> = names
        .into_iter()
        .chain(constants)
        .map(|word| format!("`{word}`"))
        .collect();
    if !words.is_empty() {
        return words.join(", ");
    }
    match &value["type"] {
        Value::Array(kinds) => {
            let kinds: Vec<String> = kinds.iter().map(name).collect();
            kinds.join(" or ")
        }
        Value::String(kind) if kind == "array" && value["items"].is_object() => {
            format!("array of {}", kind_of(root, &value["items"]))
        }
        Value::Null => {
            let any = value["anyOf"].as_array().into_iter().flatten();
            let any: Vec<String> = any.map(|one| kind_of(root, one)).collect();
            any.join(" or ")
        }
        kind => name(kind),
    }
}

/// Returns what a reference leads to; of something that may be null, what it is otherwise.
fn resolve<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    let place = value["$ref"]
        .as_str()
        .and_then(|place| place.strip_prefix('#'));
    let value = place.and_then(|place| root.pointer(place)).unwrap_or(value);
    let alternatives = value["anyOf"].as_array().into_iter().flatten();
    let mut real = alternatives.filter(|one| one["type"] != "null");
    match (real.next(), real.next()) {
        (Some(only), None) => resolve(root, only),
        _ => value,
    }
}
