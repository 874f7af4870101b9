use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::super::Answer;
use super::*;
use crate::control::Stats;
use crate::timestamp::Timestamp;
use crossterm::event::KeyCode;
use serde_json::json;

/// An answer in which `packets` have been steered by Exchange's set, of 100 bytes each.
fn answer(packets: u64) -> Answer {
    let standing = json!({
        "state": "degraded", "standard": true, "media": false, "score": 6.5, "since": Timestamp::now(),
        "why": "2.5 % of the probes are lost", "measure": null,
    });
    let way = json!({"up": true, "gateway": "10.3.0.2", "mac": null, "standing": standing});
    let none = json!({"up": false, "gateway": null, "mac": null, "standing": null});
    let list = json!({
        "instance": "Worldwide", "version": "2026033100", "source": "the web service", "sets": 79, "problems": 0,
        "pending": 0, "withdrawn": 0, "hash": "",
    });
    let status = json!({
        "version": "0.1.0", "pid": 1, "uptime_seconds": 3700, "adopted": false, "config": "", "shadow": false,
        "alerts": ["egress local is degraded for IPv4"], "bypass": null, "list": list, "lists": [list], "follow": [],
        "ruleset": {"generation": 7, "hash": "", "steered_sets": 3, "steered_v4": 18, "steered_v6": 22, "table_bytes": 0},
        "reasons": [], "lan": [], "programs": [],
        "egress": {"local": {
            "interface": "inet", "mode": "route", "masquerade": true, "v4": way, "v6": none, "problem": null,
            "hook": null, "why_tc": null, "mark": "", "table": 5001,
        }},
    });
    let count = json!({"packets": packets, "bytes": packets * 100});
    let mut reason = json!({"reason": "steered", "verdict": "steer", "description": ""});
    let mut set = json!({
        "instance": "Worldwide", "id": 1, "service_area": "Exchange", "category": "Optimize", "egress": "local",
    });
    for value in [&mut reason, &mut set] {
        let counts = count.as_object().unwrap().clone();
        value.as_object_mut().unwrap().extend(counts);
    }
    let stats = json!({
        "generation": 7, "reasons": [reason], "endpoint_sets": [set],
        "replies": {"redirected": {"packets": 0, "bytes": 0}, "by_kernel": {"packets": 0, "bytes": 0}},
    });
    let event = |number: u64| crate::events::Event {
        number,
        at: Timestamp::now(),
        kind: "egress".to_owned(),
        subject: format!("local-{number}"),
        what: "degraded".to_owned(),
        why: "loss".to_owned(),
    };
    Answer {
        status: serde_json::from_value(status).unwrap(),
        stats: serde_json::from_value::<Stats>(stats).unwrap(),
        events: (1..20).map(event).collect(),
    }
}

fn drawn(model: &Model) -> (String, bool) {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(80);
    let text = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
    let has_colours = buffer
        .content()
        .iter()
        .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
    (text.collect::<Vec<_>>().join("\n"), has_colours)
}

#[test]
fn all_of_it_is_on_a_small_terminal() {
    let mut model = Model::new(false);
    model.take_after(answer(1000), 0.0);
    model.take_after(answer(3000), 2.0);
    let (text, has_colours) = drawn(&model);
    for part in [
        "breakout 0.1.0  up 1 h",
        "generation 7",
        "list Worldwide 2026033100 from the web service",
        "not followed",
        "!! egress local is degraded",
        "local (inet)",
        "degraded",
        "6.5",
        "2.5 % of the",
        "1 Exchange Optimize",
        "steered",
        "1000",
        "3000",
        "local-19 degraded: loss",
        "q quit",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!has_colours);
    model.press(KeyCode::Char('b'));
    let (text, _) = drawn(&model);
    assert!(text.contains("BIT/S") && text.contains("800k"), "{text}");
    assert!(!text.contains("local-3 "), "{text}");
    (0..16).for_each(|_| model.press(KeyCode::Up));
    let (text, _) = drawn(&model);
    assert!(text.contains("local-3 "), "{text}");
}

#[test]
fn a_controller_that_goes_away_is_told_of_and_counters_that_start_afresh_are_no_rate() {
    let mut model = Model::new(true);
    model.take_after(answer(1000), 0.0);
    model.fail("no such file".to_owned());
    let (text, has_colours) = drawn(&model);
    assert!(
        text.contains("!! the controller does not answer: no such file"),
        "{text}"
    );
    assert!(has_colours);
    model.take_after(answer(10), 1.0);
    assert_eq!(model.sets[0].packets_per_second, 0.0);
    assert!(!drawn(&model).0.contains("does not answer"));
}

#[test]
fn numbers_are_short() {
    for (value, text) in [
        (0.0, "0"),
        (7.4, "7"),
        (9999.0, "9999"),
        (12_345.0, "12.3k"),
        (1e9, "1000M"),
        (2.5e10, "25.0G"),
    ] {
        assert_eq!(scaled(value), text);
    }
}
