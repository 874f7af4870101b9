//! The pins of flows, seen from the controller: what a change of the ruleset means for them, and what is no longer needed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use anyhow::Result;
use breakout_common::classify::by_preference;
use breakout_common::flows::State;
use breakout_common::path::{
    EPOCHS, Flow, NoPins, ORDINARY, PLACES, PathTable, Pin, PinKey, place, settle,
};
use breakout_common::table::{Destination, Lookup, Outcome, Transport};

use super::egress::EgressState;
use super::translation::forget_beside;
use super::{Controller, faults};
use crate::config::{Config, lan_number};
use crate::datapath::{Clock, DataPath, Pinned};
use crate::links::conntrack::{self, Connection};
use crate::ruleset::Image;

/// Paths of packets before a change.
pub(super) struct Before {
    pub(super) words: Vec<u32>,
    pub(super) paths: PathTable,
    /// True if any rule fails back at once.
    pub(super) is_hard: bool,
}

impl Controller {
    /// Publishes a ruleset in the tables of this installation; see
    /// [`DataPath::publish_ruleset`](crate::datapath::DataPath::publish_ruleset).
    ///
    /// Flows stay where they are: what it prefers is published first, and that there may be pinned flows that it no longer
    /// steers.
    pub(super) fn publish_ruleset(
        &mut self,
        image: &mut Image,
        preferences: &BTreeMap<String, u8>,
        bypass: bool,
    ) -> Result<bool> {
        let pins_beyond_ruleset = self.config.pinning.enabled && !bypass;
        let was_beyond = self.path_table().pins_beyond_ruleset != 0;
        faults::step("publish the path table")?;
        self.failover
            .paths()
            .prefer(preferences, pins_beyond_ruleset)?;
        let published = faults::step("publish the ruleset")
            .and_then(|()| self.datapath.publish_ruleset(image, pins_beyond_ruleset));
        if !matches!(published, Ok(true)) {
            let before = &self.persistent.preferences;
            let restored = self.failover.paths().prefer(before, was_beyond);
            if let Err(error) = restored {
                tracing::error!("the path table is not yet as it was: {error:#}");
            }
        }
        published
    }

    /// The path table in force.
    pub(super) fn path_table(&self) -> PathTable {
        self.failover.paths().published().table
    }

    /// Returns where packets go now.
    pub(super) fn ways_now(&self) -> Result<Before> {
        let mut choices = self.ruleset.rules.iter().flat_map(|rule| &rule.choices);
        Ok(Before {
            words: self.datapath.live_table()?,
            paths: self.path_table(),
            is_hard: choices.any(|choice| choice.hard),
        })
    }

    /// Pins connections that are on the ordinary path by the table before, and that the table `after` would steer.
    pub(super) fn pin_the_ordinary(&self, before: &Before, after: &[u32]) {
        if !self.config.pinning.enabled {
            return;
        }
        let known = self.datapath.pins().unwrap_or_default();
        let known = known.iter().filter_map(|pinned| pinned.key).collect();
        let (epoch, egresses) = {
            let paths = self.failover.paths();
            (paths.published().table.epoch, paths.egresses().to_vec())
        };
        let config = &self.config;
        let pins = ordinary_pins(config, &egresses, epoch, &known, Some(before), after);
        if let Err(error) = self.datapath.pin(&pins) {
            tracing::warn!("flows may move to a new way: {error:#}");
        }
    }

    /// The pinned flows whose egress works by the one table and does not by the other. If the kernel translates their
    /// addresses, it goes on with those of the way that they had. `words` are the ruleset that decides which class they are of.
    pub(super) fn flows_that_lose_their_way(
        &self,
        words: &[u32],
        before: &PathTable,
        after: &PathTable,
    ) -> Vec<Connection> {
        let stopped = |place: usize| before.working[place] & !after.working[place];
        if !self.config.pinning.enabled || (0..PLACES).all(|place| stopped(place) == 0) {
            return Vec::new();
        }
        let clients = Clients::of(&self.config);
        let is_media = |key: &PinKey| {
            let word = clients.words(words, key).find(|word| steers(*word));
            word.is_some_and(|word| word & Outcome::MEDIA != 0)
        };
        let pins = self.datapath.pins().unwrap_or_default();
        let moving = pins.iter().filter_map(|pinned| {
            let (key, egress) = (pinned.key?, pinned.pin.egress());
            let place = place(key[4] & Flow::V6 != 0, is_media(&key));
            let is_moving = egress != ORDINARY && stopped(place) >> (egress & 31) & 1 != 0;
            is_moving.then(|| connection_of(&key))
        });
        moving.collect()
    }

