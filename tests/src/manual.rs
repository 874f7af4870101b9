//! The manual's blocks of commands, typed as a reader would.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::daemon::{Site, binary};
use crate::netns::{Namespace, run};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The blocks of a page that have something to run, or to write into a file: language and text, in their order.
///
/// # Errors
///
/// When the page cannot be read.
pub fn blocks(page: &str) -> Result<Vec<(String, String)>> {
    let path = root().join(page);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut blocks = Vec::new();
    let mut open: Option<(String, Vec<&str>)> = None;
    for line in text.lines() {
        let bare = line.trim_start();
        match (&mut open, bare.strip_prefix("```")) {
            (None, Some(language)) => open = Some((language.to_owned(), Vec::new())),
            (Some(_), Some("")) => {
                let (language, lines) = open.take().context("a block is open")?;
                blocks.push((language, lines.join("\n")));
            }
            (Some((_, lines)), _) => lines.push(bare),
            (None, None) => {}
        }
    }
    Ok(blocks)
}

/// A block of a page, by its language and its number among those, from 1 on.
///
/// # Errors
///
/// When there is no such block.
pub fn block(page: &str, language: &str, number: usize) -> Result<String> {
    let blocks = blocks(page)?.into_iter();
    let mut of_language = blocks.filter(|(other, _)| other == language);
    let found = of_language.nth(number - 1);
    let (_, text) = found.with_context(|| format!("{page} has no {language} block {number}"))?;
    Ok(text)
}

/// Runs commands in a namespace and in the site's directory. `breakout` is the one that was built, with the site's configuration.
/// Returns what they print.
///
/// # Errors
///
/// When one of them fails.
pub fn type_in(site: &Site, namespace: &Namespace, commands: &str) -> Result<String> {
    let programs = site.path().join("bin");
    fs::create_dir_all(&programs)?;
    let breakout = programs.join("breakout");
    let script = format!(
        "#!/bin/sh\nexec {} --config {} \"$@\"\n",
        fs::canonicalize(binary()?)?.display(),
        site.config().display()
    );
    fs::write(&breakout, script)?;
    fs::set_permissions(&breakout, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    let mut shell: Command = namespace.command("bash");
    shell
        .args(["-e", "-c", commands])
        .env("PATH", path)
        .current_dir(site.path());
    run(&mut shell)
}
