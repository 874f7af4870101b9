//! Writes what packages have beside the program: man pages and completions. `cargo xtask dist` runs it.
//!
//! `cargo run --package breakout --example pages -- DIRECTORY`

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use breakout::commands::Arguments;
use clap::CommandFactory;
use clap_complete::Shell;

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.context("usage: pages DIRECTORY")?;
    let pages = directory.join("man");
    fs::create_dir_all(&pages)?;
    // `breakout list show` is the page breakout-list-show(1).
    clap_mangen::generate_to(Arguments::command(), &pages)
        .with_context(|| format!("cannot write to {}", pages.display()))?;
    let completions = directory.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut command = Arguments::command();
        clap_complete::generate_to(shell, &mut command, "breakout", &completions)?;
    }
    Ok(())
}
