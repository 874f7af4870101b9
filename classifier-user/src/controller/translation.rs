//! Translation: connections whose address the kernel's connection tracking chose for another way than the one that they are on.
//!
//! The kernel decides once a connection how it is translated. One that began while a rule was gone, or on a link that has failed since,
//! goes on with what was decided then; it has to be forgotten, so that its next packet is translated for its way of now.
//! All of this runs beside the controller: listing and forgetting tens of thousands of connections takes a while.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use breakout_common::path::{ORDINARY, PathTable, Pin, PinKey};
use tokio::task::{JoinSet, spawn_blocking};

use super::Controller;
use super::egress::EgressState;
use super::pinning::{Before, connection_of};
use crate::datapath::{Clock, PinReader};
use crate::links::conntrack::{self, Connection};

/// How often flows that have begun are looked at; more rarely where that takes long.
const NEW_FLOWS: Duration = Duration::from_secs(1);
/// The part of the time that looking may take.
const SHARE: u32 = 50;

/// Looks at the translation of connections.
pub(super) struct Translation {
    /// Whether all of them are to be looked at.
    all: bool,
    /// Up to when flows that began have been looked at, by the clock of their pins.
    seen: u32,
    next: Instant,
    running: JoinSet<Done>,
}

/// A look that was taken.
pub(super) struct Done {
    /// How many connections were forgotten.
    forgotten: Result<usize>,
    took: Duration,
}

/// What a look goes by.
struct Look {
    pins: Option<PinReader>,
    /// Connections that are not pinned, with their egresses.
    unpinned: Vec<(Connection, u8)>,
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
        }
    }
}

impl Translation {
    /// Has all connections looked at, at the next opportunity.
    pub(super) fn look_at_all(&mut self) {
        self.all = true;
        self.next = Instant::now();
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
        let masquerades = egresses.iter().any(|egress| egress.config.masquerade);
        let is_pinned = self.config.pinning.enabled;
        if !all && !(masquerades && is_pinned) {
            return;
        }
        let since = translation.seen;
        translation.seen = Clock::of_kernel().now();
        let pins = match is_pinned {
            true => self.datapath.pin_reader().ok(),
            false => None,
        };
        let look = Look {
            pins,
            unpinned: if all { self.unpinned_connections() } else { Vec::new() },
            // Clocks may differ by a unit.
            since: (!all).then_some(since.saturating_sub(1)),
            egresses,
            own: self.ruleset.own.clone(),
        };
        self.translation.running.spawn_blocking(move || {
            let started = Instant::now();
            Done {
                forgotten: look.take(),
                took: started.elapsed(),
            }
        });
    }

    /// Takes in what a look has brought.
    pub(super) fn looked_at_translation(&mut self, done: Done) {
        self.translation.next = Instant::now() + NEW_FLOWS.max(done.took * SHARE);
        match done.forgotten {
            Ok(0) => {}
            Ok(count) => {
                let why = "they left with another address than their way's";
                tracing::info!("{count} connections are translated afresh: {why}");
                let subject = format!("{count} connections");
                self.events.note("nat", subject, "translated afresh", why);
            }
            Err(error) => tracing::warn!("connections may go on without translation: {error:#}"),
        }
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
    /// Takes it. Returns how many connections were forgotten.
    fn take(&self) -> Result<usize> {
        let pins = self.pins.as_ref().map_or(Ok(Vec::new()), PinReader::read)?;
        let is_meant = |(_, pin): &&(PinKey, Pin)| match self.since {
            Some(since) => pin.since >= since && self.masquerades(pin.egress()),
            None => true,
        };
        let pinned = pins.iter().filter(is_meant);
        let pinned = pinned.filter_map(|(key, pin)| Some((connection_of(key)?, pin.egress())));
        let ways: HashMap<Connection, u8> = pinned.chain(self.unpinned.iter().copied()).collect();
        let mut tracked = match self.since {
            Some(_) if ways.is_empty() => return Ok(0),
            Some(_) => conntrack::look_up(ways.keys().copied())?,
            None => conntrack::connections()?,
        };
        tracked.retain(|connection| {
            let way = ways.get(&connection.untranslated());
            way.is_some_and(|way| self.is_wrong(*way, connection.leaves_as))
        });
        conntrack::forget(&tracked)?;
        Ok(tracked.len())
    }

    fn egress(&self, index: u8) -> Option<&EgressState> {
        self.egresses.iter().find(|egress| egress.index == index)
    }

    fn masquerades(&self, index: u8) -> bool {
        self.egress(index)
            .is_some_and(|egress| egress.config.masquerade)
    }

    /// Whether a connection on this way must not leave with this address.
    fn is_wrong(&self, way: u8, leaves_as: Option<IpAddr>) -> bool {
        let egress = self.egress(way);
        match leaves_as {
            None => way != ORDINARY && self.masquerades(way),
            Some(address) => {
                let is_of_way = egress.is_some_and(|egress| egress.has_address(address));
                let mut others = self.egresses.iter();
                let is_of_another = others.any(|other| other.has_address(address))
                    || self.masquerades(way) && self.own.contains(&address);
                !is_of_way && is_of_another
            }
        }
    }
}
