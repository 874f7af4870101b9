//! The connectivity of Microsoft 365 on each path: a gateway's twin of Microsoft's connectivity test.
//!
//! ```text
//! targets ── path ── resolver, door, media, load, trace ── outcome, score
//! (whom)    (by     (one measurement each)                (verdict by Microsoft's limits)
//!            which)
//! ```
//!
//! It runs in a process of its own, beside the controller, which it only asks for the egresses' next hops. Its packets leave by host
//! routes that only sockets of its kind take; they go when it ends, or when the next assessment begins.

mod door;
mod examiner;
mod load;
mod media;
mod outcome;
mod path;
mod public;
mod reference;
mod resolver;
mod score;
mod targets;
mod tcp;
mod trace;
mod verdicts;

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::select_all;
use tokio::signal::unix::{SignalKind, signal};

use examiner::Examiner;
pub use outcome::{Assessment, Limits, Outcome, PathName, Score, Test, Verdict};
use path::Path;
use reference::Reference;
use targets::Targets;

use crate::config::Config;
use crate::control::Status;
use crate::health::Trust;
use crate::links::Links;
use crate::timestamp::Timestamp;

/// The time that a stream like that of a call takes.
pub const CALL: Duration = Duration::from_secs(10);

/// Options of one assessment.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only this egress.
    pub egress: Option<String>,
    /// The time of the stream of media.
    pub call: Duration,
    /// Time for which a connection is left idle; none to leave that out.
    pub idle: Option<Duration>,
    /// True to load metered links too.
    pub loads_metered: bool,
}

/// Assesses the ordinary path and those by the egresses, and says by `progress` what it is at.
///
/// # Errors
///
/// Fails if the kernel refuses routes or sockets, an egress is not there, or another assessment runs.
pub async fn assess(
    config: &Config,
    status: &Status,
    options: &Options,
    progress: impl Fn(&str),
) -> Result<Assessment> {
    let _alone = alone()?;
    if let Some(name) = &options.egress {
        ensure!(
            status.egress.contains_key(name),
            "there is no egress {name}"
        );
    }
    let at = Timestamp::now();
    let targets = Targets::of(config)?;
    let trust = Trust::without_system(config.health.ca_file.as_deref())?;
    let links = Links::open()?;
    // An assessment that was killed has left its own.
    links.remove_assessed().await?;
    let examiner = Examiner {
        config,
        targets: &targets,
        trust: &trust,
        options,
        progress: &progress,
    };
    let mut results = examiner.resolver().await;
    let mut references = BTreeMap::new();
    for v6 in [false, true] {
        let path = Path::ordinary(&links, v6);
        progress(&format!(
            "{}: front doors, route, public address",
            path.name
        ));
        let reference = Reference::of(&targets, &path).await;
        results.extend(reference.outcomes.iter().cloned());
        references.insert(v6, reference);
    }
    let wanted = |name: &String| options.egress.as_ref().is_none_or(|only| only == name);
    let mut paths = Vec::new();
    for (number, (name, egress)) in (0..)
        .zip(&status.egress)
        .filter(|(_, (name, _))| wanted(name))
    {
        for v6 in [false, true] {
            match Path::by_egress(&links, (name, egress), number, v6).await? {
                Ok(path) => paths.push(path),
                Err(why) => results.push(Outcome::told(
                    &PathName::new(Some(name), v6),
                    Test::Path,
                    None,
                    Verdict::Skipped,
                    why,
                )),
            }
        }
    }
    let examined = tokio::select! {
        examined = examiner.examine_all(&paths, &references) => Ok(examined),
        () = asked_to_end() => Err(anyhow!("interrupted")),
    };
    links.remove_assessed().await?;
    results.extend(examined?);
    let scores = results.iter().filter_map(points).collect();
    Ok(Assessment {
        at,
        results,
        scores,
    })
}

/// Returns the points that a figure is worth.
fn points(outcome: &Outcome) -> Option<Score> {
    let measured = outcome.measured?;
    let target = outcome.target.as_deref().unwrap_or_default();
    let (service, points) = match outcome.test {
        Test::TcpLatency if target.contains("outlook") => ("Exchange", score::exchange(measured)),
        Test::Download => ("SharePoint", score::sharepoint(measured)),
        _ => return None,
    };
    Some(Score {
        path: outcome.path.clone(),
        service: service.to_owned(),
        points,
    })
}

/// Waits for a signal that ends programs.
async fn asked_to_end() {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let waits = kinds.into_iter().filter_map(|kind| signal(kind).ok());
    let waits = waits.map(|mut signal| Box::pin(async move { signal.recv().await }));
    select_all(waits).await;
}

/// Takes the place of the only assessment in this network namespace, which abstract names of sockets are of (unix(7)).
fn alone() -> Result<UnixListener> {
    let name = SocketAddr::from_abstract_name("breakout-assess")?;
    let bound = UnixListener::bind_addr(&name);
    bound.context(
        "cannot take the place of the only assessment; wait until the other one has finished",
    )
}
