//! Reading the configuration file, with errors that name the line and what was probably meant.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Config;
use super::validate::validate;
use crate::memory;

/// Memory that a byte of the file takes, where it is one of a long array of prefixes: up to the table in the kernel.
const MEMORY_PER_BYTE: u64 = 40;

/// Error that makes a configuration unusable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {error}. Name another with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The file is no valid TOML, or has a key or value that means nothing.
    #[error("{name}:{line}: {message}")]
    Parse {
        /// The file.
        name: String,
        /// The line of the mistake, from 1 on.
        line: usize,
        /// Message, with the nearest key there is.
        message: String,
    },
    /// The values contradict each other or the world.
    #[error("{name}: {message}")]
    Invalid {
        /// The file.
        name: String,
        /// Message.
        message: String,
    },
}

/// Reads and checks a configuration file. Relative paths in it are relative to its directory.
///
/// # Errors
///
/// See [`ConfigError`].
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let read_error = |error| ConfigError::Read {
        path: path.to_owned(),
        error,
    };
    let length = fs::metadata(path).map_err(read_error)?.len();
    memory::require(length * MEMORY_PER_BYTE, || path.display().to_string())
        .map_err(|error| read_error(io::Error::other(format!("{error:#}"))))?;
    let text = fs::read_to_string(path).map_err(read_error)?;
    let mut config = parse(&text, &path.display().to_string())?;
    let absolute = std::path::absolute(path).map_err(read_error)?;
    config.resolve_paths(absolute.parent().unwrap_or(Path::new("/")));
    Ok(config)
}

/// Parses and checks a configuration. `name` says in errors where the text came from.
///
/// # Errors
///
/// [`ConfigError::Parse`] and [`ConfigError::Invalid`].
pub fn parse(text: &str, name: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        ConfigError::Parse {
            name: name.to_owned(),
            line: before.matches('\n').count() + 1,
            message: with_near_match(error.message()),
        }
    })?;
    validate(&config).map_err(|message| ConfigError::Invalid {
        name: name.to_owned(),
        message,
    })?;
    Ok(config)
}

/// Returns what can be read of a configuration file that is broken elsewhere: where its controller listens, and where that keeps what; by
/// default otherwise.
pub fn places_of(path: &Path) -> Config {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut config = Config::default();
    if let Some(socket) = value_in(&text, "control", "socket") {
        config.control.socket = socket.into();
    }
    if let Some(directory) = value_in(&text, "state", "directory") {
        config.state.directory = directory.into();
    }
    if let Ok(absolute) = std::path::absolute(path) {
        config.resolve_paths(absolute.parent().unwrap_or(Path::new("/")));
    }
    config
}

/// A value of a section. Only that section has to be well written.
fn value_in(text: &str, section: &str, key: &str) -> Option<String> {
    let section = text.split(&format!("[{section}]")).nth(1)?;
    let end = section.find("\n[").unwrap_or(section.len());
    let section: toml::Table = toml::from_str(&section[..end]).ok()?;
    section.get(key)?.as_str().map(str::to_owned)
}

/// Turns serde's "unknown field `x`, expected one of ..." into a question about the nearest one.
fn with_near_match(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (Some((unknown, known)), true) = (quoted.split_first(), message.starts_with("unknown"))
    else {
        return message.to_owned();
    };
    let kind = if message.starts_with("unknown field") {
        "key"
    } else {
        "value"
    };
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(unknown, candidate), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().max(4) / 2);
    let hint = match nearest {
        Some((_, candidate)) => format!("did you mean \"{candidate}\"?"),
        None => format!("there are: {}", known.join(", ")),
    };
    format!("unknown {kind} \"{unknown}\"; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    const SMALLEST: &str = r#"
[list]
instance = "worldwide"

[[lan]]
interface = "lan"

[egress.local]
interface = "inet"
gateway = "10.3.0.2"
gateway6 = "fd00:3::2"
mode = "route"
"#;

    fn message(text: &str) -> String {
        parse(text, "breakout.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_smallest_configuration_is_enough() {
        let config = parse(SMALLEST, "breakout.toml").unwrap();
        assert_eq!(config.egress["local"].mode, Mode::Route);
        assert_eq!(config.default_egress(), "local");
        assert_eq!(config.control, super::super::Control::default());
    }

    #[test]
    fn the_socket_is_found_in_a_broken_file() {
        let broken =
            "[lan\nx = \n[control]\nsocket = \"/tmp/a.sock\" # here\n[list]\ninstance = 7\n[[";
        let socket = |text| value_in(text, "control", "socket");
        assert_eq!(socket(broken).as_deref(), Some("/tmp/a.sock"));
        assert_eq!(socket("[control]\nsocket = \n"), None);
        assert_eq!(socket("[list"), None);
    }

    #[test]
    fn the_example_is_the_defaults() {
        let example = include_str!("../../../dist/breakout.example.toml");
        let config = parse(example, "example").unwrap();
        let uncommented: String = example
            .lines()
            .map(|line| {
                let commented = line.strip_prefix("#").filter(|rest| !rest.starts_with(' '));
                format!("{}\n", commented.unwrap_or(line))
            })
            .collect();
        let full = parse(&uncommented, "example with every key").unwrap();
        assert_eq!(full.routing, config.routing);
        assert_eq!(full.control, config.control);
        assert_eq!((full.health, full.pinning), (config.health, config.pinning));
        assert_eq!(full.state, config.state);
        assert_eq!(full.lan, config.lan);
        assert_eq!((full.list, full.shadow), (config.list, config.shadow));
    }

    #[test]
    fn unknown_keys_are_refused_with_the_line_and_a_near_match() {
        let typo = SMALLEST.replace("gateway6 =", "gatewy6 =");
        assert_eq!(
            message(&typo),
            "breakout.toml:11: unknown key \"gatewy6\"; did you mean \"gateway6\"?"
        );
        let table = SMALLEST.replace("[list]", "[lists]");
        assert_eq!(
            message(&table),
            "breakout.toml:2: unknown key \"lists\"; did you mean \"list\"?"
        );
        let value = SMALLEST.replace("\"route\"", "\"redirct\"");
        assert!(message(&value).contains("did you mean \"redirect\"?"));
        let far = SMALLEST.replace("gateway6 =", "colour =");
        assert!(message(&far).contains("there are: interface, gateway"));
    }

    #[test]
    fn broken_values_name_the_line() {
        let bad = SMALLEST.replace("10.3.0.2", "10.3.0.300");
        assert!(
            message(&bad).starts_with("breakout.toml:10: "),
            "{}",
            message(&bad)
        );
        let missing = SMALLEST.replace("interface = \"inet\"", "");
        assert!(message(&missing).contains("interface"));
    }
}
