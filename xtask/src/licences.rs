//! The licences of what is linked into the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::process::{cargo, output};

/// What files with licences start with, in capitals.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// A text with every crate of other authors, its licence, and the licences' texts, each once.
pub(crate) fn third_party(target: &str) -> Result<String> {
    let mut tree = cargo();
    tree.args([
        "tree",
        "--locked",
        "--package",
        "breakout",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}|{l}",
        "--target",
        target,
    ]);
    let tree = output(&mut tree).context("cargo tree failed")?;
    // Our own have a path behind the version; what was printed before is marked.
    let crates: BTreeSet<&str> = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .filter(|line| !line.contains("(/"))
        .collect();
    let sources = sources()?;
    let mut text = String::from("breakout contains the following works of others.\n\n");
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in crates {
        let (package, licence) = line.split_once('|').context("cargo tree's format")?;
        let package = package.replace(" (proc-macro)", "");
        let (name, version) = package.split_once(" v").context("cargo tree's format")?;
        let _ = writeln!(text, "{name} {version}: {licence}");
        let directory = format!("{name}-{version}");
        let found = sources.iter().map(|source| source.join(&directory));
        for source in found.filter(|source| source.is_dir()) {
            for entry in fs::read_dir(source)?.flatten() {
                let file = entry.file_name().to_string_lossy().to_uppercase();
                if NAMES.iter().any(|start| file.starts_with(start)) && entry.path().is_file() {
                    let licence = String::from_utf8_lossy(&fs::read(entry.path())?)
                        .trim()
                        .to_owned();
                    texts.entry(licence).or_default().push(directory.clone());
                }
            }
        }
    }
    ensure!(
        !texts.is_empty(),
        "no licence was found in cargo's registry"
    );
    for (licence, packages) in texts {
        let _ = write!(
            text,
            "\n{}\n{}\n\n{licence}\n",
            "-".repeat(72),
            packages.join(", ")
        );
    }
    Ok(text)
}

/// Where cargo has unpacked crates.
fn sources() -> Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registry = home
        .context("neither CARGO_HOME nor HOME is set")?
        .join("registry/src");
    let entries =
        fs::read_dir(&registry).with_context(|| format!("cannot read {}", registry.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}
