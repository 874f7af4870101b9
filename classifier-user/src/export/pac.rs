//! Proxy auto-configuration: which hosts a browser reaches directly.
//!
//! The rules are those of Microsoft's script `Get-PacFile`: the hosts of the chosen categories go direct, but for hosts
//! of other categories that only a wildcard of a chosen one covers.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Result, anyhow};

use crate::exit::{Code, WithCode};
use crate::list::{Category, EndpointSet, List};
use crate::plain::plain;

/// Options of a PAC file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pac {
    /// 1: Optimize goes direct. 2: Allow too.
    pub kind: u8,
    /// Proxy for all the rest, as in `PROXY 10.10.10.10:8080`.
    pub proxy: String,
}

impl Pac {
    /// Writes the file.
    ///
    /// # Errors
    ///
    /// When the lists have no host names, as the built-in ones.
    pub(super) fn write(&self, lists: &[List]) -> Result<String> {
        let sets = || lists.iter().flat_map(List::published);
        let is_direct = |set: &&EndpointSet| match set.category {
            Category::Optimize => true,
            Category::Allow => self.kind == 2,
            _ => false,
        };
        let direct: BTreeSet<&str> = hosts(sets().filter(is_direct));
        if direct.is_empty() {
            return Err(anyhow!(
                "the list has no host names, so every host would take the proxy. Fetch it: breakout list fetch"
            ))
            .code(Code::List);
        }
        let others: BTreeSet<&str> = hosts(sets().filter(|set| !is_direct(set)));
        let is_covered = |host: &&str| {
            let mut patterns = direct.iter();
            patterns.any(|pattern| !pattern.eq_ignore_ascii_case(host) && covers(pattern, host))
        };
        let exceptions: BTreeSet<&str> = others.into_iter().filter(is_covered).collect();
        let mut text = String::from("// Written by breakout export.\n");
        for list in lists {
            let _ = writeln!(text, "// List {} from {}", list.name(), plain(&list.source));
        }
        let proxy = literal(&self.proxy);
        text.push_str("function FindProxyForURL(url, host) {\n    var direct = \"DIRECT\";\n");
        let _ = writeln!(
            text,
            "    var proxy = {proxy};\n    host = host.toLowerCase();"
        );
        clause(&mut text, &exceptions, "proxy");
        clause(&mut text, &direct, "direct");
        text.push_str("    return proxy;\n}\n");
        Ok(text)
    }
}

fn hosts<'a>(sets: impl Iterator<Item = &'a EndpointSet>) -> BTreeSet<&'a str> {
    sets.flat_map(|set| set.urls.iter().map(String::as_str))
        .collect()
}

fn clause(text: &mut String, hosts: &BTreeSet<&str>, result: &str) {
    if hosts.is_empty() {
        return;
    }
    let matches: Vec<String> = hosts
        .iter()
        .map(|host| format!("shExpMatch(host, {})", literal(&host.to_ascii_lowercase())))
        .collect();
    let _ = writeln!(
        text,
        "    if ({}) {{\n        return {result};\n    }}",
        matches.join(" ||\n        ")
    );
}

/// A string as every JavaScript engine reads it, the old ones too: ASCII, in quotation marks.
fn literal(text: &str) -> String {
    let mut literal = String::from('"');
    for unit in text.encode_utf16() {
        match u8::try_from(unit).map(char::from) {
            Ok(quoted @ ('"' | '\\')) => literal.extend(['\\', quoted]),
            Ok(shown @ ' '..='~') => literal.push(shown),
            _ => {
                let _ = write!(literal, "\\u{unit:04x}");
            }
        }
    }
    literal + "\""
}

/// Returns whether a shell pattern covers a text, `*` standing for any characters and `?` for one.
fn covers(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut read) = (0, 0);
    // Where the last `*` was, and how much of the text it stands for so far: going back further changes nothing.
    let mut star = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(byte) if *byte == b'?' || byte.eq_ignore_ascii_case(&text[read]) => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((before, stands_for)) = star else {
                    return false;
                };
                star = Some((before, stands_for + 1));
                at = before + 1;
                read = stands_for + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover() {
        for (pattern, text) in [
            ("*", ""),
            ("*.b.c", "a.b.C"),
            ("a*b*c", "aXbcYbc"),
            ("?b", "ab"),
            ("**", "x"),
        ] {
            assert!(covers(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("*.b", ".bc"), ("a", ""), ("?", ""), ("a*a", "a")] {
            assert!(!covers(pattern, text), "{pattern} {text}");
        }
        // Trying every split of the text between the asterisks would not end.
        assert!(!covers(&"*a".repeat(60), &("a".repeat(200) + "b")));
    }
}
