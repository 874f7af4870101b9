//! Translation: connections whose address the kernel's connection tracking chose for another way than the one that they are on.
//!
//! The kernel decides once a connection how it is translated. One that began while a rule was gone, or on a link that has failed since,
//! goes on with what was decided then; it has to be forgotten, so that its next packet is translated for its way of now.
//! All of this runs beside the controller: listing and forgetting tens of thousands of connections takes a while.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use breakout_common::path::{ORDINARY, PathTable, Pin};
use tokio::task::{JoinSet, spawn_blocking};

use super::egress::EgressState;
use super::pinning::{Before, connection_of};
use super::{Controller, RETRY};
use crate::datapath::{Clock, FlowTable, Pinned};
use crate::links::conntrack::{self, Connection};

/// Interval at which flows that have begun are looked at; more rarely where that takes long.
const NEW_FLOWS: Duration = Duration::from_secs(1);
/// For how long after its last packet a connection counts as going on, by the clock of pins.
const RECENT: u32 = 3;
/// For how long looks must find wrong connections before that is an alert: what is just being put back is none.
const LASTING: Duration = Duration::from_secs(5);
/// Delay before a connection that did not come right is forgotten again.
const RETRY_STUCK: Duration = Duration::from_secs(5);
/// The part of the time that looking may take.
const SHARE: u32 = 50;

/// Looks at the translation of connections.
pub(super) struct Translation {
    /// True if all of them are to be looked at.
    all: bool,
    /// Up to when flows that began have been looked at, by the clock of their pins.
    seen: u32,
    next: Instant,
    running: JoinSet<Done>,
    /// Connections that were not as they should be, to see whether they come right.
    suspects: HashSet<Connection>,
    /// Since when looks have found nothing but wrong ones, and when those were forgotten last although that had not helped.
    bad_since: Option<Instant>,
    retried: Instant,
    alert: Option<String>,
}

/// A look that was taken.
pub(super) struct Done {
    found: Result<Found>,
    took: Duration,
}

/// Result of a look.
#[derive(Default)]
struct Found {
    /// Number of connections that were forgotten.
    forgotten: usize,
    /// Those and others that are to be looked at again.
    suspects: HashSet<Connection>,
    /// One of those that are wrong.
    wrong: Option<(Connection, u8)>,
    /// True if one was wrong before, and has not come right.
    is_stuck: bool,
    /// True if any connection was looked at that leaves as it should.
    is_some_right: bool,
    /// True if one was forgotten that had been before.
    retried: bool,
}

/// Input of a look.
struct Look {
    pins: Option<FlowTable>,
    /// Connections that are not pinned, with the egresses that they may be on.
    unpinned: Vec<(Connection, u8)>,
    suspects: HashSet<Connection>,
    /// True if suspects are forgotten once more.
    retries: bool,
    /// Only flows that began since; all if none.
    since: Option<u32>,
    egresses: Vec<EgressState>,
    own: Vec<IpAddr>,
}

impl Default for Translation {
    fn default() -> Self {
        Translation {
            all: false,
            seen: Clock::of_kernel().now(),
            next: Instant::now(),
            running: JoinSet::new(),
            suspects: HashSet::new(),
            bad_since: None,
            retried: Instant::now(),
            alert: None,
        }
    }
}

impl Translation {
    /// Has all connections looked at, at the next opportunity.
    pub(super) fn look_at_all(&mut self) {
        self.all = true;
        self.next = Instant::now();
    }

    /// The same, no sooner than it is time to look.
    pub(super) fn look_at_all_in_turn(&mut self) {
        self.all = true;
    }

    /// Returns what is wrong with the translation of connections that does not come right, if anything.
    pub(super) fn alert(&self) -> Option<&String> {
        self.alert.as_ref()
    }

    /// Waits for a look that has been taken. May be dropped at any time without losing it.
    pub(super) async fn done(&mut self) -> Done {
        loop {
            match self.running.join_next().await {
                Some(Ok(done)) => return done,
                Some(Err(error)) => tracing::warn!("a look at translations failed: {error}"),
                None => std::future::pending().await,
            }
        }
    }
}

