//! The command lines of `breakout list` and `breakout bypass`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::control::BypassOrder;

/// `breakout list`.
#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// Show the endpoint sets, their addresses and ports, and what is done with them.
    ///
    /// Example: breakout list show
    Show {
        /// Show this list instead of the one in force: a response of the endpoints web service, or a kept version.
        #[arg(long, value_name = "FILE|VERSION")]
        list: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask the source for a newer list now, judge it and put it into force.
    ///
    /// Without a controller it is kept for the next one.
    ///
    /// Example: breakout list fetch
    Fetch {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the lists that are kept, and what became of each.
    ///
    /// Example: breakout list history
    History {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what is different between two lists: kept versions, files, or `builtin`.
    ///
    /// Example: breakout list diff 2026022700 2026033100
    Diff {
        /// The earlier list.
        before: String,
        /// The later list.
        since: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show additions that are announced for later, and what is withdrawn but in its grace time.
    ///
    /// Example: breakout list pending
    Pending {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run lists in order through the judge, and say which would have come into force, which not and why, and how what is steered
    /// would have changed.
    ///
    /// By the limits and the policy of the configuration. Nothing is fetched or changed. Directories are read by the versions in
    /// their files' names. The exit code is 10 if a list would have been refused.
    ///
    /// Example: breakout list simulate --builtin saved/Worldwide-2026050100.json
    Simulate(Simulate),
    /// Put a list into force that was refused.
    ///
    /// Example: breakout list accept 2026033100
    Accept {
        /// Its version, or the first six digits or more of its hash.
        version: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put the lists of an earlier ruleset into force again, in one switch.
    ///
    /// With the same policy that is exactly the earlier ruleset. Later lists wait then until they are released.
    ///
    /// Example: breakout list rollback
    Rollback {
        /// The version of a list, or the first six digits or more of a hash; the lists before without.
        version: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let later lists be applied again after a rollback.
    ///
    /// Example: breakout list release
    Release {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `breakout list simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// Files, or directories with files.
    #[arg(required = true, value_name = "FILE|DIRECTORY")]
    pub paths: Vec<PathBuf>,
    /// The instance; without, that which a file's name begins with, or the first one of the configuration.
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Begin with the built-in list, as a new gateway does, instead of the first file.
    #[arg(long)]
    pub builtin: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `breakout bypass`.
#[derive(Debug, Subcommand)]
pub enum BypassCommand {
    /// Steer nothing.
    ///
    /// Example: breakout bypass on --for 30m
    On {
        /// For how long; until `breakout bypass off` without.
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        duration: Option<Duration>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Steer as the policy says.
    ///
    /// Example: breakout bypass off
    Off {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl BypassCommand {
    /// Returns what is ordered.
    pub fn order(&self) -> BypassOrder {
        match self {
            BypassCommand::On { duration, .. } => BypassOrder {
                on: true,
                duration: *duration,
            },
            BypassCommand::Off { .. } => BypassOrder {
                on: false,
                duration: None,
            },
        }
    }

    /// Returns whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        match self {
            BypassCommand::On { json, .. } | BypassCommand::Off { json } => *json,
        }
    }
}
