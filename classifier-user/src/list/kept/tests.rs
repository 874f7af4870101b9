//! Tests that stored lists survive crashes.

use std::fs;

use super::*;
use crate::config::ListConfig;

const WORLDWIDE: Instance = Instance::Worldwide;

fn fetched(version: &str, prefix: &str) -> Fetched {
    Fetched {
        version: Some(version.to_owned()),
        source: "test".to_owned(),
        query: String::new(),
        endpoints: format!(
            r#"[{{"id":1,"ips":["{prefix}"],"tcpPorts":"443","category":"Optimize","new":1.50}}]"#
        )
        .into_bytes(),
        changes: Vec::new(),
    }
}

fn judge() -> Judge {
    let config = ListConfig {
        max_removed: crate::config::Share::percent(100),
        unknown_networks: crate::config::UnknownNetworks::Allow,
        ..ListConfig::default()
    };
    Judge::new(&config, Vec::new())
}

/// Fetches a list and puts it into force.
fn follow(kept: &mut Kept, disk: &Disk, version: &str, prefix: &str, keep: usize) -> Result<()> {
    let now = Timestamp::from_seconds(1_000);
    let record = kept.add(disk, &fetched(version, prefix), &judge(), now)?;
    let in_force = InForce {
        record: Some(record.number),
        ..InForce::default()
    };
    kept.set_in_force(disk, in_force)?;
    kept.prune(disk, keep, &[])
}

#[test]
fn without_anything_the_built_in_list_is_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    assert_eq!(kept.in_force(), embedded(WORLDWIDE));
    assert_eq!(kept.known_version(""), None);
}

#[test]
fn a_crash_at_every_step_loses_no_good_list() {
    let mut finished = 0;
    for steps in 0..60 {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
        let reliable = Disk::reliable();
        follow(&mut kept, &reliable, "2026010100", "40.0.0.0/16", 2).unwrap();
        follow(&mut kept, &reliable, "2026020100", "41.0.0.0/16", 2).unwrap();
        let disk = Disk::failing_after(steps);
        let done = follow(&mut kept, &disk, "2026030100", "42.0.0.0/16", 2);
        finished += u32::from(done.is_ok());
        let mut again = Kept::open(directory.path(), WORLDWIDE).unwrap();
        assert_eq!(again.damaged(), [""; 0], "{steps}");
        let version = again.in_force().version.unwrap();
        let is_whole = ["2026020100", "2026030100"].contains(&version.as_str());
        assert!(is_whole, "{steps}: {version}");
        assert!(done.is_err() || version == "2026030100", "{steps}");
        // It goes on as if nothing had been.
        follow(&mut again, &reliable, "2026040100", "43.0.0.0/16", 2).unwrap();
        let third = Kept::open(directory.path(), WORLDWIDE).unwrap();
        assert_eq!(third.in_force().version.as_deref(), Some("2026040100"));
        assert!(third.records().len() <= 3, "{steps}");
    }
    assert!(finished > 10, "the steps have been gone through");
}

#[test]
fn a_damaged_list_gives_way_to_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let mut kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    let disk = Disk::reliable();
    for (version, prefix) in [("2026010100", "40.0.0.0/16"), ("2026020100", "41.0.0.0/16")] {
        follow(&mut kept, &disk, version, prefix, 20).unwrap();
    }
    let damage = |name: &str| {
        let path = directory.path().join("lists/Worldwide").join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.replace("/16", "/15")).unwrap();
    };
    damage("00000002-2026020100.json");
    let kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    assert_eq!(kept.in_force().version.as_deref(), Some("2026010100"));
    assert!(
        kept.damaged()[0].contains("damaged"),
        "{:?}",
        kept.damaged()
    );
    damage("00000001-2026010100.json");
    let kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    assert_eq!(kept.in_force(), embedded(WORLDWIDE));
}

#[test]
fn what_was_sent_is_kept_as_it_was_and_can_be_called() {
    let directory = tempfile::tempdir().unwrap();
    let mut kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    let disk = Disk::reliable();
    let sent = fetched("2026010100", "40.0.0.0/16");
    kept.add(&disk, &sent, &judge(), Timestamp::default())
        .unwrap();
    kept.add(&disk, &sent, &judge(), Timestamp::default())
        .unwrap();
    let again = Kept::read_only(directory.path(), WORLDWIDE);
    assert_eq!(again.records().len(), 1, "the same list is kept once");
    let record = again.find("2026010100").unwrap();
    assert_eq!(record.endpoints.get().as_bytes(), sent.endpoints);
    assert_eq!(again.find(&record.hash[..8]).unwrap().number, 1);
    let error = again.find("2025010100").unwrap_err().to_string();
    assert!(error.contains("there are: 2026010100"), "{error}");
    assert_eq!(again.known_version(""), Some("2026010100"));
    assert_eq!(again.known_version("&NoIPv6=true"), None);
}

#[test]
fn a_refused_list_is_kept_but_not_put_into_force() {
    let directory = tempfile::tempdir().unwrap();
    let mut kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    let disk = Disk::reliable();
    follow(&mut kept, &disk, "2026010100", "40.0.0.0/16", 20).unwrap();
    let bad = fetched("2026020100", "10.0.0.0/16");
    let record = kept
        .add(&disk, &bad, &judge(), Timestamp::default())
        .unwrap();
    assert!(!record.is_good());
    assert!(kept.waiting().is_none());
    assert_eq!(kept.refused().map(|record| record.number), Some(2));
    kept.amend(&disk, 2, |record| {
        record.accepted = Some(Timestamp::default());
    })
    .unwrap();
    let again = Kept::open(directory.path(), WORLDWIDE).unwrap();
    assert_eq!(again.waiting().map(|record| record.number), Some(2));
    assert_eq!(again.in_force().version.as_deref(), Some("2026010100"));
}

#[test]
fn a_waiting_list_waits_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::reliable();
    let mut kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    let list = fetched("2026010100", "40.0.0.0/16");
    kept.add(&disk, &list, &judge(), Timestamp::default())
        .unwrap();
    let again = Kept::open(directory.path(), WORLDWIDE).unwrap();
    assert_eq!(again.in_force(), embedded(WORLDWIDE));
    assert_eq!(again.waiting().map(|record| record.number), Some(1));
}

#[test]
fn damage_does_not_bring_back_what_was_gone_back_from() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::reliable();
    let mut kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    for (version, prefix) in [
        ("2026010100", "40.0.0.0/16"),
        ("2026020100", "41.0.0.0/16"),
        ("2026030100", "42.0.0.0/16"),
    ] {
        follow(&mut kept, &disk, version, prefix, 20).unwrap();
    }
    let held = Held {
        since: Timestamp::default(),
        as_of: Timestamp::default(),
    };
    let state = InForce {
        record: Some(2),
        withdrawn: Vec::new(),
        held: Some(held.clone()),
    };
    kept.set_in_force(&disk, state).unwrap();
    let second = directory
        .path()
        .join("lists/Worldwide/00000002-2026020100.json");
    fs::write(second, "{").unwrap();
    let kept = Kept::open(directory.path(), WORLDWIDE).unwrap();
    assert_eq!(kept.in_force().version.as_deref(), Some("2026010100"));
    assert_eq!(kept.state().held, Some(held));
}
