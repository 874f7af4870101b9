//! Metrics for Prometheus: which there are.

use std::fmt;

use breakout_common::path::PIN_EVENTS;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use serde::{Deserialize, Serialize};

use super::exposition::{Families, Sample, Value};
use super::{Stats, Status, WayOut};
use crate::health::State;

/// Everything that metrics are made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The state.
    pub status: Status,
    /// The counters.
    pub stats: Stats,
    /// Flows that are pinned now.
    pub pinned_flows: u64,
    /// Clients whose media has a way now, which takes a pin too.
    pub pinned_clients: u64,
    /// Number of pins that there is room for.
    pub pins_size: u64,
    /// Events of pins, by [`PinEvent`](breakout_common::path::PinEvent).
    pub pin_events: [u64; PIN_EVENTS],
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has floats only")]
fn float(number: u64) -> f64 {
    number as f64
}

fn one(number: f64) -> [Sample; 1] {
    [(Vec::new(), number)]
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let families = &mut Families(encoder);
        self.encode_counts(families)?;
        self.encode_lists(families)?;
        self.encode_egresses(families)?;
        self.encode_nat(families)?;
        self.encode_pins(families)
    }
}

impl Snapshot {
    fn encode_counts(&self, families: &mut Families<'_>) -> fmt::Result {
        let reasons = || {
            self.stats.reasons.iter().map(|reason| {
                let labels = vec![
                    ("verdict", reason.verdict.clone()),
                    ("reason", reason.reason.clone()),
                ];
                (labels, reason.count)
            })
        };
        let sets = || {
            self.stats.endpoint_sets.iter().map(|set| {
                let labels = vec![
                    ("instance_name", set.set.instance.clone()),
                    ("set", set.set.id.map_or(String::new(), |id| id.to_string())),
                    ("area", set.set.service_area.clone()),
                    ("category", set.set.category.clone()),
                ];
                (labels, set.count)
            })
        };
        families.put(
            "packets",
            "Packets from LAN interfaces by verdict and reason",
            None,
            Value::Counter,
            reasons().map(|(labels, count)| (labels, float(count.packets))),
        )?;
        families.put(
            "traffic",
            "The same in bytes of frames",
            Some(&Unit::Bytes),
            Value::Counter,
            reasons().map(|(labels, count)| (labels, float(count.bytes))),
        )?;
        let replies = [
            ("programs", self.stats.replies.redirected),
            ("kernel", self.stats.replies.by_kernel),
        ];
        families.put(
            "reply_packets",
            "Replies of steered flows by egresses with return = true, and of translated flows, by who forwarded them",
            None,
            Value::Counter,
            replies.map(|(by, count)| (vec![("by", by.to_owned())], float(count.packets))),
        )?;
        families.put(
            "endpoint_set_packets",
            "Packets by the endpoint set that decided",
            None,
            Value::Counter,
            sets().map(|(labels, count)| (labels, float(count.packets))),
        )?;
        families.put(
            "endpoint_set_traffic",
            "The same in bytes of frames",
            Some(&Unit::Bytes),
            Value::Counter,
            sets().map(|(labels, count)| (labels, float(count.bytes))),
        )
    }

    fn encode_lists(&self, families: &mut Families<'_>) -> fmt::Result {
        let status = &self.status;
        let version = vec![("version", status.version.clone())];
        families.put(
            "build_info",
            "The controller's version",
            None,
            Value::Gauge,
            [(version, 1.0)],
        )?;
        families.put(
            "uptime",
            "Time since the controller started",
            Some(&Unit::Seconds),
            Value::Gauge,
            one(float(status.uptime_seconds)),
        )?;
        let ruleset = &status.ruleset;
        families.put(
            "ruleset_generation",
            "Generation of the ruleset in force",
            None,
            Value::Gauge,
            one(ruleset.generation.into()),
        )?;
        let prefixes = [("ipv4", ruleset.steered_v4), ("ipv6", ruleset.steered_v6)];
        families.put(
            "ruleset_steered_prefixes",
            "Prefixes that are steered",
            None,
            Value::Gauge,
            prefixes
                .map(|(family, count)| (vec![("family", family.to_owned())], float(count as u64))),
        )?;
        let switches = [
            ("bypass", status.bypass.is_some()),
            ("shadow", status.shadow),
        ];
        families.put(
            "steering_suspended",
            "1 while nothing is steered because an operator wants it so",
            None,
            Value::Gauge,
            switches.map(|(by, is_on)| (vec![("by", by.to_owned())], f64::from(u8::from(is_on)))),
        )?;
        families.put(
            "program_in_place",
            "1 if the program is attached where it belongs, 0 if somebody has detached or replaced it",
            None,
            Value::Gauge,
            status.programs.iter().map(|program| {
                let labels = vec![
                    ("interface", program.interface.clone()),
                    ("hook", program.hook.clone()),
                ];
                (labels, f64::from(u8::from(program.in_place)))
            }),
        )?;
        families.put(
            "lan_present",
            "1 if the LAN interface is there, 0 if nothing is steered from it because it is not",
            None,
            Value::Gauge,
            status.lan.iter().map(|lan| {
                let labels = vec![("interface", lan.interface.clone())];
                (labels, f64::from(u8::from(lan.problem.is_none())))
            }),
        )?;
        families.put(
            "alerts",
            "Things that need an operator's attention",
            None,
            Value::Gauge,
            one(float(status.alerts.len() as u64)),
        )?;
        let lists = || {
            status
                .follow
                .iter()
                .map(|list| (vec![("instance_name", list.instance.clone())], list))
        };
        families.put(
            "list_age",
            "Time since the list was last known to be the newest",
            Some(&Unit::Seconds),
            Value::Gauge,
            lists().filter_map(|(labels, list)| Some((labels, float(list.age_seconds?)))),
        )?;
        families.put(
            "list_stale",
            "1 if that is longer ago than stale_after",
            None,
            Value::Gauge,
            lists().map(|(labels, list)| (labels, f64::from(u8::from(list.is_stale)))),
        )?;
        families.put(
            "list_refused",
            "1 if the newest list was refused",
            None,
            Value::Gauge,
            lists().map(|(labels, list)| (labels, f64::from(u8::from(list.refused.is_some())))),
        )?;
        families.put(
            "list_fetch_failures",
            "Attempts to fetch the list that have failed since the last one that succeeded",
            None,
            Value::Gauge,
            lists().map(|(labels, list)| (labels, list.failures.into())),
        )
    }

