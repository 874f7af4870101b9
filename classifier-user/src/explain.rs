//! Why a flow goes where it goes: asks a table by the same function as the kernel, and the rules for the words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use breakout_common::classify::decide;
use breakout_common::packet::walk;
use breakout_common::table::Transport;
use breakout_common::verdict::{Decision, Reason, Verdict};
use serde::{Deserialize, Serialize};

use crate::controller::egress_name;
use crate::ruleset::Ruleset;

/// What is asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Query {
    /// The destination address.
    pub destination: IpAddr,
    /// TCP or UDP.
    pub proto: Proto,
    /// The destination port.
    pub port: u16,
}

/// A transport protocol as people type it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<Proto> for Transport {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Tcp => Transport::Tcp,
            Proto::Udp => Transport::Udp,
        }
    }
}

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The table in the kernel.
    Live,
    /// A table compiled for the answer.
    Offline,
}

/// The endpoint set that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReport {
    /// Its instance.
    pub instance: String,
    /// Its id.
    pub id: u32,
    /// Its service area.
    pub service_area: String,
    /// Its category.
    pub category: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The destination asked for.
    pub destination: IpAddr,
    /// The protocol asked for.
    pub proto: Proto,
    /// The port asked for.
    pub port: u16,
    /// `steer` or `pass`.
    pub verdict: String,
    /// The reason's stable name.
    pub reason: String,
    /// The reason in a sentence.
    pub description: String,
    /// The egress steered to.
    pub egress: Option<String>,
    /// The prefix that decided; for `no_port`, the longest one that covers the destination.
    pub prefix: Option<String>,
    /// The protocol and port range that matched.
    pub ports: Option<String>,
    /// The endpoint set that decided.
    pub endpoint_set: Option<SetReport>,
    /// Microsoft's version of the list, where it is known.
    pub list_version: Option<String>,
    /// Where the list came from.
    pub list_source: String,
    /// The ruleset's generation; none offline.
    pub generation: Option<u32>,
    /// Live or offline.
    pub source: Source,
}

/// What a table is asked with.
pub struct Context<'a> {
    /// The table's words.
    pub table: &'a [u32],
    /// The ruleset that the table was compiled from.
    pub ruleset: &'a Ruleset,
    /// The egresses' indices, by name.
    pub egresses: &'a BTreeMap<String, u8>,
    /// Version and source of the list.
    pub list: (Option<String>, String),
    /// The table's generation, if it is live.
    pub generation: Option<u32>,
    /// Whether an egress has a way out for IPv4 and IPv6; `None` for offline answers.
    pub ways_out: Option<&'a [(bool, bool)]>,
}

/// Explains one destination, protocol and port.
pub fn explain(query: Query, context: &Context<'_>) -> Explanation {
    let frame = frame(query);
    let mut decision = match walk(frame.as_slice()) {
        Ok(headers) => decide(context.table, &headers),
        Err(stop) => Decision::pass(stop.reason()),
    };
    if let (Verdict::Steer(index), Some(ways_out)) = (decision.verdict, context.ways_out) {
        let (v4, v6) = ways_out
            .get(usize::from(index))
            .copied()
            .unwrap_or_default();
        if !(if query.destination.is_ipv4() { v4 } else { v6 }) {
            decision.verdict = Verdict::Pass;
            decision.reason = Reason::EgressDown;
        }
    }
    let ruleset = context.ruleset;
    let found = ruleset.find(query.destination, query.proto.into(), query.port);
    let found = found.filter(|found| Some(found.rule.slot) == decision.set);
    let covering = || match decision.reason {
        Reason::NoPort => ruleset.covering_prefix(query.destination),
        _ => None,
    };
    let set = decision.set.and_then(|slot| ruleset.rule(slot));
    let egress = match decision.verdict {
        Verdict::Steer(index) => egress_name(context.egresses, index),
        Verdict::Pass => None,
    };
    Explanation {
        destination: query.destination,
        proto: query.proto,
        port: query.port,
        verdict: decision.verdict.name().to_owned(),
        reason: decision.reason.name().to_owned(),
        description: decision.reason.description().to_owned(),
        egress,
        prefix: found
            .map(|found| found.prefix)
            .or_else(covering)
            .map(|prefix| prefix.to_string()),
        ports: found.map(|found| found.ports.to_string()),
        endpoint_set: set.map(|rule| SetReport {
            instance: rule.key.instance.to_string(),
            id: rule.key.id,
            service_area: rule.service_area.clone(),
            category: rule.category.to_string(),
        }),
        list_version: context.list.0.clone(),
        list_source: context.list.1.clone(),
        generation: context.generation,
        source: match context.generation {
            Some(_) => Source::Live,
            None => Source::Offline,
        },
    }
}

