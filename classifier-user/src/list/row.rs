//! A row of the list as the web service writes it, or as a mirror or an editor may have left it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

use crate::plain::short;

/// One row. Unknown fields are of no interest; missing, empty and null ones are ordinary.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an endpoint set")]
pub(super) struct Row {
    #[serde(deserialize_with = "id")]
    pub(super) id: u32,
    #[serde(default)]
    pub(super) service_area: Option<String>,
    #[serde(default)]
    pub(super) urls: Option<Vec<String>>,
    #[serde(default)]
    pub(super) ips: Option<Vec<String>>,
    #[serde(default)]
    pub(super) tcp_ports: Option<String>,
    #[serde(default)]
    pub(super) udp_ports: Option<String>,
    #[serde(default)]
    pub(super) express_route: Option<bool>,
    #[serde(default)]
    pub(super) category: Option<String>,
    #[serde(default)]
    pub(super) required: Option<bool>,
}

/// The id of a row that cannot be read as a whole.
pub(super) fn id_of(text: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Id {
        #[serde(deserialize_with = "id")]
        id: u32,
    }
    serde_json::from_str(text).ok().map(|row: Id| row.id)
}

/// Reads an id: a number, also as text or with a zero behind the point.
fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    struct Id;
    impl Visitor<'_> for Id {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an id, a number from 0 to 4294967295")
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<u32, E> {
            u32::try_from(number).map_err(|_| E::custom(format!("{number} is no id")))
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<u32, E> {
            // Display writes whole numbers without a point.
            self.visit_str(&number.to_string())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u32, E> {
            let digits = text.trim();
            let digits = digits.strip_suffix(".0").unwrap_or(digits);
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse().ok().filter(|_| is_number);
            number.ok_or_else(|| E::custom(format!("\"{}\" is no id", short(text, 40))))
        }
    }
    deserializer.deserialize_any(Id)
}
