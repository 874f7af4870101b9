//! Conflicts between Breakout and the rest of this machine, and what to do about them.

mod forward;
mod kernel;
mod netfilter;
mod packet_way;
mod routing;
mod synthetic;
mod virtual_mac;

use std::fmt;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Mode};
use crate::links::{Links, NoRedirect};
use crate::ruleset::Ruleset;

pub use synthetic::{Controller, Shown, send};

/// Severity.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// Some packets do not go where they should, or will not some day.
    Warning,
    /// Steered packets are lost, or nothing is steered.
    Error,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Severity.
    pub level: Level,
    /// Finding.
    pub what: String,
    /// Advice, ready to paste where it is a command.
    pub advice: String,
}

impl Finding {
    fn new(level: Level, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Finding {
            level,
            what: what.into(),
            advice: advice.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}", self.what, self.advice)
    }
}

/// Looks at everything that a configuration touches, the worst first. Changes nothing.
///
/// # Errors
///
/// When the kernel does not answer.
pub async fn examine(config: &Config, ruleset: &Ruleset) -> Result<Vec<Finding>> {
    let links = Links::open()?;
    let mut findings = kernel::examine(config).await;
    findings.extend(routing::examine(&links, config, ruleset).await?);
    findings.extend(netfilter::examine(&links, config, ruleset).await);
    findings.extend(virtual_mac::examine(&links, config).await?);
    let lans = config.lan.iter();
    let lans = lans.map(|lan| ("[[lan]]".to_owned(), lan.interface.as_str()));
    findings.extend(missing(&links, lans.collect()).await?);
    let egresses = config.egress.iter();
    let egresses =
        egresses.map(|(name, egress)| (format!("[egress.{name}]"), egress.interface.as_str()));
    findings.extend(missing(&links, egresses.collect()).await?);
    for (name, egress) in &config.egress {
        let interface = links.interface(&egress.interface).await?;
        let Some(interface) = interface.filter(|_| egress.mode == Mode::Redirect) else {
            continue;
        };
        if interface.no_redirect() == Some(NoRedirect::Driver) {
            findings.push(Finding::new(
                Level::Note,
                format!("{} takes no redirected frames now, so egress {name} is not as fast as with XDP: TC forwards", interface.name),
                "Load any XDP program on it (its driver wants that), or on a veth switch GRO on at its other end",
            ));
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Ok(findings)
}

/// Looks at the rules of the gateway's own firewall and at virtual MAC addresses, which may change at any time. Changes nothing.
///
/// # Errors
///
/// When the kernel does not answer.
pub async fn examine_again(config: &Config, ruleset: &Ruleset) -> Result<Vec<Finding>> {
    let links = Links::open()?;
    let mut findings = netfilter::examine(&links, config, ruleset).await;
    match virtual_mac::examine(&links, config).await {
        Ok(found) => findings.extend(found),
        Err(error) => tracing::debug!("cannot look for virtual MAC addresses: {error:#}"),
    }
    Ok(findings)
}

/// Finds the interfaces that are not there. Beside others that are it may be a modem that is not plugged in; without any nothing is
/// steered.
async fn missing(links: &Links, interfaces: Vec<(String, &str)>) -> Result<Vec<Finding>> {
    let all = interfaces.len();
    let mut gone = Vec::new();
    for (place, interface) in interfaces {
        if links.interface(interface).await?.is_none() {
            gone.push(format!("{place} there is no interface {interface}"));
        }
    }
    let level = match gone.len() == all {
        true => Level::Error,
        false => Level::Warning,
    };
    let findings = gone
        .into_iter()
        .map(|what| Finding::new(level, what, "See: ip link"));
    Ok(findings.collect())
}