    /// The connections that nothing keeps on their way, and that had another one before.
    pub(super) fn unpinned_that_move(&self, before: &Before) -> Vec<Connection> {
        let Ok(now) = self.ways_now() else {
            return Vec::new();
        };
        let is_pinned = self.config.pinning.enabled;
        if is_pinned && !before.is_hard && !now.is_hard {
            return Vec::new();
        }
        let clients = Clients::of(&self.config);
        let moves = |connection: &Connection| {
            let key = key_of(connection);
            let words = clients
                .words(&before.words, &key)
                .zip(clients.words(&now.words, &key));
            let is_soft = |word: u32| word & Outcome::HARD == 0;
            let mut words = words.filter(|(was, is)| !(is_pinned && is_soft(*was) && is_soft(*is)));
            words.any(|(was, is)| way(&before.paths, &key, was) != way(&now.paths, &key, is))
        };
        // The gateway's own connections are not steered.
        let is_own = |connection: &Connection| self.ruleset.own.contains(&connection.source.0);
        let connections = tracked().into_iter();
        connections
            .filter(|connection| !is_own(connection) && moves(connection))
            .collect()
    }

    /// The connections that leave by an egress now, with its index.
    pub(super) fn steered_connections(&self) -> Vec<(Connection, u8)> {
        let mut found = if self.config.pinning.enabled {
            pinned_to_egresses(&self.datapath)
        } else {
            Vec::new()
        };
        found.extend(self.unpinned_connections());
        found
    }

    /// Those of them that nothing keeps on their way, as far as can be told: of which client a connection is is not known.
    pub(super) fn unpinned_connections(&self) -> Vec<(Connection, u8)> {
        let Ok(now) = self.ways_now() else {
            return Vec::new();
        };
        if self.config.pinning.enabled && !now.is_hard {
            return Vec::new();
        }
        let clients = Clients::of(&self.config);
        // The gateway's own connections are not steered.
        let is_own = |connection: &Connection| self.ruleset.own.contains(&connection.source.0);
        let connections = tracked().into_iter();
        let found = connections.filter(|connection| !is_own(connection));
        let found = found.filter_map(|connection| {
            let key = key_of(&connection);
            let mut words = clients.words(&now.words, &key);
            let egress = words.find_map(|word| way(&now.paths, &key, word))?;
            Some((connection.untranslated(), egress))
        });
        found.collect()
    }

    /// Forgets the flows that leave by an egress.
    pub(super) fn unpin_steered(&self) -> Result<()> {
        if !self.config.pinning.enabled {
            return Ok(());
        }
        let mut pins = self.datapath.pins()?;
        pins.retain(|pinned| pinned.pin.egress() != ORDINARY);
        self.datapath.unpin(&pins, false)
    }

    /// Forgets the flows of a client, in the table of flows and in connection tracking. Returns how many there were.
    pub(super) fn forget_flows(&self, client: IpAddr) -> Result<usize> {
        if !self.config.pinning.enabled {
            return Ok(0);
        }
        let mut pins = self.datapath.pins()?;
        pins.retain(|pinned| {
            let key = pinned.key.as_ref();
            key.is_some_and(|key| connection_of(key).source.0 == client)
        });
        self.datapath.unpin(&pins, false)?;
        let keys = pins.iter().filter_map(|pinned| pinned.key.as_ref());
        forget_beside(keys.map(connection_of).collect());
        Ok(pins.len())
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
        let now = Clock::of_kernel().now();
        let pins = self.datapath.pins()?;
        let table = self.path_table();
        let (idle, live): (Vec<_>, Vec<_>) = pins
            .into_iter()
            .partition(|pinned| is_idle(&table, pinned, now));
        self.datapath.unpin(&idle, true)?;
        self.datapath.tidy_flows()?;
        if self.path_table().pins_beyond_ruleset == 0 {
            return Ok(());
        }
        let table = self.datapath.live_table()?;
        let clients = Clients::of(&self.config);
        let is_beyond = |pinned: &Pinned| {
            let is_unsteered = |key: PinKey| !clients.words(&table, &key).all(steers);
            // Of one whose addresses are not known that cannot be told.
            let may_be = pinned.key.map_or(!pinned.is_client(), is_unsteered);
            pinned.pin.egress() != ORDINARY && may_be
        };
        if !live.iter().any(is_beyond) {
            self.datapath.cover_only_ruleset()?;
            self.failover.paths().end_pins_beyond_ruleset()?;
        }
        Ok(())
    }
}

fn is_idle(table: &PathTable, pinned: &Pinned, now: u32) -> bool {
    let idle = if pinned.is_client() {
        table.media_hold
    } else if pinned.is_tcp() {
        table.tcp_idle
    } else {
        table.udp_idle
    };
    // A packet may have come since `now` was taken.
    now.saturating_sub(pinned.pin.seen) > idle
}

