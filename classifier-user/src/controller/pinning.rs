//! The pins of flows, seen from the controller: what a change of the ruleset means for them, and what is no longer needed.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use breakout_common::classify::by_preference;
use breakout_common::path::{
    Flow, NoPins, ORDINARY, PLACES, PathTable, Pin, PinKey, TICK, place, settle,
};
use breakout_common::table::{Destination, Lookup, Outcome, Transport};
use nix::time::{ClockId, clock_gettime};

use super::Controller;
use crate::links::conntrack::{self, Connection};
use crate::ruleset::Image;

impl Controller {
    /// Publishes a ruleset in the tables of this installation; see
    /// [`DataPath::publish_ruleset`](crate::datapath::DataPath::publish_ruleset).
    ///
    /// Flows stay where they are: what it prefers is published first, and that there may be pinned flows that it no longer
    /// steers.
    pub(super) fn publish_ruleset(
        &mut self,
        image: &Image,
        preferences: &BTreeMap<String, u8>,
        bypass: bool,
    ) -> Result<bool> {
        self.persistent.preferences.clone_from(preferences);
        let mut paths = self.health.paths(&self.config, &self.egresses, preferences);
        paths.table.epoch = self.published.table.epoch.wrapping_add(1);
        paths.table.pins_beyond_ruleset = u32::from(self.config.pinning.enabled && !bypass);
        self.publish_paths(paths)?;
        if !self.datapath.publish_ruleset(image)? {
            return Ok(false);
        }
        if bypass {
            self.unpin_steered()?;
        }
        Ok(true)
    }

    /// Pins connections that are on the ordinary path by the table `before`, and that the table `after` would steer.
    pub(super) fn pin_the_ordinary(&self, before: &[u32], after: &[u32]) {
        let pins = self.ordinary_pins(Some(before), after);
        if let Err(error) = self.datapath.pin(&pins) {
            tracing::warn!("flows may move to a new way: {error:#}");
        }
    }

    /// Pins for connections that are on the ordinary path by the table `before`, or without one, and that the table `after`
    /// would steer. Those that nobody tracks cannot be told.
    pub(super) fn ordinary_pins(
        &self,
        before: Option<&[u32]>,
        after: &[u32],
    ) -> Vec<(PinKey, Pin)> {
        if !self.config.pinning.enabled {
            return Vec::new();
        }
        let now = now_in_ticks();
        // At the first start there is no map yet.
        let known = self.datapath.pins().unwrap_or_default();
        let known: HashSet<PinKey> = known.into_iter().map(|(key, _)| key).collect();
        let pin = Pin {
            seen: now,
            since: now,
            epoch: self.published.table.epoch,
            way: Pin::way_of(ORDINARY, 0),
        };
        // One that leaves with an egress's address is not on the ordinary path.
        let is_elsewhere = |connection: &Connection| {
            let leaves_as = connection.leaves_as;
            leaves_as.is_some_and(|address| {
                self.egresses
                    .iter()
                    .any(|egress| egress.has_address(address))
            })
        };
        let connections = tracked()
            .into_iter()
            .filter(|connection| !is_elsewhere(connection));
        let keys = connections.map(|connection| key_of(&connection));
        let moving = keys.filter(|key| {
            let was_steered = before.is_some_and(|before| is_steered(before, key));
            !known.contains(key) && !was_steered && is_steered(after, key)
        });
        moving.map(|key| (key, pin)).collect()
    }

    /// The flows whose egress works now and does not by another table. If the kernel translates their addresses, it goes on
    /// with those of the way that they had.
    pub(super) fn flows_that_lose_their_way(&self, after: &PathTable) -> Vec<Connection> {
        let before = &self.published.table;
        let stopped = |place: usize| before.working[place] & !after.working[place];
        if !self.config.pinning.enabled || (0..PLACES).all(|place| stopped(place) == 0) {
            return Vec::new();
        }
        let is_media = |pin: &Pin| {
            let rule = self.ruleset.rule(pin.set());
            rule.is_some_and(|rule| rule.choices.iter().any(|choice| choice.media))
        };
        let pins = self.datapath.pins().unwrap_or_default();
        let moving = pins.iter().filter(|(key, pin)| {
            let place = place(key[4] & Flow::V6 != 0, is_media(pin));
            pin.egress() != ORDINARY && stopped(place) >> (pin.egress() & 31) & 1 != 0
        });
        moving.filter_map(|(key, _)| connection_of(key)).collect()
    }

    /// The connections that nothing keeps on their way, and that had another one by the table before.
    pub(super) fn unpinned_that_move(&self, before: &PathTable) -> Vec<Connection> {
        let is_pinned = self.config.pinning.enabled;
        let mut choices = self.ruleset.rules.iter().flat_map(|rule| &rule.choices);
        if is_pinned && !choices.any(|choice| choice.hard) {
            return Vec::new();
        }
        let Ok(table) = self.datapath.live_table() else {
            return Vec::new();
        };
        let moves = |connection: &Connection| {
            let key = key_of(connection);
            let word = word_of(&table, &key);
            let flow = Flow {
                source: (key[0], key[1]),
                destination: (key[2], key[3]),
                facts: key[4] | u64::from(word),
            };
            let way = |table: &PathTable| settle(&flow, table, &NoPins).egress();
            let is_kept = is_pinned && word & Outcome::HARD == 0;
            // The gateway's own connections are not steered.
            let is_own = self.ruleset.own.contains(&connection.source.0);
            !is_kept && !is_own && way(before) != way(&self.published.table)
        };
        tracked().into_iter().filter(moves).collect()
    }

