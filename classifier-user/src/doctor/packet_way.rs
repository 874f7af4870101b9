//! Simulation of nftables on a packet: its chains are gone through as the kernel does, by the JSON that `nft` prints
//! (libnftables-json(5)).
//!
//! Where an expression asks what is not known of the packet, both may be. Then [`Fate::is_certain`] says whether the packet could come
//! to another end than the one that is told.

mod known;
mod listing;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

use known::{Known, Truth, all, parsed};
use listing::{expressions, is_drop, is_idle, key, names, place_of, target_of, texts};

/// A packet that is forwarded, of a connection that it opens, or the answer to it.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// `tcp` or `udp`.
    pub(super) protocol: &'static str,
    pub(super) source_port: u16,
    pub(super) port: u16,
    pub(super) mark: u32,
    /// State in connection tracking: `new`, `established` or `invalid`.
    pub(super) state: &'static str,
    /// True if it is the answer.
    pub(super) is_answer: bool,
}

/// Fate of a packet in the chains of one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// Rule or chain that drops it, if one does.
    pub(super) dropped: Option<Stop>,
    /// Translation of its source, if there is one.
    pub(super) translated: Option<Translated>,
    /// True if no rule that cannot be read could have let it through, or translated it, before that.
    pub(super) is_certain: bool,
}

/// Rule or chain that drops a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stop {
    /// True if it is the chain's policy, and no rule of it.
    is_policy: bool,
    /// The chain with its family and table.
    pub(super) chain: String,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_policy {
            "the policy of"
        } else {
            "a rule in"
        };
        write!(f, "{what} {}", self.chain)
    }
}

/// Translation of a source address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Translated {
    /// An address of the interface.
    Masquerade,
    /// Address that the rule names, where that is one.
    To(Option<IpAddr>),
}

/// Verdict of a rule or chain.
enum Verdict {
    /// On to the next rule.
    Continue,
    /// Back to where the chain was called.
    Return,
    Accept,
    Drop(Stop),
    Translate(Translated),
}

/// One walk.
struct Walk {
    /// True if nothing that is not known could have ended it before.
    is_certain: bool,
    /// Number of rules that may still be evaluated.
    left: u32,
}

/// Depth to which chains may call each other: the kernel's own limit (NFT_JUMP_STACK_SIZE).
const DEPTH: u32 = 16;
/// Number of rules that are evaluated for one packet. Beyond that nothing is certain.
const RULES: u32 = 100_000;

