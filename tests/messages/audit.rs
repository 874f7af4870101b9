//! Every message of an error stands in a test that provokes it, or in `unprovoked.txt` with what keeps tests from it.

use std::fs;
use std::path::Path;

use breakout_tests::manual::root;

/// What messages come behind.
const MAKERS: [&str; 7] = [
    "bail!(",
    "anyhow!(",
    "ensure!(",
    "#[error(",
    ".context(",
    "context(|| format!(",
    "context(|| {",
];
/// How much of a message tells it from others.
const TELLING: usize = 10;
/// How many characters on end of a longer one a test has to look for.
const LOOKED_FOR: usize = 25;

/// A message in the sources: where it stands, and the parts of it that are always the same.
struct Message {
    place: String,
    parts: Vec<String>,
}

/// All Rust sources below a directory, with their paths.
fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).expect("the directory can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source is text");
            found.push((path.to_string_lossy().into_owned(), text));
        }
    }
}

/// The next string literal, and what comes behind it.
fn literal(text: &str) -> Option<(String, &str)> {
    let mut chars = text
        .char_indices()
        .skip_while(|(_, c)| *c != '"')
        .skip(1)
        .peekable();
    let mut literal = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((literal, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                // The line goes on behind the white space of the next one.
                '\n' => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                'n' => literal.push('\n'),
                escaped => literal.push(escaped),
            },
            c => literal.push(c),
        }
    }
    None
}

/// What stands between the placeholders of a format string.
fn parts(message: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let (mut part, mut depth) = (String::new(), 0);
    for c in message.chars() {
        match c {
            '{' => {
                depth += 1;
                parts.push(std::mem::take(&mut part));
            }
            '}' => depth -= 1,
            c if depth == 0 => part.push(c),
            _ => {}
        }
    }
    parts.push(part);
    parts.retain(|part| part.trim().len() >= TELLING);
    parts
        .iter()
        .map(|part| part.trim_matches([' ', ':', '\n']).to_owned())
        .collect()
}

fn messages(path: &str, text: &str) -> Vec<Message> {
    let mut found = Vec::new();
    for maker in MAKERS {
        let mut rest = text;
        while let Some(at) = rest.find(maker) {
            rest = &rest[at + maker.len()..];
            // A statement later it is no message of this one.
            let end = rest.find(';').unwrap_or(rest.len());
            let Some((message, _)) = literal(&rest[..end]) else {
                continue;
            };
            let parts = parts(&message);
            if !parts.is_empty() {
                let line = text[..text.len() - rest.len()].lines().count();
                found.push(Message {
                    place: format!("{path}:{line}"),
                    parts,
                });
            }
        }
    }
    found
}

/// Returns whether the tests look for a part of a message, or for so much of it that no other one is meant.
fn is_looked_for(part: &str, tests: &str) -> bool {
    if part.len() <= LOOKED_FOR || !part.is_ascii() {
        return tests.contains(part);
    }
    (0..=part.len() - LOOKED_FOR).any(|at| tests.contains(&part[at..at + LOOKED_FOR]))
}

#[test]
fn every_message_is_provoked_or_listed() {
    let mut all = Vec::new();
    sources(&root().join("classifier-user/src"), &mut all);
    let (mut tests, mut found) = (String::new(), Vec::new());
    for (path, text) in &all {
        let is_test = path.ends_with("tests.rs") || path.ends_with("reference.rs");
        let (code, test) = match text.split_once("#[cfg(test)]\nmod tests {") {
            _ if is_test => ("", text.as_str()),
            Some(both) => both,
            None => (text.as_str(), ""),
        };
        tests.push_str(test);
        found.extend(messages(path, code));
    }
    let mut others = Vec::new();
    for place in [
        "tests/kernel",
        "tests/service",
        "tests/messages",
        "tests/exported",
    ] {
        sources(&root().join(place), &mut others);
    }
    for (path, text) in others {
        if !path.ends_with("audit.rs") {
            tests.push_str(&text);
        }
    }
    tests.push_str(&fs::read_to_string(root().join("xtask/src/test.rs")).expect("a source"));
    // In tests they stand as literals too.
    let tests = tests.replace("\\\"", "\"");
    let listed = include_str!("unprovoked.txt");
    let listed: Vec<(&str, &str)> = listed
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(" | ").expect("a message and a reason"))
        .collect();
    assert!(
        found.len() > 150,
        "only {} messages were found",
        found.len()
    );
    let is_provoked =
        |message: &Message| message.parts.iter().any(|part| is_looked_for(part, &tests));
    let is_listed = |message: &Message| {
        listed
            .iter()
            .any(|(part, _)| message.parts.iter().any(|own| own.starts_with(part)))
    };
    let missing: Vec<String> = found
        .iter()
        .filter(|message| !is_provoked(message) && !is_listed(message))
        .map(|message| format!("{}: {}", message.place, message.parts.join(" ... ")))
        .collect();
    assert!(
        missing.is_empty(),
        "{} messages:\n{}",
        missing.len(),
        missing.join("\n")
    );
    for (part, reason) in &listed {
        let is_there = found
            .iter()
            .any(|message| message.parts.iter().any(|own| own.starts_with(part)));
        assert!(
            is_there && !reason.is_empty(),
            "listed, but no message: {part}"
        );
        assert!(!is_looked_for(part, &tests), "listed, but provoked: {part}");
    }
}