    /// Forgets the flows that leave by an egress.
    pub(super) fn unpin_steered(&self) -> Result<()> {
        if !self.config.pinning.enabled {
            return Ok(());
        }
        let mut pins = self.datapath.pins()?;
        pins.retain(|(_, pin)| pin.egress() != ORDINARY);
        self.datapath.unpin(pins.iter().map(|(key, _)| key))?;
        let moving: Vec<Connection> = pins
            .iter()
            .filter_map(|(key, _)| connection_of(key))
            .collect();
        translate_afresh(&moving);
        Ok(())
    }

    /// Forgets idle flows; and, once none is left that the ruleset does not steer, that packets it does not steer have to be
    /// looked up.
    pub(super) async fn tidy_pins(&mut self) {
        if let Err(error) = self.try_tidy_pins() {
            tracing::warn!("cannot tidy the pins of flows: {error:#}");
        }
    }

    fn try_tidy_pins(&mut self) -> Result<()> {
        if !self.config.pinning.enabled {
            return Ok(());
        }
        let now = now_in_ticks();
        let pins = self.datapath.pins()?;
        let (idle, live): (Vec<_>, Vec<_>) = pins
            .into_iter()
            .partition(|(key, pin)| self.is_idle(key, pin, now));
        self.datapath.unpin(idle.iter().map(|(key, _)| key))?;
        if self.published.table.pins_beyond_ruleset == 0 {
            return Ok(());
        }
        let table = self.datapath.live_table()?;
        let is_beyond = |(key, pin): &(PinKey, Pin)| {
            key[4] & Flow::CLIENT == 0 && pin.egress() != ORDINARY && !is_steered(&table, key)
        };
        if !live.iter().any(is_beyond) {
            let mut paths = self.published.clone();
            paths.table.pins_beyond_ruleset = 0;
            self.publish_paths(paths)?;
        }
        Ok(())
    }

    fn is_idle(&self, key: &PinKey, pin: &Pin, now: u32) -> bool {
        let table = &self.published.table;
        let idle = match key[4] {
            kind if kind & Flow::CLIENT != 0 => table.media_hold,
            kind if kind & Flow::TCP != 0 => table.tcp_idle,
            _ => table.udp_idle,
        };
        // A packet may have come since `now` was taken.
        now.saturating_sub(pin.seen) > idle
    }
}

/// The connections that the kernel tracks; none if it does not say.
fn tracked() -> Vec<Connection> {
    conntrack::connections().unwrap_or_else(|error| {
        tracing::debug!("{error:#}");
        Vec::new()
    })
}

/// Has the addresses of connections that have moved translated afresh. Where nothing translates them that is nothing.
pub(super) fn translate_afresh(connections: &[Connection]) {
    if let Err(error) = conntrack::forget(connections) {
        tracing::debug!("{error:#}");
    }
}

/// The key of a connection's pin.
fn key_of(connection: &Connection) -> PinKey {
    let (source, destination) = (connection.source, connection.destination);
    let is_v6 = source.0.is_ipv6();
    let flow = Flow {
        source: Destination::from(source.0).to_halves(),
        destination: Destination::from(destination.0).to_halves(),
        facts: Flow::ports(source.1, destination.1)
            | if is_v6 { Flow::V6 } else { 0 }
            | if connection.protocol == 6 {
                Flow::TCP
            } else {
                0
            },
    };
    flow.key()
}

/// The connection that a pin is of; none of a client's.
pub(super) fn connection_of(key: &PinKey) -> Option<Connection> {
    let kind = key[4];
    let address =
        |high, low| IpAddr::from(Destination::from_halves(kind & Flow::V6 != 0, high, low));
    let port = |shift: u32| (kind >> shift & 0xffff) as u16;
    (kind & Flow::CLIENT == 0).then(|| Connection {
        source: (address(key[0], key[1]), port(48)),
        destination: (address(key[2], key[3]), port(32)),
        protocol: if kind & Flow::TCP != 0 { 6 } else { 17 },
        leaves_as: None,
    })
}

/// Whether the ruleset steers a flow.
fn is_steered(table: &[u32], key: &PinKey) -> bool {
    by_preference(word_of(table, key)).egress().is_some()
}

/// What the ruleset says about a flow of a client behind the first LAN interface.
fn word_of(table: &[u32], key: &PinKey) -> u32 {
    let destination = Destination::from_halves(key[4] & Flow::V6 != 0, key[2], key[3]);
    let transport = if key[4] & Flow::TCP != 0 {
        Transport::Tcp
    } else {
        Transport::Udp
    };
    let port = (key[4] >> 32 & 0xffff) as u16;
    let client = breakout_common::condition::Client {
        source: Destination::from_halves(key[4] & Flow::V6 != 0, key[0], key[1]),
        lan: 0,
        vlan: 0,
    };
    table.lookup_word(destination, transport.key(port), || Some(client))
}

/// The time since boot in the data path's unit, by the clock that it reads.
pub(super) fn now_in_ticks() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
    to_ticks(now)
}

/// A time in the data path's unit.
pub(super) fn to_ticks(time: Duration) -> u32 {
    u32::try_from(time.as_nanos() >> TICK).unwrap_or(u32::MAX)
}

/// So many of the data path's units, in seconds.
pub(super) fn seconds(ticks: u32) -> u32 {
    let nanoseconds = u64::from(ticks) << TICK;
    u32::try_from(nanoseconds / 1_000_000_000).unwrap_or(u32::MAX)
}
