//! Everything that comes from outside is read without a panic, whatever bytes come. One program for all parsers, because it takes
//! long to link; BREAKOUT_FUZZ names the one that is fed.

#![no_main]

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::LazyLock;

use breakout::config::{self, Config, ListConfig};
use breakout::control::{
    BypassOrder, EventsQuery, EventsReport, FlowsQuery, FlowsReport, ListOrder, Plan, Reloaded,
    Stats, Status,
};
use breakout::controller::offline_preferences;
use breakout::events::Events;
use breakout::explain::{Query, frame};
use breakout::list::{Instance, Judge, Kept, embedded, parse};
use breakout::policy::parse_prefixes;
use breakout::replay::Capture;
use breakout::{journal, links};
use breakout_common::packet::walk;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("list", list),
    ("config", configuration),
    ("custom", custom),
    ("capture", capture),
    ("control", control),
    ("state", state),
    ("netlink", links::read_any),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("BREAKOUT_FUZZ").unwrap_or_default();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    let names = TARGETS.map(|(target, _)| target).join(", ");
    found.unwrap_or_else(|| panic!("BREAKOUT_FUZZ is one of: {names}")).1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));

/// A response of the web service, and what the judge says of it.
fn list(bytes: &[u8]) {
    let Ok(list) = parse(bytes, Instance::Worldwide, "fuzz") else {
        return;
    };
    let judge = Judge::new(&ListConfig::default(), Vec::new());
    let before = embedded(Instance::Worldwide);
    let judgement = judge.judge(&before, &list);
    assert_eq!(judgement.is_passed(), judgement.refusal().is_empty());
    assert!(judge.judge(&list, &list).is_passed() || !judgement.is_passed());
    assert_eq!(list.hash().len(), 64);
}

fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match config::parse(text, "fuzz") {
        Ok(config) => {
            let _ = config.preferences();
            let _ = config.list.instances();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn custom(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(prefixes) = parse_prefixes(text, "fuzz") {
        assert!(prefixes.len() <= text.lines().count());
        assert!(prefixes.iter().all(|prefix| prefix.addr() == prefix.network()));
    }
}

fn capture(bytes: &[u8]) {
    let Ok(mut capture) = Capture::read(Cursor::new(bytes.to_vec())) else {
        return;
    };
    while let Ok(Some(captured)) = capture.packet() {
        let _ = walk(captured.bytes.as_slice());
    }
}

/// Orders, questions and answers on the control socket: what is read is written so that it is read again.
fn control(bytes: &[u8]) {
    fn both_ways<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
        if let Ok(value) = serde_json::from_slice::<T>(bytes) {
            let text = serde_json::to_vec(&value).expect("what was read can be written");
            let again: T = serde_json::from_slice(&text).expect("what was written can be read");
            assert_eq!(serde_json::to_vec(&again).expect("as before"), text);
        }
    }
    both_ways::<BypassOrder>(bytes);
    both_ways::<ListOrder>(bytes);
    both_ways::<EventsQuery>(bytes);
    both_ways::<FlowsQuery>(bytes);
    both_ways::<Status>(bytes);
    both_ways::<Stats>(bytes);
    both_ways::<EventsReport>(bytes);
    both_ways::<FlowsReport>(bytes);
    both_ways::<Reloaded>(bytes);
    both_ways::<Plan>(bytes);
    if let Ok(query) = serde_json::from_slice::<Query>(bytes) {
        let _ = walk(frame(query).as_slice());
    }
}

/// A state directory that somebody has written into.
fn state(bytes: &[u8]) {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
        let place = PathBuf::from("/dev/shm");
        let place = if place.is_dir() { place } else { std::env::temp_dir() };
        let directory = tempfile::Builder::new().prefix("breakout-fuzz-").tempdir_in(place);
        directory.expect("there is room for a file").keep()
    });
    let lists = DIRECTORY.join("lists").join(Instance::Worldwide.name());
    fs::create_dir_all(&lists).expect("there is room for a directory");
    let in_lists = ["in-force.json", "schedule.json", "00000001-2026033100.json"];
    let files = ["state.json", "journal.jsonl", "events.jsonl"].map(|name| DIRECTORY.join(name));
    for file in files.iter().cloned().chain(in_lists.map(|name| lists.join(name))) {
        fs::write(file, bytes).expect("there is room for a file");
    }
    let mut config = Config::default();
    config.state.directory.clone_from(&DIRECTORY);
    let _ = offline_preferences(&config);
    let kept = Kept::read_only(&DIRECTORY, Instance::Worldwide);
    assert!(!kept.in_force().sets.is_empty());
    let _ = journal::read(&journal::path(&DIRECTORY));
    let _ = Events::open(&DIRECTORY).after(0);
}