impl Controller {
    /// Looks at the translation of those connections that may have a wrong one, if it is time to.
    pub(super) fn look_at_translation(&mut self) {
        let translation = &mut self.translation;
        if !translation.running.is_empty() || Instant::now() < translation.next {
            return;
        }
        let egresses = self.failover.paths().egresses().to_vec();
        let all = std::mem::take(&mut translation.all);
        let masquerades = egresses.iter().any(|egress| egress.config.is_masqueraded());
        let is_pinned = self.config.pinning.enabled;
        if !(all || masquerades && is_pinned) {
            return;
        }
        let since = translation.seen;
        translation.seen = Clock::of_kernel().now();
        let pins = match is_pinned {
            true => self.datapath.flows().ok(),
            false => None,
        };
        let look = Look {
            pins,
            unpinned: if all {
                self.unpinned_connections()
            } else {
                Vec::new()
            },
            suspects: std::mem::take(&mut self.translation.suspects),
            // Something was put back, or may have been by somebody else.
            retries: all || self.translation.retried.elapsed() > RETRY_STUCK,
            // Clocks may differ by a tick.
            since: (!all).then_some(since.saturating_sub(1)),
            egresses,
            own: self.ruleset.own.clone(),
        };
        self.translation.running.spawn_blocking(move || {
            let started = Instant::now();
            Done {
                found: look.take(),
                took: started.elapsed(),
            }
        });
    }

    /// Takes in what a look has brought.
    pub(super) fn looked_at_translation(&mut self, done: Done) {
        self.translation.next = Instant::now() + NEW_FLOWS.max(done.took * SHARE);
        let found = match done.found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("connections may go on without translation: {error:#}");
                self.translation.all = true;
                self.translation.next = Instant::now() + RETRY;
                return;
            }
        };
        if found.forgotten > 0 {
            let why = "they left with another address than their way's";
            let count = found.forgotten;
            tracing::info!("{count} connections are translated afresh: {why}");
            let subject = format!("{count} connections");
            self.events.note("nat", subject, "translated afresh", why);
        }
        self.translation.suspects = found.suspects;
        let now = Instant::now();
        let translation = &mut self.translation;
        if found.retried {
            translation.retried = now;
        }
        match found.wrong {
            None if found.is_some_right => {
                (translation.bad_since, translation.alert) = (None, None);
            }
            None => {}
            // Those that come with others that are right are on their way to be.
            Some(_) if found.is_some_right && !found.is_stuck => {}
            Some((connection, way)) => {
                let since = *translation.bad_since.get_or_insert(now);
                if now.duration_since(since) >= LASTING {
                    self.note_wrong(&connection, way);
                }
            }
        }
    }

    /// Tells of a connection that somebody else's rules keep from being translated as it should.
    fn note_wrong(&mut self, connection: &Connection, way: u8) {
        let egresses = self.egresses();
        let egress = egresses.iter().find(|egress| egress.index == way);
        let name = egress.map_or("the ordinary path", |egress| &egress.name);
        let leaves_as = match connection.leaves_as {
            Some(address) => format!("with the address {address}, which is not the egress's"),
            None => "without translation".to_owned(),
        };
        let alert = format!(
            "connections steered to {name} leave {leaves_as}, as from {} to {}: look for rules of others that translate before \
             ours, or change the firewall mark (nft list ruleset)",
            connection.source.0, connection.destination.0
        );
        if self.translation.alert.is_none() {
            tracing::error!("{alert}");
            self.events.note("nat", name, "not translated", &*alert);
        }
        self.translation.alert = Some(alert);
    }

    /// Has the connections translated afresh that have moved since a path table.
    pub(super) fn translate_moved(&mut self, before: PathTable) {
        let Ok(now) = self.ways_now() else { return };
        let mut moving = self.flows_that_lose_their_way(&now.words, &before, &now.paths);
        let before = Before {
            paths: before,
            ..now
        };
        moving.extend(self.unpinned_that_move(&before));
        forget_beside(moving);
        // Those that have moved already are told by the address that they leave with.
        self.translation.look_at_all();
    }
}

/// Has the kernel forget connections, beside everything else.
pub(super) fn forget_beside(connections: Vec<Connection>) {
    if !connections.is_empty() {
        drop(spawn_blocking(move || translate_afresh(&connections)));
    }
}

/// Has the addresses of connections that have moved translated afresh. That is nothing where neither way translates them.
pub(super) fn translate_afresh(moved: &[Connection]) {
    if let Err(error) = conntrack::forget(moved) {
        tracing::warn!(
            "connections that have moved may keep the address of their former way: {error:#}"
        );
    }
}

