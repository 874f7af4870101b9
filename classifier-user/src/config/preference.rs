//! Egress preference of a rule: one, several in order, or several with weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Word for the ordinary path in `action`.
pub const PASS: &str = "pass";

/// `action` of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "\"pass\", an egress, egresses in order of preference as in [\"local\", \"lte\"], or with weights as in \
                 { local = 70, lte = 30 }"
)]
pub enum Preference {
    /// One egress, or `pass`.
    One(String),
    /// The first one that works.
    InOrder(Vec<String>),
    /// Clients are shared out among those that work.
    Weighted(BTreeMap<String, u32>),
}

impl Preference {
    /// Returns whether it is the ordinary path.
    pub fn is_pass(&self) -> bool {
        *self == Preference::One(PASS.to_owned())
    }

    /// The egresses that it names, the most preferred one first.
    pub fn egresses(&self) -> Vec<&str> {
        match self {
            Preference::One(name) => vec![name],
            Preference::InOrder(names) => names.iter().map(String::as_str).collect(),
            Preference::Weighted(weights) => {
                let mut weights: Vec<_> = weights.iter().collect();
                weights.sort_by_key(|(name, weight)| (std::cmp::Reverse(**weight), *name));
                weights.into_iter().map(|(name, _)| name.as_str()).collect()
            }
        }
    }

    /// The preference that its text, see [`Display`](fmt::Display), stands for.
    pub fn from_text(text: &str) -> Self {
        if text.contains(" > ") {
            return Preference::InOrder(text.split(" > ").map(str::to_owned).collect());
        }
        let weights = text.split(", ").map(|part| {
            let (name, weight) = part.split_once(' ')?;
            Some((name.to_owned(), weight.parse().ok()?))
        });
        match weights.collect::<Option<BTreeMap<String, u32>>>() {
            Some(weights) => Preference::Weighted(weights),
            None => Preference::One(text.to_owned()),
        }
    }
}

impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Preference::One(name) => f.write_str(name),
            Preference::InOrder(names) => f.write_str(&names.join(" > ")),
            Preference::Weighted(weights) => {
                let parts: Vec<String> = (weights.iter())
                    .map(|(name, weight)| format!("{name} {weight}"))
                    .collect();
                f.write_str(&parts.join(", "))
            }
        }
    }
}

impl JsonSchema for Preference {
    fn schema_name() -> Cow<'static, str> {
        "Preference".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "An egress, egresses in order, or egresses with weights." })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_for_preferences() {
        let weights = BTreeMap::from([("local".to_owned(), 30), ("lte".to_owned(), 70)]);
        for (preference, text, first) in [
            (Preference::One("local".to_owned()), "local", "local"),
            (
                Preference::InOrder(vec!["lte".to_owned(), "local".to_owned()]),
                "lte > local",
                "lte",
            ),
            (Preference::Weighted(weights), "local 30, lte 70", "lte"),
        ] {
            assert_eq!(preference.to_string(), text);
            assert_eq!(Preference::from_text(text), preference);
            assert_eq!(preference.egresses()[0], first);
        }
    }
}
