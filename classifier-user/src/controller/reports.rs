//! Answers of the controller.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Result;
use breakout_common::path::Pin;
use breakout_common::table::GENERATION;
use ipnet::IpNet;
use sd_notify::NotifyState;

use super::egress::EgressState;
use super::pinning::connection_of;
use super::programs::displaced;
use super::{Controller, name_of, preference_names, summary, tell};
use crate::config::{Lan, XdpAttach};
use crate::control::metrics::Snapshot;
use crate::control::{
    EgressStatus, FlowsReport, FollowStatus, LanStatus, PinnedFlow, ReasonCount, RefusedList,
    RepliesCount, RulesetStatus, SetCount, SetReport, Stats, Status,
};
use crate::datapath::Clock;
use crate::explain::{Context, Explanation, Query, explain};
use crate::health::State;
use crate::links::conntrack::Connection;
use crate::list::{Kept, Record};
use crate::timestamp::{Timestamp, for_people};

impl Controller {
    pub(super) fn status(&self) -> Status {
        let steered = || {
            let rules = self.ruleset.rules.iter();
            rules.filter(|rule| rule.is_steered())
        };
        let prefixes = || steered().flat_map(|rule| &rule.prefixes);
        let mask = self.config.routing.mark_mask;
        let no_xdp = self.no_xdp();
        let egresses: BTreeMap<String, EgressStatus> = {
            let paths = self.failover.paths();
            let statuses = paths.egresses().iter().map(|egress| {
                let standings = [false, true].map(|v6| paths.health.standing(&egress.name, v6));
                (egress.name.clone(), egress.status(mask, no_xdp, standings))
            });
            statuses.collect()
        };
        let follow: Vec<FollowStatus> = self
            .sources
            .kept
            .iter()
            .map(|kept| self.followed(kept))
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            adopted: self.adopted,
            config: self.options.config.display().to_string(),
            ruleset: RulesetStatus {
                generation: self.generation,
                hash: self.ruleset_hash.clone(),
                steered_sets: steered().count(),
                steered_v4: prefixes().filter(|net| matches!(net, IpNet::V4(_))).count(),
                steered_v6: prefixes().filter(|net| matches!(net, IpNet::V6(_))).count(),
                table_bytes: self.datapath.table_bytes(),
            },
            alerts: self.alerts(&follow),
            shadow: self.config.shadow,
            bypass: self.persistent.bypass.clone(),
            list: self.lists.first().map(summary).unwrap_or_default(),
            lists: self.lists.iter().map(summary).collect(),
            follow,
            lan: self
                .config
                .lan
                .iter()
                .map(|lan| self.lan_status(lan))
                .collect(),
            programs: self.programs.clone(),
            nat: self.nat_status.clone(),
            egress: egresses,
            reasons: self.datapath.reasons().map_or_else(
                |_| Vec::new(),
                |reasons| {
                    let counted = reasons.into_iter().filter(|(_, count)| count.packets > 0);
                    counted
                        .map(|(reason, count)| ReasonCount::of(reason, count))
                        .collect()
                },
            ),
        }
    }

    /// Returns why XDP runs on no LAN interface, if so.
    fn no_xdp(&self) -> Option<&str> {
        let mut lans = self.lans.iter().filter(|lan| !lan.is_egress);
        if lans.clone().any(|lan| lan.xdp.is_some()) {
            return None;
        }
        let refused = lans.find_map(|lan| self.without_xdp.why(&lan.name));
        Some(refused.unwrap_or("no LAN interface has native XDP"))
    }

    fn lan_status(&self, lan: &Lan) -> LanStatus {
        let plan = self
            .lans
            .iter()
            .find(|plan| plan.name == lan.interface && !plan.is_egress);
        LanStatus {
            interface: lan.interface.clone(),
            xdp: plan.and_then(|plan| plan.xdp).map(|xdp| match xdp {
                XdpAttach::Native => "native".to_owned(),
                XdpAttach::Generic => "generic".to_owned(),
            }),
            why_no_xdp: self
                .without_xdp
                .why(&lan.interface)
                .filter(|_| plan.is_some_and(|plan| plan.xdp.is_none()))
                .map(str::to_owned),
            problem: self.missing_lans.get(&lan.interface).cloned(),
        }
    }

    /// Returns how the list of an instance is followed.
    fn followed(&self, kept: &Kept) -> FollowStatus {
        let now = Timestamp::now();
        let age = kept.schedule.age(now);
        FollowStatus {
            instance: kept.instance().to_string(),
            source: self.sources.name(),
            age_seconds: age.map(|age| age.as_secs()),
            is_stale: age.is_some_and(|age| age > self.config.list.stale_after.0),
            last_attempt: kept.schedule.last_attempt,
            last_success: kept.schedule.last_success,
            failures: kept.schedule.failures,
            last_error: self
                .sources
                .problem
                .clone()
                .or_else(|| kept.schedule.last_error.clone()),
            next: kept.schedule.next,
            held: kept.state().held.as_ref().map(|held| held.since),
            waiting: kept.waiting().map(Record::name),
            refused: kept.refused().map(|record| RefusedList {
                version: record.name(),
                why: record.refusal(),
                agrees_with: record.agrees_with.clone(),
            }),
            withdrawn: kept.state().withdrawn.len(),
            damaged: kept.damaged().to_vec(),
        }
    }

    fn alerts(&self, follow: &[FollowStatus]) -> Vec<String> {
        let mut alerts = Vec::new();
        if let Some(bypass) = &self.persistent.bypass {
            alerts.push(match bypass.until {
                Some(until) => format!(
                    "BYPASS: nothing is steered until {until} (since {})",
                    bypass.since
                ),
                None => format!(
                    "BYPASS: nothing is steered until `breakout bypass off` (since {})",
                    bypass.since
                ),
            });
        }
        if self.config.shadow {
            alerts.push("SHADOW: nothing is steered, it is only shown what would be".to_owned());
        }
        if self.config.list.is_plain() && self.sources.is_followed() {
            alerts.push(format!(
                "the lists are fetched without TLS from {}: anybody on the way there can change them",
                self.sources.name()
            ));
        }
        if let Some(problem) = &self.sources.problem {
            alerts.push(format!("the lists are not followed: {problem}"));
        }
        let paths = self.failover.paths();
        for egress in paths.egresses() {
            for v6 in [false, true]
                .into_iter()
                .filter(|v6| egress.has_family(*v6))
            {
                let standing = paths.health.standing(&egress.name, v6);
                if let Some(standing) = standing.filter(|standing| standing.state != State::Up) {
                    alerts.push(format!(
                        "egress {} is {} for {}: {}",
                        egress.name,
                        standing.state.name(),
                        if v6 { "IPv6" } else { "IPv4" },
                        standing.why.unwrap_or_default()
                    ));
                }
            }
        }
        drop(paths);
        if !self.failover.is_alive() {
            alerts.push(
                "fail-over does not answer: restart breakout, and report it with breakout sysdump"
                    .to_owned(),
            );
        }
        alerts.extend(self.missing_lans.values().cloned());
        alerts.extend(self.unsaved.as_ref().map(ToString::to_string));
        alerts.extend(self.sources.unsaved());
        alerts.extend(self.leaving.alert.clone());
        alerts.extend(self.obstacles.alerts());
        alerts.extend(self.translation.alert().cloned());
        alerts.extend(self.port_alert());
        for program in self.programs.iter().filter(|program| !program.in_place) {
            alerts.push(displaced(program));
        }
        for list in follow {
            let instance = &list.instance;
            if list.is_stale {
                let age = for_people(Duration::from_secs(list.age_seconds.unwrap_or_default()));
                alerts.push(format!(
                    "list {instance} is stale: not known to be the newest for {age}"
                ));
            }
            if let Some(refused) = &list.refused
                && let Some(before) = &refused.agrees_with
            {
                alerts.push(format!(
                    "TWO LISTS IN A ROW WERE REFUSED that agree: {before} and {instance} {}. The list in force grows old; look at \
                     breakout list diff, and if it is right: breakout list accept {instance}/{}. Refused because: {}",
                    refused.version, refused.version, refused.why
                ));
            } else if let Some(refused) = &list.refused {
                alerts.push(format!(
                    "list {instance} {} is refused: {}",
                    refused.version, refused.why
                ));
            }
            if let Some(held) = list.held {
                alerts.push(format!(
                    "list {instance} is held since a rollback at {held}"
                ));
            }
        }
        alerts
    }

    pub(super) fn stats(&self) -> Result<Stats> {
        let counters = self.datapath.counters()?;
        let reasons = counters.reasons.iter();
        let reasons = reasons.map(|(reason, count)| ReasonCount::of(*reason, *count));
        // What is withdrawn of a set counts as the set.
        let mut seen = HashSet::new();
        let rules = self
            .ruleset
            .rules
            .iter()
            .filter(|rule| seen.insert(rule.slot));
        let sets = rules.map(|rule| SetCount {
            set: SetReport::from(rule),
            egress: preference_names(&self.persistent.preferences, rule),
            count: counters
                .sets
                .get(usize::from(rule.slot))
                .copied()
                .unwrap_or_default(),
        });
        Ok(Stats {
            generation: self.generation,
            reasons: reasons.collect(),
            endpoint_sets: sets.collect(),
            replies: RepliesCount {
                redirected: counters.replies[0],
                by_kernel: counters.replies[1],
            },
        })
    }

    /// The flows that are pinned, those with the latest packets first.
    pub(super) fn flows(&self, limit: usize) -> Result<FlowsReport> {
        let enabled = self.config.pinning.enabled;
        let (pinned, clients) = self.pin_counts()?;
        let mut pins = if enabled && limit > 0 {
            self.datapath.pins()?
        } else {
            Vec::new()
        };
        pins.retain(|pinned| pinned.key.is_some());
        // Those that are listed, before they are put in order.
        if pins.len() > limit {
            pins.select_nth_unstable_by_key(limit, |pinned| Reverse(pinned.pin.seen));
            pins.truncate(limit);
        }
        pins.sort_by_key(|pinned| Reverse(pinned.pin.seen));
        let clock = Clock::of_kernel();
        let now = clock.now();
        let ago = |time: u32| clock.seconds(now.saturating_sub(time));
        let ports = self.public_ports();
        let egresses = self.egresses();
        let flows = pins.iter().filter_map(|pinned| {
            let connection = connection_of(&pinned.key?);
            let mut flow = self.pinned_flow(&connection, &pinned.pin, ago);
            if let (SocketAddr::V4(client), SocketAddr::V4(remote)) =
                (flow.source, flow.destination)
                && let Some(port) = ports.get(&(client, remote, connection.protocol == 6))
            {
                let mut egresses = egresses.iter();
                let egress = egresses.find(|egress| egress.index == pinned.pin.egress());
                let address = egress.and_then(EgressState::public_address);
                flow.public = address.map(|address| SocketAddrV4::new(address, *port));
            }
            Some(flow)
        });
        Ok(FlowsReport {
            enabled,
            pinned,
            clients,
            size: self.config.pinning.size,
            flows: flows.collect(),
        })
    }

    /// Returns how many flows, and how many clients' media, are pinned.
    fn pin_counts(&self) -> Result<(usize, usize)> {
        if !self.config.pinning.enabled {
            return Ok((0, 0));
        }
        Ok(self.datapath.flows()?.counts())
    }

    fn pinned_flow(
        &self,
        connection: &Connection,
        pin: &Pin,
        ago: impl Fn(u32) -> u32,
    ) -> PinnedFlow {
        let rule = self.ruleset.rule(pin.set());
        PinnedFlow {
            proto: if connection.protocol == 6 {
                "tcp"
            } else {
                "udp"
            }
            .to_owned(),
            source: connection.source.into(),
            destination: connection.destination.into(),
            egress: name_of(&self.persistent.egresses, pin.egress()),
            endpoint_set: rule.map(|rule| rule.key.to_string()),
            age_seconds: ago(pin.since),
            idle_seconds: ago(pin.seen),
            public: None,
        }
    }

    /// Returns what metrics are made of.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        let (flows, clients) = self.pin_counts()?;
        Ok(Snapshot {
            status: self.status(),
            stats: self.stats()?,
            pinned_flows: flows as u64,
            pinned_clients: clients as u64,
            pins_size: self.config.pinning.size.into(),
            pin_events: self.datapath.pin_events()?,
        })
    }

    /// Tells the service manager in a line how things are, if that has changed.
    pub(super) fn tell_status(&mut self) {
        let status = self.status();
        let egresses: Vec<String> = (status.egress.iter())
            .map(|(name, egress)| {
                let standings = [&egress.v4, &egress.v6]
                    .into_iter()
                    .filter_map(|way| way.standing.as_ref());
                let best = standings
                    .map(|standing| standing.state)
                    .min()
                    .unwrap_or(State::Down);
                format!("{name} {}", best.name())
            })
            .collect();
        let text = format!(
            "generation {}, {} sets steered; {}{}",
            self.generation,
            status.ruleset.steered_sets,
            egresses.join(", "),
            status
                .alerts
                .first()
                .map(|alert| format!("; {alert}"))
                .unwrap_or_default()
        );
        if text != self.told {
            tell(&[NotifyState::Status(&text)]);
            self.told = text;
        }
    }

    /// Asks the table that the kernel holds now.
    pub(super) fn explain(&self, query: Query) -> Result<Explanation> {
        let table = self.datapath.live_table()?;
        let paths = self.path_table();
        let context = Context {
            ruleset: &self.ruleset,
            preferences: &self.persistent.preferences,
            lists: &self.lists,
            generation: table.get(GENERATION as usize).copied(),
            paths: Some((&paths, &self.persistent.egresses)),
            table: &table,
        };
        Ok(explain(query, &context))
    }
}
