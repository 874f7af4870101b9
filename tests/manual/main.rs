//! Every block of the manual is used by a test: commands are run, configurations are read.

use std::fs;

use breakout::config::parse;
use breakout_tests::manual::{blocks, root};

const PACKAGE: &str = "tests/package/in-debian.sh";

/// Who runs each block of commands: page, number among the page's blocks of this kind, file. A file names the page and number as
/// they are given here.
const RUN_BY: &[(&str, usize, &str)] = &[
    ("README.md", 1, "xtask/src/test.rs"),
    ("README.md", 2, "xtask/src/test.rs"),
    ("README.md", 3, "xtask/src/test.rs"),
    ("README.md", 4, PACKAGE),
    ("README.md", 5, PACKAGE),
    ("README.md", 6, PACKAGE),
    ("docs/install.md", 1, PACKAGE),
    ("docs/install.md", 2, PACKAGE),
    ("docs/install.md", 3, PACKAGE),
    ("docs/install.md", 4, PACKAGE),
    ("docs/branch-office.md", 1, PACKAGE),
    ("docs/branch-office.md", 2, PACKAGE),
    ("docs/branch-office.md", 3, PACKAGE),
    ("docs/metrics.md", 1, PACKAGE),
    ("docs/configuration.md", 1, PACKAGE),
    ("docs/gateway.md", 1, "tests/kernel/proxies.rs"),
    ("docs/lists.md", 1, "tests/kernel/follow.rs"),
    ("docs/lists.md", 2, "tests/kernel/follow.rs"),
    ("docs/lists.md", 3, "tests/kernel/follow.rs"),
    ("docs/policy.md", 1, "tests/kernel/manual.rs"),
    ("docs/policy.md", 2, "tests/kernel/policy.rs"),
    ("docs/policy.md", 3, "tests/kernel/manual.rs"),
    ("docs/lab.md", 1, "tests/kernel/manual.rs"),
    ("docs/lab.md", 2, "tests/kernel/manual.rs"),
    ("docs/lab.md", 3, "tests/kernel/manual.rs"),
    ("docs/lab.md", 4, "tests/kernel/manual.rs"),
    ("docs/lab.md", 5, "tests/kernel/manual.rs"),
];

/// What takes longer than all tests together.
const NOT_RUN: &[(&str, usize)] = &[("docs/benchmarks.md", 1)];

fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).expect("there is a manual") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages
}

/// The texts of all blocks in a language, with their pages and numbers.
fn all(language: &str) -> Vec<(String, usize, String)> {
    let mut found = Vec::new();
    for page in pages() {
        let of_language = blocks(&page).expect("the page can be read").into_iter();
        let of_language = of_language.filter(|(other, _)| other == language);
        found.extend(
            (1..)
                .zip(of_language)
                .map(|(number, (_, text))| (page.clone(), number, text)),
        );
    }
    found
}

#[test]
fn every_block_of_commands_is_run_by_a_test() {
    let blocks = all("sh");
    assert!(blocks.len() >= RUN_BY.len(), "a block that is run is gone");
    for (page, number, text) in blocks {
        if NOT_RUN.contains(&(page.as_str(), number)) {
            continue;
        }
        let claim = RUN_BY
            .iter()
            .find(|(other, which, _)| *other == page && *which == number);
        let (.., file) =
            claim.unwrap_or_else(|| panic!("nobody runs block {number} of {page}:\n{text}"));
        let source = fs::read_to_string(root().join(file)).expect("the file can be read");
        let is_named = source.contains(&format!("{page} sh {number}"))
            || source.contains(&format!("\"{page}\", \"sh\", {number}"))
            || source.contains(&format!("\"{page}\", {number}"))
            || source.contains(&format!("\"{page}\", \"sh\", number"));
        assert!(is_named, "{file} does not run block {number} of {page}");
    }
}

#[test]
fn there_are_no_blocks_of_other_kinds() {
    for page in pages() {
        for (language, text) in blocks(&page).expect("the page can be read") {
            let is_known = ["sh", "toml", "yaml", "text"].contains(&language.as_str());
            assert!(is_known, "{page}: a block of {language:?}: {text}");
        }
    }
}

/// What stands in a page is added to the smallest configuration where it is none of its own.
#[test]
fn every_configuration_can_be_read() {
    const SMALLEST: &str = "[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n[egress.lte]\ninterface = \"wwan0\"\n";
    let configurations = all("toml");
    assert!(configurations.len() >= 6);
    for (page, number, text) in configurations {
        let whole = if text.contains("[egress.") {
            text.clone()
        } else {
            format!("{text}\n{SMALLEST}")
        };
        if let Err(error) = parse(&whole, &page) {
            panic!("configuration {number} of {page}: {error}");
        }
    }
}