/// Everybody's rules, by what they are found by: family, table and name.
pub(super) struct Rules<'a> {
    chains: BTreeMap<[&'a str; 3], &'a Value>,
    rules: BTreeMap<[&'a str; 3], Vec<&'a Value>>,
    sets: BTreeMap<[&'a str; 3], &'a Value>,
    maps: BTreeMap<[&'a str; 3], &'a Value>,
    /// Tables that do nothing for now.
    dormant: Vec<[&'a str; 2]>,
    /// Text of rules that `nft` cannot print in JSON: by family, table and handle.
    texts: BTreeMap<(String, String, u64), String>,
    /// True if any rule sets marks of packets or connections.
    sets_marks: bool,
    /// True if any rule keeps packets from connection tracking.
    untracks: bool,
}

impl<'a> Rules<'a> {
    /// Returns whether some rules of these are only told by their text.
    pub(super) fn need_text(json: &Value) -> bool {
        let entries = json["nftables"].as_array().into_iter().flatten();
        let mut expressions = entries.flat_map(|entry| expressions(&entry["rule"]));
        expressions.any(|expression| expression["xt"]["type"] == "match")
    }

    /// Rules as `nft -j list ruleset` prints them, and as `nft -a list ruleset` does.
    pub(super) fn new(json: &'a Value, text: &str) -> Self {
        let mut rules = Rules {
            chains: BTreeMap::new(),
            rules: BTreeMap::new(),
            sets: BTreeMap::new(),
            maps: BTreeMap::new(),
            dormant: Vec::new(),
            texts: texts(text),
            sets_marks: false,
            untracks: false,
        };
        for entry in json["nftables"].as_array().into_iter().flatten() {
            let Some((kind, value)) = entry.as_object().and_then(|entry| entry.iter().next())
            else {
                continue;
            };
            match kind.as_str() {
                "chain" => drop(rules.chains.insert(key(value, "name"), value)),
                "set" => drop(rules.sets.insert(key(value, "name"), value)),
                "map" => drop(rules.maps.insert(key(value, "name"), value)),
                "table" if names(&value["flags"], "dormant") => {
                    let [family, _, name] = key(value, "name");
                    rules.dormant.push([family, name]);
                }
                "rule" => {
                    for expression in expressions(value) {
                        let target = target_of(expression).unwrap_or_default();
                        let set = &expression["mangle"]["key"];
                        let is_mark = set["meta"]["key"] == "mark" || set["ct"]["key"] == "mark";
                        rules.sets_marks |= is_mark || ["MARK", "CONNMARK"].contains(&target);
                        rules.untracks |= expression.get("notrack").is_some()
                            || ["CT", "NOTRACK"].contains(&target);
                    }
                    let chain = rules.rules.entry(key(value, "chain"));
                    chain.or_default().push(value);
                }
                _ => {}
            }
        }
        rules
    }

    /// Returns what becomes of a packet in the chains of a hook that have this type, in the order of their priorities.
    pub(super) fn fate(&self, packet: &Packet, kind: &str, hook: &str) -> Fate {
        let mut walk = Walk {
            is_certain: true,
            left: RULES,
        };
        let family = family_of(packet);
        let mut bases: Vec<&Value> = self
            .chains
            .values()
            .copied()
            .filter(|chain| chain["hook"] == hook && chain["type"] == kind)
            .filter(|chain| chain["family"] == family || chain["family"] == "inet")
            .filter(|chain| {
                let [family, table, _] = key(chain, "name");
                !self.dormant.contains(&[family, table])
            })
            .collect();
        bases.sort_by_key(|chain| chain["prio"].as_i64().unwrap_or_default());
        let mut fate = Fate {
            dropped: None,
            translated: None,
            is_certain: true,
        };
        for base in bases {
            // What lets a packet through one base chain does not spare it the next.
            walk.is_certain = true;
            let verdict = self.chain(base, packet, &mut walk, DEPTH);
            let dropped = match verdict {
                Verdict::Drop(stop) => Some(stop),
                Verdict::Continue | Verdict::Return if base["policy"] == "drop" => Some(Stop {
                    is_policy: true,
                    chain: place_of(base, "name"),
                }),
                Verdict::Translate(translated) => {
                    fate.translated = Some(translated);
                    fate.is_certain = walk.is_certain;
                    return fate;
                }
                _ => None,
            };
            if dropped.is_some() {
                fate.dropped = dropped;
                fate.is_certain = walk.is_certain;
                return fate;
            }
            fate.is_certain &= walk.is_certain;
        }
        fate
    }

    /// Goes through the rules of a chain.
    fn chain(&self, chain: &'a Value, packet: &Packet, walk: &mut Walk, depth: u32) -> Verdict {
        for rule in self.rules.get(&key(chain, "name")).into_iter().flatten() {
            let Some(left) = walk.left.checked_sub(1) else {
                walk.is_certain = false;
                return Verdict::Continue;
            };
            walk.left = left;
            match self.rule(rule, packet, walk, depth) {
                Verdict::Continue => {}
                verdict => return verdict,
            }
        }
        Verdict::Continue
    }

    fn rule(&self, rule: &'a Value, packet: &Packet, walk: &mut Walk, depth: u32) -> Verdict {
        let mut is_known = true;
        for expression in expressions(rule) {
            if is_idle(expression) {
                continue;
            }
            match self.condition(expression, rule, packet) {
                Some(Truth::Yes) => continue,
                Some(Truth::No | Truth::Absent) => return Verdict::Continue,
                Some(Truth::Unknown) => {
                    is_known = false;
                    continue;
                }
                None => {}
            }
            let verdict = match expression.get("vmap") {
                Some(map) => match self.mapped(map, rule, packet) {
                    Ok(Some(verdict)) => verdict,
                    Ok(None) => continue,
                    Err(()) => {
                        walk.is_certain = false;
                        return Verdict::Continue;
                    }
                },
                None => expression,
            };
            if !is_known {
                // Whether it comes to this is not known. What only drops could make it worse, not better.
                walk.is_certain &= is_drop(verdict) || verdict.get("continue").is_some();
                return Verdict::Continue;
            }
            match self.verdict(verdict, rule, packet, walk, depth) {
                Some(Verdict::Continue) => {}
                Some(verdict) => return verdict,
                None => {
                    walk.is_certain = false;
                    return Verdict::Continue;
                }
            }
        }
        Verdict::Continue
    }

    /// Returns whether an expression that is a condition holds; none if it is none.
    fn condition(&self, expression: &'a Value, rule: &'a Value, packet: &Packet) -> Option<Truth> {
        if let Some(compared) = expression.get("match") {
            return Some(self.compare(compared, rule, packet));
        }
        if let Some(limit) = expression.get("limit") {
            // It is the first packet. A limit with a name stands elsewhere.
            return Some(match (limit.is_object(), limit["inv"] == true) {
                (false, _) => Truth::Unknown,
                (true, true) => Truth::No,
                (true, false) => Truth::Yes,
            });
        }
        if expression["xt"]["type"] == "match" {
            return Some(match expression["xt"]["name"].as_str() {
                Some("comment") => Truth::Yes,
                Some("conntrack" | "state") => self.state_by_text(rule, packet),
                _ => Truth::Unknown,
            });
        }
        if let Some(set) = expression.get("set") {
            // What is added may have a limit of its own.
            let is_plain = set.get("stmt").is_none();
            return Some(if is_plain { Truth::Yes } else { Truth::Unknown });
        }
        ["quota", "ct count", "socket", "meter"]
            .iter()
            .any(|name| expression.get(name).is_some())
            .then_some(Truth::Unknown)
    }

    /// Returns what a rule of iptables asks of the connection's state, by the text of the rule.
    fn state_by_text(&self, rule: &'a Value, packet: &Packet) -> Truth {
        let [family, table, _] = key(rule, "chain");
        let handle = rule["handle"].as_u64().unwrap_or_default();
        let text = self
            .texts
            .get(&(family.to_owned(), table.to_owned(), handle));
        // The same match may ask for more.
        let text = text.filter(|text| text.matches("ct ").count() == 1);
        let mut after = text
            .and_then(|text| text.split_once("ct state "))
            .into_iter()
            .flat_map(|(_, after)| after.split_whitespace());
        let (first, second) = (after.next(), after.next());
        let (states, is_negated) = match (first, second) {
            (Some("!" | "!="), Some(states)) => (states, true),
            (Some(states), _) => (states, false),
            _ => return Truth::Unknown,
        };
        let is_plain =
            |state: &str| !state.is_empty() && state.chars().all(|c| c.is_ascii_lowercase());
        if self.untracks || !states.split(',').all(is_plain) {
            return Truth::Unknown;
        }
        let is_in = states.split(',').any(|state| state == packet.state);
        if is_in == is_negated {
            Truth::No
        } else {
            Truth::Yes
        }
    }

    /// Returns what a statement does; none if that is not known.
    fn verdict(
        &self,
        statement: &'a Value,
        rule: &'a Value,
        packet: &Packet,
        walk: &mut Walk,
        depth: u32,
    ) -> Option<Verdict> {
        if is_drop(statement) {
            return Some(Verdict::Drop(Stop {
                is_policy: false,
                chain: place_of(rule, "chain"),
            }));
        }
        let (name, argument) = statement.as_object()?.iter().next()?;
        Some(match (name.as_str(), target_of(statement)) {
            ("accept", _) => Verdict::Accept,
            ("return", _) => Verdict::Return,
            ("continue", _) => Verdict::Continue,
            ("masquerade", _) | (_, Some("MASQUERADE")) => {
                Verdict::Translate(Translated::Masquerade)
            }
            (_, Some("SNAT")) => Verdict::Translate(Translated::To(None)),
            ("snat", _) => match argument["addr"].get("map") {
                Some(map) => match self.mapped(map, rule, packet) {
                    Ok(Some(address)) => Verdict::Translate(Translated::To(parsed(address))),
                    Ok(None) => Verdict::Continue,
                    Err(()) => return None,
                },
                None => Verdict::Translate(Translated::To(parsed(&argument["addr"]))),
            },
            ("jump" | "goto", _) => {
                let [family, table, _] = key(rule, "chain");
                let chain = self
                    .chains
                    .get(&[family, table, argument["target"].as_str()?])?;
                let verdict = self.chain(chain, packet, walk, depth.checked_sub(1)?);
                match verdict {
                    Verdict::Return | Verdict::Continue if name == "jump" => Verdict::Continue,
                    Verdict::Continue => Verdict::Return,
                    verdict => verdict,
                }
            }
            _ => return None,
        })
    }

    /// Returns what a map has for the packet; an error if it is not known what it is asked.
    fn mapped(
        &self,
        map: &'a Value,
        rule: &'a Value,
        packet: &Packet,
    ) -> Result<Option<&'a Value>, ()> {
        let elements = match map["data"].as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => &named(&self.maps, name, rule).ok_or(())?["elem"],
            None => &map["data"]["set"],
        };
        for element in elements.as_array().into_iter().flatten() {
            match self.is_in(&map["key"], &element[0], rule, packet) {
                Truth::Yes => return Ok(Some(&element[1])),
                Truth::No => {}
                Truth::Absent => return Ok(None),
                Truth::Unknown => return Err(()),
            }
        }
        Ok(None)
    }

    fn compare(&self, compared: &'a Value, rule: &'a Value, packet: &Packet) -> Truth {
        let truth = self.is_in(&compared["left"], &compared["right"], rule, packet);
        match (compared["op"].as_str(), truth) {
            (_, Truth::Absent) => Truth::Absent,
            (Some("==" | "in"), truth) => truth,
            (Some("!="), Truth::Yes) => Truth::No,
            (Some("!="), Truth::No) => Truth::Yes,
            _ => Truth::Unknown,
        }
    }

    /// Returns whether what an expression asks is the value, or among the values.
    fn is_in(&self, left: &'a Value, right: &'a Value, rule: &'a Value, packet: &Packet) -> Truth {
        if let (Some(left), Some(right)) = (left["concat"].as_array(), right["concat"].as_array()) {
            return all(left
                .iter()
                .zip(right)
                .map(|(l, r)| self.is_in(l, r, rule, packet)));
        }
        if let Some(name) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            return match named(&self.sets, name, rule) {
                Some(set) => match self.is_among(left, &set["elem"], rule, packet) {
                    // Packets put elements there.
                    Truth::No if names(&set["flags"], "dynamic") => Truth::Unknown,
                    truth => truth,
                },
                None => Truth::Unknown,
            };
        }
        if right.is_array() {
            return self.is_among(left, right, rule, packet);
        }
        if let Some(set) = right.get("set").or_else(|| right.get("|")) {
            return self.is_among(left, set, rule, packet);
        }
        if let Some(element) = right.get("elem") {
            return self.is_in(left, &element["val"], rule, packet);
        }
        if right == "*" {
            return Truth::Yes;
        }
        self.asked(left, packet).is(right)
    }

    fn is_among(
        &self,
        left: &'a Value,
        values: &'a Value,
        rule: &'a Value,
        packet: &Packet,
    ) -> Truth {
        let mut among = Truth::No;
        for value in values.as_array().into_iter().flatten() {
            match self.is_in(left, value, rule, packet) {
                Truth::No => {}
                Truth::Unknown => among = Truth::Unknown,
                certain => return certain,
            }
        }
        match (among, self.asked(left, packet)) {
            (Truth::No, Known::Absent) => Truth::Absent,
            _ => among,
        }
    }

    /// Returns what the packet has where an expression asks.
    fn asked(&self, left: &Value, packet: &Packet) -> Known {
        let text = |text: &str| Known::Text(text.to_owned());
        if let Some([inner, mask]) = left["&"].as_array().map(Vec::as_slice) {
            return match (self.asked(inner, packet), mask.as_u64()) {
                (Known::Number(value), Some(mask)) => Known::Number(value & mask),
                (Known::Absent, _) => Known::Absent,
                _ => Known::Nothing,
            };
        }
        if let Some(key) = left["meta"]["key"].as_str() {
            return match key {
                "iifname" | "iif" => text(&packet.from),
                "oifname" | "oif" => text(&packet.to),
                "mark" if !self.sets_marks => Known::Number(packet.mark.into()),
                "l4proto" => text(packet.protocol),
                "nfproto" if packet.source.is_ipv4() => text("ipv4"),
                "nfproto" => text("ipv6"),
                "protocol" => text(family_of(packet)),
                _ => Known::Nothing,
            };
        }
        if let Some(key) = left["ct"]["key"].as_str() {
            return match key {
                "state" if !self.untracks => text(packet.state),
                "mark" if !self.sets_marks => Known::Number(0),
                "direction" if packet.is_answer => text("reply"),
                "direction" => text("original"),
                _ => Known::Nothing,
            };
        }
        let (Some(protocol), Some(field)) = (
            left["payload"]["protocol"].as_str(),
            left["payload"]["field"].as_str(),
        ) else {
            return Known::Nothing;
        };
        match (protocol, field) {
            ("ip" | "ip6", _) if protocol != family_of(packet) => Known::Absent,
            ("ip" | "ip6", "saddr") => Known::Address(packet.source),
            ("ip" | "ip6", "daddr") => Known::Address(packet.destination),
            ("ip", "protocol") | ("ip6", "nexthdr") => text(packet.protocol),
            ("tcp" | "udp", _) if protocol != packet.protocol => Known::Absent,
            ("tcp" | "udp" | "th", "dport") => Known::Number(packet.port.into()),
            ("tcp" | "udp" | "th", "sport") => Known::Number(packet.source_port.into()),
            (
                "icmp" | "icmpv6" | "sctp" | "dccp" | "udplite" | "esp" | "ah" | "arp" | "igmp",
                _,
            ) => Known::Absent,
            _ => Known::Nothing,
        }
    }
}

/// The family of its tables.
fn family_of(packet: &Packet) -> &'static str {
    if packet.source.is_ipv4() { "ip" } else { "ip6" }
}

fn named<'a>(
    all: &BTreeMap<[&'a str; 3], &'a Value>,
    name: &'a str,
    rule: &'a Value,
) -> Option<&'a Value> {
    let [family, table, _] = key(rule, "chain");
    all.get(&[family, table, name]).copied()
}

#[cfg(test)]
mod tests;
