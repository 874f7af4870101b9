//! Proxy auto-configuration: which hosts a browser reaches directly.
//!
//! The rules are those of Microsoft's script `Get-PacFile`: the hosts of the chosen categories go direct, but for hosts
//! of other categories that only a wildcard of a chosen one covers.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Result, anyhow};

use crate::exit::{Code, WithCode};
use crate::list::{Category, EndpointSet, List};

/// How a PAC file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pac {
    /// 1: Optimize goes direct. 2: Allow too.
    pub kind: u8,
    /// What all the rest takes, as in `PROXY 10.10.10.10:8080`.
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
            let _ = writeln!(text, "// List {} from {}", list.name(), list.source);
        }
        let proxy = self.proxy.replace('\\', "\\\\").replace('"', "\\\"");
        text.push_str("function FindProxyForURL(url, host) {\n    var direct = \"DIRECT\";\n");
        let _ = writeln!(
            text,
            "    var proxy = \"{proxy}\";\n    host = host.toLowerCase();"
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
        .map(|host| format!("shExpMatch(host, {:?})", host.to_ascii_lowercase()))
        .collect();
    let _ = writeln!(
        text,
        "    if ({}) {{\n        return {result};\n    }}",
        matches.join(" ||\n        ")
    );
}

/// Whether a shell pattern covers a text, `*` standing for any characters and `?` for one.
fn covers(pattern: &str, text: &str) -> bool {
    fn rest(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', others @ ..], _) => (0..=text.len()).any(|skip| rest(others, &text[skip..])),
            ([b'?', others @ ..], [_, behind @ ..]) => rest(others, behind),
            ([first, others @ ..], [one, behind @ ..]) => {
                first.eq_ignore_ascii_case(one) && rest(others, behind)
            }
            _ => false,
        }
    }
    rest(pattern.as_bytes(), text.as_bytes())
}
