//! The manual's table of keys, written from the types: with BREAKOUT_WRITE_DOCS=1 this test puts it into the manual, else it
//! fails if the manual has another one.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Config;

const BEGIN: &str = "<!-- keys: written from the types -->\n";
const END: &str = "<!-- end of keys -->";

#[test]
fn the_manual_has_the_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let manual = fs::read_to_string(&path).unwrap();
    let (before, rest) = manual
        .split_once(BEGIN)
        .expect("the manual has a place for the keys");
    let (found, after) = rest.split_once(END).expect("the place has an end");
    let wanted = table();
    if std::env::var_os("BREAKOUT_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(
            found, wanted,
            "write it with: BREAKOUT_WRITE_DOCS=1 cargo test -p breakout manual"
        );
    }
}

fn table() -> String {
    let schema = serde_json::to_value(schemars::schema_for!(Config)).unwrap();
    let mut text = String::from("| key | default | meaning |\n| --- | --- | --- |\n");
    rows(&schema, &schema, "", &mut text);
    text
}

/// A row for each key of an object, those of its sections in their place.
fn rows(root: &Value, object: &Value, prefix: &str, text: &mut String) {
    let required = object["required"].as_array().cloned().unwrap_or_default();
    let properties = object["properties"].as_object().into_iter().flatten();
    for (name, property) in properties {
        let key = format!("{prefix}{name}");
        let value = resolve(root, property);
        if value["properties"].is_object() {
            rows(root, value, &format!("{key}."), text);
        } else if resolve(root, &value["items"])["properties"].is_object() {
            rows(
                root,
                resolve(root, &value["items"]),
                &format!("{key}[]."),
                text,
            );
        } else if resolve(root, &value["additionalProperties"])["properties"].is_object() {
            let section = resolve(root, &value["additionalProperties"]);
            rows(root, section, &format!("{key}.NAME."), text);
        } else {
            let default = match &property["default"] {
                Value::Null if required.contains(&name.as_str().into()) => "required".to_owned(),
                Value::Null => String::new(),
                default => format!("`{default}`"),
            };
            let meaning = property["description"].as_str().unwrap_or_default();
            let meaning = meaning.replace('\n', " ").replace('|', "\\|");
            let _ = writeln!(text, "| `{key}` | {default} | {meaning} |");
        }
    }
}

fn resolve<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    let place = value["$ref"]
        .as_str()
        .and_then(|place| place.strip_prefix('#'));
    place.and_then(|place| root.pointer(place)).unwrap_or(value)
}