/// The shortest packet that the question stands for, with zero MAC addresses.
pub fn frame(query: Query) -> Vec<u8> {
    let (protocol, transport_len) = match query.proto {
        Proto::Tcp => (6u8, 20u8),
        Proto::Udp => (17, 8),
    };
    let mut frame = vec![0u8; 12];
    match query.destination {
        IpAddr::V4(destination) => {
            frame.extend([0x08, 0x00]);
            frame.extend([
                0x45,
                0,
                0,
                20 + transport_len,
                0,
                0,
                0,
                0,
                64,
                protocol,
                0,
                0,
            ]);
            frame.extend([0; 4]);
            frame.extend(destination.octets());
        }
        IpAddr::V6(destination) => {
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0, 0, transport_len, protocol, 64]);
            frame.extend([0; 16]);
            frame.extend(destination.octets());
        }
    }
    frame.extend([0, 0]);
    frame.extend(query.port.to_be_bytes());
    frame.resize(frame.len() + usize::from(transport_len) - 4, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{Instance, embedded};
    use crate::policy::Policy;
    use crate::ruleset::{Slots, compile};

    fn ask(proto: Proto, port: u16, destination: &str) -> Explanation {
        let list = embedded(Instance::Worldwide);
        let policy = Policy { egress: 0 };
        let ruleset = Ruleset::new(&[list], &policy, &mut Slots::default()).unwrap();
        let image = compile(&ruleset).unwrap();
        explain(
            Query {
                destination: destination.parse().unwrap(),
                proto,
                port,
            },
            &Context {
                table: image.words(),
                ruleset: &ruleset,
                egresses: &BTreeMap::from([("local".to_owned(), 0)]),
                list: (None, "test".to_owned()),
                generation: None,
                ways_out: None,
            },
        )
    }

    #[test]
    fn golden_verdicts() {
        use Proto::{Tcp, Udp};
        for (proto, port, destination, verdict, set) in [
            (Tcp, 443, "52.98.1.1", "steer", Some(1)),
            (Tcp, 993, "52.98.1.1", "pass", Some(2)),
            (Udp, 443, "52.98.1.1", "steer", Some(1)),
            (Udp, 3478, "52.113.0.1", "steer", Some(11)),
            (Tcp, 443, "52.113.0.1", "pass", Some(12)),
            (Tcp, 443, "52.100.0.1", "pass", Some(9)),
            (Udp, 3482, "52.113.0.1", "pass", None),
            (Udp, 3478, "13.107.64.1", "pass", None),
            (Tcp, 443, "20.190.128.1", "pass", Some(56)),
            (Udp, 3479, "2603:1063:3ff:ffff::1", "steer", Some(11)),
            (Udp, 3479, "2603:1063:400::1", "pass", None),
        ] {
            let answer = ask(proto, port, destination);
            assert_eq!(answer.verdict, verdict, "{proto:?} {port} {destination}");
            let id = answer.endpoint_set.map(|set| set.id);
            assert_eq!(id, set, "{proto:?} {port} {destination}");
        }
    }

    #[test]
    fn the_answer_names_what_decided() {
        let answer = ask(Proto::Udp, 3479, "52.113.0.1");
        assert_eq!(answer.prefix.as_deref(), Some("52.112.0.0/14"));
        assert_eq!(answer.ports.as_deref(), Some("UDP 3478-3481"));
        assert_eq!(answer.egress.as_deref(), Some("local"));
        let other_port = ask(Proto::Tcp, 22, "52.113.0.1");
        assert_eq!(other_port.reason, "no_port");
        assert_eq!(other_port.prefix.as_deref(), Some("52.112.0.0/14"));
        assert_eq!(ask(Proto::Tcp, 443, "1.1.1.1").reason, "no_prefix");
        assert_eq!(
            ask(Proto::Udp, 443, "255.255.255.255").reason,
            "group_address"
        );
    }
}