/// Pins for connections that are on the ordinary path by the table before, or without one, and that the table `after` would
/// steer. Those that nobody tracks cannot be told. `known` have pins already.
pub(super) fn ordinary_pins(
    config: &Config,
    egresses: &[EgressState],
    epoch: u32,
    known: &HashSet<PinKey>,
    before: Option<&Before>,
    after: &[u32],
) -> Vec<(PinKey, Pin)> {
    let now = Clock::of_kernel().now();
    // One that has the address that we translate to is not on the ordinary path. Without our translation the address says nothing:
    // the ordinary path may lead over the egress's interface.
    let is_elsewhere = |connection: &Connection| {
        let mut egresses = egresses
            .iter()
            .filter(|egress| egress.config.is_masqueraded());
        let leaves_as = connection.leaves_as;
        leaves_as.is_some_and(|address| egresses.any(|egress| egress.has_address(address)))
    };
    let clients = Clients::of(config);
    let connections = tracked()
        .into_iter()
        .filter(|connection| !is_elsewhere(connection));
    let keys = connections.map(|connection| key_of(&connection));
    let pins = keys.filter_map(|key| {
        let was_steered =
            before.is_some_and(|before| clients.words(&before.words, &key).all(steers));
        let word = clients.words(after, &key).find(|word| steers(*word))?;
        let pin = Pin {
            seen: now,
            since: now,
            epoch: epoch & EPOCHS,
            way: Pin::way_of(ORDINARY, (word & Outcome::SET) as u16),
            state: State::Established as u32,
        };
        (!known.contains(&key) && !was_steered).then_some((key, pin))
    });
    pins.collect()
}

/// The connections that the kernel tracks; none if it does not say.
fn tracked() -> Vec<Connection> {
    conntrack::connections().unwrap_or_else(|error| {
        tracing::debug!("{error:#}");
        Vec::new()
    })
}

/// The connections of those with their egresses.
pub(super) fn connections(steered: Vec<(Connection, u8)>) -> Vec<Connection> {
    let connections = steered.into_iter().map(|(connection, _)| connection);
    connections.collect()
}

/// The pinned flows that leave by an egress, with its index.
pub(super) fn pinned_to_egresses(datapath: &DataPath) -> Vec<(Connection, u8)> {
    let pins = datapath.pins().unwrap_or_default();
    let steered = pins.iter().filter(|pinned| pinned.pin.egress() != ORDINARY);
    let pairs =
        steered.filter_map(|pinned| Some((connection_of(&pinned.key?), pinned.pin.egress())));
    pairs.collect()
}

/// The key of a connection's pin.
pub(super) fn key_of(connection: &Connection) -> PinKey {
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

/// The connection that a pin is of.
pub(super) fn connection_of(key: &PinKey) -> Connection {
    let kind = key[4];
    let address =
        |high, low| IpAddr::from(Destination::from_halves(kind & Flow::V6 != 0, high, low));
    let port = |shift: u32| (kind >> shift & 0xffff) as u16;
    Connection {
        source: (address(key[0], key[1]), port(48)),
        destination: (address(key[2], key[3]), port(32)),
        protocol: if kind & Flow::TCP != 0 { 6 } else { 17 },
        leaves_as: None,
        zone: 0,
    }
}

/// Returns whether the ruleset's word steers.
fn steers(word: u32) -> bool {
    by_preference(word).egress().is_some()
}

/// The egress that a flow takes by a word of the ruleset if nothing is known of it.
fn way(paths: &PathTable, key: &PinKey, word: u32) -> Option<u8> {
    let flow = Flow {
        source: (key[0], key[1]),
        destination: (key[2], key[3]),
        facts: key[4] | u64::from(word),
    };
    settle(&flow, paths, &NoPins).egress()
}

/// Places where a connection's client may be, as far as rules tell: behind which LAN interface, and in which VLAN. The connection does
/// not say.
struct Clients(Vec<(u32, u32)>);

impl Clients {
    fn of(config: &Config) -> Self {
        let rules = || config.policy.iter();
        let lans = if rules().any(|rule| !rule.lan.is_empty()) {
            config.lan.len()
        } else {
            1
        };
        let vlans = rules().flat_map(|rule| rule.vlan.iter().map(|vlan| u32::from(*vlan)));
        let vlans: BTreeSet<u32> = vlans.chain([0]).collect();
        let lans = (0..lans).map(|lan| u32::from(lan_number(lan)));
        let places = lans.flat_map(|lan| vlans.iter().map(move |vlan| (lan, *vlan)));
        Clients(places.collect())
    }

    /// Returns what the ruleset says about a flow, for each place that its client may be in.
    fn words<'a>(&'a self, table: &'a [u32], key: &'a PinKey) -> impl Iterator<Item = u32> + 'a {
        let is_v6 = key[4] & Flow::V6 != 0;
        let destination = Destination::from_halves(is_v6, key[2], key[3]);
        let transport = if key[4] & Flow::TCP != 0 {
            Transport::Tcp
        } else {
            Transport::Udp
        };
        let port = (key[4] >> 32 & 0xffff) as u16;
        self.0.iter().map(move |(lan, vlan)| {
            let client = breakout_common::condition::Client {
                source: Destination::from_halves(is_v6, key[0], key[1]),
                lan: *lan,
                vlan: *vlan,
            };
            table.lookup_word(destination, transport.key(port), || Some(client))
        })
    }
}