impl Look {
    /// Takes it.
    fn take(&self) -> Result<Found> {
        let before = self.pinned()?;
        let tracked = match self.since {
            Some(_) if before.is_empty() => return Ok(Found::default()),
            Some(_) => conntrack::look_up(before.keys().copied())?,
            None => conntrack::connections()?,
        };
        // A flow that has moved meanwhile is judged by neither of its ways.
        let after = self.pinned()?;
        let unpinned: HashMap<Connection, u8> = self.unpinned.iter().copied().collect();
        let mut found = Found::default();
        let mut wrong = Vec::new();
        for connection in tracked {
            let key = connection.untranslated();
            let address = connection.leaves_as;
            match before.get(&key) {
                Some(way) if after.get(&key) == Some(way) => {
                    let is_wrong = self.is_wrong(*way, key.source.0.is_ipv6(), address);
                    if !is_wrong && !self.is_by_others(*way, address) {
                        found.is_some_right |= self.masquerades(*way);
                        continue;
                    }
                    let is_suspect = self.suspects.contains(&key) && *way != ORDINARY;
                    found.is_stuck |= is_suspect;
                    // To forget one again helps only once something else has changed; to forget what others translate never does.
                    if is_wrong && (!is_suspect || self.retries) {
                        found.retried |= is_suspect;
                        wrong.push(connection);
                    }
                    if *way != ORDINARY {
                        found.wrong = Some((connection, *way));
                    }
                    found.suspects.insert(key);
                }
                Some(_) => {}
                // It is only likely to be on that way. One that is not, and not translated, is tracked again as it was.
                None => {
                    let is_wrong = |way: &u8| match address {
                        None => self.masquerades(*way),
                        Some(_) => self.is_of_another(*way, address),
                    };
                    if unpinned.get(&key).is_some_and(is_wrong) {
                        wrong.push(connection);
                    }
                }
            }
        }
        conntrack::forget(&wrong)?;
        found.forgotten = wrong.len();
        Ok(found)
    }

    /// The pinned flows that are to be looked at, with their ways.
    fn pinned(&self) -> Result<HashMap<Connection, u8>> {
        let pins = self
            .pins
            .as_ref()
            .map_or(Ok(Vec::new()), FlowTable::entries)?;
        let is_new = |pin: &Pin| match self.since {
            Some(since) => pin.since >= since && self.masquerades(pin.egress()),
            None => true,
        };
        // A suspect that is silent has come to an end, or will be new.
        let recently = Clock::of_kernel().now().saturating_sub(RECENT);
        let pinned = pins.iter().filter_map(|Pinned { key, pin, .. }| {
            let is_new = is_new(pin);
            if !is_new && self.suspects.is_empty() {
                return None;
            }
            let connection = connection_of(&(*key)?);
            let is_suspect = || pin.seen >= recently && self.suspects.contains(&connection);
            (is_new || is_suspect()).then_some((connection, pin.egress()))
        });
        Ok(pinned.collect())
    }

    fn egress(&self, index: u8) -> Option<&EgressState> {
        self.egresses.iter().find(|egress| egress.index == index)
    }

    fn masquerades(&self, index: u8) -> bool {
        self.egress(index)
            .is_some_and(|egress| egress.config.is_masqueraded())
    }

    /// Returns whether a connection on this way must not leave with this address.
    fn is_wrong(&self, way: u8, v6: bool, leaves_as: Option<IpAddr>) -> bool {
        let Some(address) = leaves_as else {
            return self.masquerades(way);
        };
        if way == ORDINARY {
            // The ordinary path may lead over an egress's interface, and does not over one that is gone.
            let gone = |egress: &&EgressState| egress.problem(v6).is_some();
            let mut gone = self.egresses.iter().filter(gone);
            return gone.any(|egress| egress.has_address(address));
        }
        let is_own = self.masquerades(way) && self.own.contains(&address);
        let is_of_way = self
            .egress(way)
            .is_some_and(|egress| egress.has_address(address));
        self.is_of_another(way, leaves_as) || is_own && !is_of_way
    }

    /// Returns whether an address is another egress's and not this one's.
    fn is_of_another(&self, way: u8, address: Option<IpAddr>) -> bool {
        let has = |egress: &EgressState| address.is_some_and(|address| egress.has_address(address));
        !self.egress(way).is_some_and(has) && self.egresses.iter().any(has)
    }

    /// Returns whether an address on a way that we translate is neither its own nor any other one of this machine.
    fn is_by_others(&self, way: u8, leaves_as: Option<IpAddr>) -> bool {
        let is_of = |address: IpAddr| {
            let mut egresses = self.egresses.iter();
            self.own.contains(&address) || egresses.any(|egress| egress.has_address(address))
        };
        self.masquerades(way) && leaves_as.is_some_and(|address| !is_of(address))
    }
}
