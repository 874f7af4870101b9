//! Explanation of a flow's path: looks it up by the same function as the kernel, and names the rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use breakout_common::classify::{by_preference, decide_unpinned, rule};
use breakout_common::condition::Client;
use breakout_common::packet::walk;
use breakout_common::path::PathTable;
use breakout_common::table::Transport;
use breakout_common::verdict::{Decision, Reason};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::SetReport;
use crate::controller::name_of;
use crate::list::List;
use crate::ruleset::Ruleset;
use crate::timestamp::Timestamp;

/// Question.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Query {
    /// The destination address.
    pub destination: IpAddr,
    /// TCP or UDP.
    pub proto: Proto,
    /// The destination port.
    pub port: u16,
    /// The client's address, where rules ask for it.
    #[serde(default)]
    pub from: Option<IpAddr>,
    /// The number of the LAN interface that the client is behind.
    #[serde(default)]
    pub lan: u32,
    /// The client's VLAN, where rules ask for it.
    #[serde(default)]
    pub vlan: Option<u16>,
}

impl Query {
    /// A question for any client.
    pub fn new(destination: IpAddr, proto: Proto, port: u16) -> Self {
        Query {
            destination,
            proto,
            port,
            from: None,
            lan: 0,
            vlan: None,
        }
    }

    /// The client that is asked for: one without an address is in no source prefix but those that hold every address.
    pub fn client(&self) -> Client {
        let unspecified: IpAddr = match self.destination {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Client {
            source: self.from.unwrap_or(unspecified).into(),
            lan: self.lan,
            vlan: self.vlan.unwrap_or_default().into(),
        }
    }
}

/// A transport protocol as people type it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
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

/// Source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The table in the kernel.
    Live,
    /// A table compiled for the answer.
    Offline,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The egress steered to now; offline, what the rule prefers.
    pub egress: Option<String>,
    /// Preference of the rule.
    pub preference: Option<String>,
    /// The prefix that decided; for `no_port`, the longest one that covers the destination.
    pub prefix: Option<String>,
    /// The protocol and port range that matched.
    pub ports: Option<String>,
    /// The endpoint set that decided.
    pub endpoint_set: Option<SetReport>,
    /// The policy's rule that decided; none if no rule is about the packet.
    pub rule: Option<String>,
    /// True if another client's packet might be decided otherwise, because a rule asks for sources, LAN, VLAN or share.
    pub depends_on_client: bool,
    /// If the prefix is announced for later: from when on Microsoft uses it.
    pub pending_until: Option<Timestamp>,
    /// If Microsoft no longer publishes it: since when.
    pub withdrawn_since: Option<Timestamp>,
    /// Microsoft's version of the list, where it is known.
    pub list_version: Option<String>,
    /// Source of the list.
    pub list_source: String,
    /// The ruleset's generation; none offline.
    pub generation: Option<u32>,
    /// Live or offline.
    pub source: Source,
}

/// Context of a question to a table.
pub struct Context<'a> {
    /// The table's words.
    pub table: &'a [u32],
    /// The ruleset that the table was compiled from.
    pub ruleset: &'a Ruleset,
    /// The preferences' indices, by their texts.
    pub preferences: &'a BTreeMap<String, u8>,
    /// The lists.
    pub lists: &'a [List],
    /// The table's generation, if it is live.
    pub generation: Option<u32>,
    /// The choices in force and the egresses' indices, by name; `None` for offline answers.
    pub paths: Option<(&'a PathTable, &'a BTreeMap<String, u8>)>,
}

/// Explains one destination, protocol and port.
pub fn explain(query: Query, context: &Context<'_>) -> Explanation {
    let frame = frame(query);
    let client = query.client();
    let mut preference = None;
    let decision = match walk(frame.as_slice()) {
        Ok(mut headers) => {
            headers.vlan = client.vlan;
            let word = rule(context.table, frame.as_slice(), &headers, client.lan);
            preference = by_preference(word).egress();
            match context.paths {
                Some((paths, _)) => decide_unpinned(frame.as_slice(), &headers, word, paths),
                None => by_preference(word),
            }
        }
        Err(stop) => Decision::pass(stop.reason()),
    };
    let ruleset = context.ruleset;
    let found = ruleset.find(query.destination, query.proto.into(), query.port, &client);
    let found = found.filter(|found| Some(found.set.rule.slot) == decision.set());
    let choice = found.and_then(|found| found.choice);
    let covering = || match decision.reason() {
        Reason::NoPort => ruleset.covering_prefix(query.destination),
        _ => None,
    };
    let set = decision.set().and_then(|slot| ruleset.rule(slot));
    let egress = decision.egress();
    let preference = preference.and_then(|index| name_of(context.preferences, index));
    let egress = match context.paths {
        Some((_, egresses)) => egress.and_then(|index| name_of(egresses, index)),
        None => preference.clone().filter(|_| egress.is_some()),
    };
    let instance = set.and_then(|rule| rule.key.instance());
    let list = context
        .lists
        .iter()
        .find(|list| Some(list.instance) == instance);
    let list = list.or(context.lists.first());
    let prefix = found.map(|found| found.set.prefix);
    Explanation {
        destination: query.destination,
        proto: query.proto,
        port: query.port,
        verdict: decision.verdict().name().to_owned(),
        reason: decision.reason().name().to_owned(),
        description: decision.reason().description().to_owned(),
        egress,
        preference,
        prefix: prefix.or_else(covering).map(|prefix| prefix.to_string()),
        ports: found.map(|found| found.set.ports.to_string()),
        endpoint_set: set.map(SetReport::from),
        rule: choice.and_then(|choice| ruleset.policy.get(usize::from(choice.policy)).cloned()),
        depends_on_client: found.is_some_and(|found| found.depends_on_client),
        pending_until: list.zip(set).and_then(|(list, rule)| {
            let mut pending = list
                .pending_at(Timestamp::now())
                .filter(|pending| Some(pending.id) == rule.key.id());
            let text = prefix?.to_string();
            pending
                .find(|pending| pending.added.contains(&text))
                .map(|pending| pending.effective)
        }),
        withdrawn_since: found.and_then(|found| found.set.rule.withdrawn),
        list_version: list.and_then(|list| list.version.clone()),
        list_source: list.map(|list| list.source.clone()).unwrap_or_default(),
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
            match query.client().source.into() {
                IpAddr::V4(source) => frame.extend(source.octets()),
                IpAddr::V6(_) => frame.extend([0; 4]),
            }
            frame.extend(destination.octets());
        }
        IpAddr::V6(destination) => {
            frame.extend([0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0, 0, transport_len, protocol, 64]);
            match query.client().source.into() {
                IpAddr::V4(_) => frame.extend([0; 16]),
                IpAddr::V6(source) => frame.extend(source.octets()),
            }
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
        let (policy, now) = (Policy::optimize(0), Timestamp::default());
        let ruleset = Ruleset::new(&list.sets, &policy, &mut Slots::default(), now).unwrap();
        let image = compile(&ruleset).unwrap();
        explain(
            Query::new(destination.parse().unwrap(), proto, port),
            &Context {
                table: image.words(),
                ruleset: &ruleset,
                preferences: &BTreeMap::from([("local".to_owned(), 0)]),
                lists: &[list],
                generation: None,
                paths: None,
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
            let id = answer.endpoint_set.and_then(|set| set.id);
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
