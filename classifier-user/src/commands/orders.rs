//! The command lines of `breakout list` and `breakout bypass`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

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
    /// What is ordered.
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

    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        match self {
            BypassCommand::On { json, .. } | BypassCommand::Off { json } => *json,
        }
    }
}
