//! Data goes to stdout, messages go to stderr.

use std::io::{IsTerminal, Write, stdout};

use anyhow::{Context, Result};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::{Arguments, Command};
use crate::exit::{Code, WithCode};

/// Sends the program's messages to stderr. `BREAKOUT_LOG` chooses which, as in `BREAKOUT_LOG=debug`.
pub(super) fn start_log(arguments: &Arguments) -> Result<()> {
    let default = match arguments.command {
        Command::Run { .. } => "info,netlink_proto=error",
        _ => "warn",
    };
    let filter = match std::env::var("BREAKOUT_LOG") {
        Ok(chosen) => EnvFilter::builder()
            .parse(&chosen)
            .with_context(|| format!("BREAKOUT_LOG=\"{chosen}\" is no log filter; try debug"))
            .code(Code::Usage)?,
        Err(_) => EnvFilter::new(default),
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        // Whoever read the messages may be gone; that is no reason to stop.
        .log_internal_errors(false)
        .try_init()
        .map_err(anyhow::Error::from_boxed)
        .context("cannot start logging")
}

/// Prints a line. Unlike `println!` it does not panic where nothing can be written, as on a full disk.
macro_rules! out {
    ($($argument:tt)*) => {
        $crate::commands::output::line(format_args!($($argument)*))
    };
}

/// Writes a line for [`out`].
pub(super) fn line(text: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(stdout(), "{text}") {
        eprintln!("breakout: cannot write to stdout: {error}");
        std::process::exit(Code::Failed as i32);
    }
}

/// Prints one JSON document.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(stdout(), "{text}").context("cannot write to stdout")
}

/// A table without lines, whose columns named in `numbers` are aligned to the right.
pub(super) fn table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A number of bytes for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = count as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1 << 40), "1.0 TiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