    /// Every egress and address family that has been looked at, with its labels.
    fn ways(&self) -> impl Iterator<Item = (Vec<(&'static str, String)>, &WayOut)> {
        self.status.egress.iter().flat_map(|(name, egress)| {
            [("ipv4", &egress.v4), ("ipv6", &egress.v6)].map(|(family, way)| {
                (
                    vec![("egress", name.clone()), ("family", family.to_owned())],
                    way,
                )
            })
        })
    }

    fn encode_egresses(&self, families: &mut Families<'_>) -> fmt::Result {
        let standings = || {
            self.ways()
                .filter_map(|(labels, way)| Some((labels, way.standing.as_ref()?)))
        };
        let states = [State::Up, State::Degraded, State::Down];
        let with = |mut labels: Vec<(&'static str, String)>, name: &'static str, value: &str| {
            labels.push((name, value.to_owned()));
            labels
        };
        families.put(
            "egress_state",
            "1 for the state that the egress is in",
            None,
            Value::Gauge,
            standings().flat_map(|(labels, standing)| {
                states.map(|state| {
                    let is_it = f64::from(u8::from(standing.state == state));
                    (with(labels.clone(), "state", state.name()), is_it)
                })
            }),
        )?;
        families.put(
            "egress_usable",
            "1 if a class of traffic may use the egress",
            None,
            Value::Gauge,
            standings().flat_map(|(labels, standing)| {
                [("standard", standing.standard), ("media", standing.media)].map(
                    |(class, usable)| {
                        (
                            with(labels.clone(), "class", class),
                            f64::from(u8::from(usable)),
                        )
                    },
                )
            }),
        )?;
        families.put(
            "egress_score",
            "How good the egress is, from 0 to 10",
            None,
            Value::Gauge,
            standings().map(|(labels, standing)| (labels, standing.score)),
        )?;
        let answers =
            || standings().filter_map(|(labels, standing)| Some((labels, standing.answers?)));
        families.put(
            "egress_answers",
            "Packets that came back to clients, to flows of the egress",
            None,
            Value::Counter,
            answers().map(|(labels, answers)| (labels, float(answers.packets))),
        )?;
        families.put(
            "egress_flows_answered",
            "Flows of the egress that were answered",
            None,
            Value::Counter,
            answers().map(|(labels, answers)| (labels, float(answers.flows))),
        )?;
        let measures = || {
            standings().filter_map(|(labels, standing)| Some((labels, standing.measure.as_ref()?)))
        };
        families.put(
            "egress_probe_loss",
            "Share of probes without an answer, as a moving average",
            Some(&Unit::Other("ratio".to_owned())),
            Value::Gauge,
            measures().map(|(labels, measure)| (labels, measure.loss)),
        )?;
        families.put(
            "egress_probe_latency",
            "Time until probes are answered, as a moving average",
            Some(&Unit::Seconds),
            Value::Gauge,
            measures().filter_map(|(labels, measure)| Some((labels, measure.latency_ms? / 1000.0))),
        )
    }

    fn encode_nat(&self, families: &mut Families<'_>) -> fmt::Result {
        let nat = self.status.nat.as_ref();
        families.put(
            "nat_flows",
            "Flows that have a public port",
            None,
            Value::Gauge,
            nat.map(|nat| (Vec::new(), float(nat.flows as u64))),
        )?;
        let busiest = nat.and_then(|nat| Some((nat.busiest.as_ref()?.ports_used, nat.ports)));
        families.put(
            "nat_ports_used",
            "Share of the public ports that are taken for the remote that has the fewest left",
            Some(&Unit::Other("ratio".to_owned())),
            Value::Gauge,
            busiest.map(|(flows, ports)| (Vec::new(), f64::from(flows) / f64::from(ports))),
        )
    }

    fn encode_pins(&self, families: &mut Families<'_>) -> fmt::Result {
        families.put(
            "pinned_flows",
            "Flows that are pinned",
            None,
            Value::Gauge,
            one(float(self.pinned_flows)),
        )?;
        families.put(
            "pinned_clients",
            "Clients whose media has a way, which takes a pin each",
            None,
            Value::Gauge,
            one(float(self.pinned_clients)),
        )?;
        families.put(
            "pins_size",
            "Pins that there can be",
            None,
            Value::Gauge,
            one(float(self.pins_size)),
        )?;
        let events = ["pinned", "moved", "failed", "unknown"]
            .into_iter()
            .zip(self.pin_events);
        families.put(
            "pin_events",
            "Flows that were pinned, moved because their way did not work, could not be pinned, or were forgotten",
            None,
            Value::Counter,
            events.map(|(event, count)| (vec![("event", event.to_owned())], float(count))),
        )
    }
}
