//! Days from which additions are used, by `/changes`.

use serde::Deserialize;

use super::Pending;
use crate::timestamp::Timestamp;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    endpoint_set_id: u32,
    add: Option<Add>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Add {
    effective_date: Option<String>,
    #[serde(default)]
    ips: Option<Vec<String>>,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

/// The additions in an answer of `/changes` whose day is still to come. What cannot be understood there is of no account:
/// the list itself is the truth.
pub fn pending(text: &[u8], now: Timestamp) -> Vec<Pending> {
    let rows: Vec<serde_json::Value> = serde_json::from_slice(text).unwrap_or_default();
    let changes = rows
        .into_iter()
        .filter_map(|row| Change::deserialize(row).ok());
    let pending = changes.filter_map(|change| {
        let add = change.add?;
        let effective = Timestamp::from_day(&add.effective_date?)?;
        let added = [add.ips, add.urls]
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        (effective > now).then_some(Pending {
            id: change.endpoint_set_id,
            added,
            effective,
        })
    });
    pending.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_are_pending_until_their_day() {
        let text = br#"[
            {"id":1,"endpointSetId":11,"disposition":"Change","version":"2026033100",
             "add":{"effectiveDate":"20260501","ips":["52.112.0.0/14"]}},
            {"id":2,"endpointSetId":33,"disposition":"Change","remove":{"ips":["65.55.127.0/24"]}},
            {"id":3,"endpointSetId":"odd"},
            {"id":4,"endpointSetId":46,"add":{"urls":["*.office.com"]}}]"#;
        let before = Timestamp::from_day("20260401").unwrap();
        let found = pending(text, before);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].id, found[0].added[0].as_str()),
            (11, "52.112.0.0/14")
        );
        assert_eq!(pending(text, Timestamp::from_day("20260501").unwrap()), []);
        assert_eq!(pending(b"<html>", before), []);
    }
}
