//! What nftables would do with a packet: its chains are gone through as the kernel does, by the JSON that `nft` prints
//! (libnftables-json(5)).
//!
//! What an expression asks that is not known of the packet, such as a limit or a match of iptables, may match or not. Then
//! [`Fate::is_certain`] says that the outcome depends on it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// A packet that is forwarded, of a connection that it opens.
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
    /// What connection tracking says of it: `new` or `invalid`.
    pub(super) state: &'static str,
}

/// What becomes of it in the chains of one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// Where it is dropped, if it is.
    pub(super) dropped: Option<Stop>,
    /// What translates its source, if anything does: `masquerade`, or the addresses that it may get.
    pub(super) translated: Option<Translated>,
    /// Whether nothing that is not known decides that.
    pub(super) is_certain: bool,
}

/// What drops a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stop {
    /// Whether it is the chain's policy, and no rule of it.
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Translated {
    /// To an address of the interface.
    Masquerade,
    /// To what the rule says, where that is one address.
    To(Option<IpAddr>),
}

/// Whether something holds for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    Unknown,
}

/// What a rule or chain comes to.
enum Verdict {
    /// On to the next rule.
    Continue,
    /// Back to where the chain was called.
    Return,
    Accept,
    Drop(Stop),
    Translate(Translated),
}

/// How deep chains may call each other: the kernel's own limit (NFT_JUMP_STACK_SIZE).
const DEPTH: u32 = 16;

/// Everybody's rules, as `nft -j list ruleset` prints them.
pub(super) struct Rules<'a>(pub(super) &'a Value);

impl<'a> Rules<'a> {
    fn entries(&self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        let all = self.0["nftables"].as_array().into_iter().flatten();
        all.filter_map(move |entry| entry.get(kind))
    }

    /// What becomes of a packet in the chains of a hook that have this type, in the order of their priorities.
    pub(super) fn fate(&self, packet: &Packet, kind: &str, hook: &str) -> Fate {
        let family = family_of(packet);
        let mut bases: Vec<&Value> = self
            .entries("chain")
            .filter(|chain| chain["hook"] == hook && chain["type"] == kind)
            .filter(|chain| chain["family"] == family || chain["family"] == "inet")
            .collect();
        bases.sort_by_key(|chain| chain["prio"].as_i64().unwrap_or_default());
        let mut fate = Fate {
            dropped: None,
            translated: None,
            is_certain: true,
        };
        for base in bases {
            let verdict = self.chain(base, packet, &mut fate.is_certain, DEPTH);
            let dropped = match verdict {
                Verdict::Drop(stop) => Some(stop),
                Verdict::Continue | Verdict::Return if base["policy"] == "drop" => Some(Stop {
                    is_policy: true,
                    chain: place_of(base, "name"),
                }),
                Verdict::Translate(translated) => {
                    fate.translated = Some(translated);
                    return fate;
                }
                _ => None,
            };
            if dropped.is_some() {
                fate.dropped = dropped;
                return fate;
            }
        }
        fate
    }

    /// Whether there is a rule that translates sources of anything of a packet's family.
    pub(super) fn translate_anything(&self, packet: &Packet) -> bool {
        let family = family_of(packet);
        let rules = self.entries("rule");
        let mut rules = rules.filter(|rule| rule["family"] == family || rule["family"] == "inet");
        rules.any(|rule| {
            let expressions = rule["expr"].as_array().into_iter().flatten();
            expressions.into_iter().any(|expression| {
                let target = expression["xt"]["name"].as_str().unwrap_or_default();
                ["masquerade", "snat"]
                    .iter()
                    .any(|name| expression.get(name).is_some())
                    || ["MASQUERADE", "SNAT"].contains(&target)
            })
        })
    }

    /// Goes through the rules of a chain.
    fn chain(&self, chain: &Value, packet: &Packet, is_certain: &mut bool, depth: u32) -> Verdict {
        let rules = self.entries("rule").filter(|rule| {
            rule["family"] == chain["family"]
                && rule["table"] == chain["table"]
                && rule["chain"] == chain["name"]
        });
        for rule in rules {
            match self.rule(rule, packet, is_certain, depth) {
                Verdict::Continue => {}
                verdict => return verdict,
            }
        }
        Verdict::Continue
    }

    fn rule(&self, rule: &Value, packet: &Packet, is_certain: &mut bool, depth: u32) -> Verdict {
        let mut matches = Truth::Yes;
        for expression in rule["expr"].as_array().into_iter().flatten() {
            if let Some(compared) = expression.get("match") {
                match self.compare(compared, rule, packet) {
                    Truth::Yes => {}
                    Truth::No => return Verdict::Continue,
                    Truth::Unknown => matches = Truth::Unknown,
                }
                continue;
            }
            if is_idle(expression) {
                continue;
            }
            let verdict = match expression.get("vmap") {
                Some(map) => match self.mapped(map, rule, packet) {
                    Ok(Some(verdict)) => verdict.clone(),
                    Ok(None) => continue,
                    Err(()) => {
                        matches = Truth::Unknown;
                        continue;
                    }
                },
                None => expression.clone(),
            };
            if matches == Truth::Unknown {
                // It may end here otherwise than what follows says.
                *is_certain &= verdict.get("continue").is_some();
                return Verdict::Continue;
            }
            match self.verdict(&verdict, rule, packet, is_certain, depth) {
                Some(Verdict::Continue) => {}
                Some(verdict) => return verdict,
                None => matches = Truth::Unknown,
            }
        }
        Verdict::Continue
    }

    /// What a statement does; none if that is not known.
    fn verdict(
        &self,
        statement: &Value,
        rule: &Value,
        packet: &Packet,
        is_certain: &mut bool,
        depth: u32,
    ) -> Option<Verdict> {
        let (name, argument) = statement.as_object()?.iter().next()?;
        let xt = (name == "xt" && argument["type"] == "target")
            .then(|| argument["name"].as_str().unwrap_or_default());
        Some(match (name.as_str(), xt) {
            ("accept", _) => Verdict::Accept,
            ("drop" | "reject", _) | (_, Some("REJECT" | "DROP")) => Verdict::Drop(Stop {
                is_policy: false,
                chain: place_of(rule, "chain"),
            }),
            ("return", _) => Verdict::Return,
            ("continue", _) => Verdict::Continue,
            ("masquerade", _) | (_, Some("MASQUERADE")) => {
                Verdict::Translate(Translated::Masquerade)
            }
            (_, Some("SNAT")) => Verdict::Translate(Translated::To(None)),
            ("snat", _) => {
                let address = argument["addr"].as_str().and_then(|text| text.parse().ok());
                Verdict::Translate(Translated::To(address))
            }
            ("jump" | "goto", _) => {
                let chain = self.entries("chain").find(|chain| {
                    chain["family"] == rule["family"]
                        && chain["table"] == rule["table"]
                        && chain["name"] == argument["target"]
                })?;
                let verdict = self.chain(chain, packet, is_certain, depth.checked_sub(1)?);
                match verdict {
                    Verdict::Return | Verdict::Continue if name == "jump" => Verdict::Continue,
                    Verdict::Continue => Verdict::Return,
                    verdict => verdict,
                }
            }
            _ => return None,
        })
    }

    /// The verdict that a map has for the packet; an error if it is not known what it is asked.
    fn mapped(
        &self,
        map: &'a Value,
        rule: &Value,
        packet: &Packet,
    ) -> Result<Option<&'a Value>, ()> {
        let elements = match map["data"].as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => &self.named("map", name, rule).ok_or(())?["elem"],
            None => &map["data"]["set"],
        };
        for element in elements.as_array().into_iter().flatten() {
            match self.is_in(&map["key"], &element[0], rule, packet) {
                Truth::Yes => return Ok(Some(&element[1])),
                Truth::No => {}
                Truth::Unknown => return Err(()),
            }
        }
        Ok(None)
    }

    fn named(&self, kind: &'a str, name: &str, rule: &Value) -> Option<&'a Value> {
        self.entries(kind).find(|set| {
            set["family"] == rule["family"] && set["table"] == rule["table"] && set["name"] == name
        })
    }

    fn compare(&self, compared: &Value, rule: &Value, packet: &Packet) -> Truth {
        let truth = self.is_in(&compared["left"], &compared["right"], rule, packet);
        match (compared["op"].as_str(), truth) {
            (Some("==" | "in"), truth) => truth,
            (Some("!="), Truth::Yes) => Truth::No,
            (Some("!="), Truth::No) => Truth::Yes,
            _ => Truth::Unknown,
        }
    }

    /// Whether what an expression asks is the value, or among the values.
    fn is_in(&self, left: &Value, right: &Value, rule: &Value, packet: &Packet) -> Truth {
        if let (Some(left), Some(right)) = (left["concat"].as_array(), right["concat"].as_array()) {
            return all(left
                .iter()
                .zip(right)
                .map(|(l, r)| self.is_in(l, r, rule, packet)));
        }
        if let Some(name) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            return match self.named("set", name, rule) {
                Some(set) => self.is_among(left, &set["elem"], rule, packet),
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
        match asked(left, packet) {
            Some(known) => is_value(&known, right),
            None => Truth::Unknown,
        }
    }

    fn is_among(&self, left: &Value, values: &Value, rule: &Value, packet: &Packet) -> Truth {
        let truths = values.as_array().into_iter().flatten();
        let truths = truths.map(|value| self.is_in(left, value, rule, packet));
        match all(truths.map(|truth| match truth {
            Truth::Yes => Truth::No,
            Truth::No => Truth::Yes,
            Truth::Unknown => Truth::Unknown,
        })) {
            Truth::Yes => Truth::No,
            Truth::No => Truth::Yes,
            Truth::Unknown => Truth::Unknown,
        }
    }
}

/// Whether all of them hold.
fn all(truths: impl Iterator<Item = Truth>) -> Truth {
    let mut all = Truth::Yes;
    for truth in truths {
        match truth {
            Truth::No => return Truth::No,
            Truth::Unknown => all = Truth::Unknown,
            Truth::Yes => {}
        }
    }
    all
}

/// What the packet has where an expression asks.
enum Known {
    Text(String),
    Number(u64),
    Address(IpAddr),
}

fn asked(left: &Value, packet: &Packet) -> Option<Known> {
    let text = |text: &str| Some(Known::Text(text.to_owned()));
    let number = |number: u64| Some(Known::Number(number));
    let family = if packet.source.is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    };
    if let Some([inner, mask]) = left["&"].as_array().map(Vec::as_slice) {
        return match asked(inner, packet)? {
            Known::Number(value) => number(value & mask.as_u64()?),
            _ => None,
        };
    }
    if let Some(key) = left["meta"]["key"].as_str() {
        return match key {
            "iifname" | "iif" => text(&packet.from),
            "oifname" | "oif" => text(&packet.to),
            "mark" => number(packet.mark.into()),
            "l4proto" => text(packet.protocol),
            "nfproto" => text(family),
            "protocol" => text(if packet.source.is_ipv4() { "ip" } else { "ip6" }),
            _ => None,
        };
    }
    if let Some(key) = left["ct"]["key"].as_str() {
        return match key {
            "state" => text(packet.state),
            "status" => text("none"),
            "mark" => number(0),
            _ => None,
        };
    }
    let (protocol, field) = (
        left["payload"]["protocol"].as_str()?,
        left["payload"]["field"].as_str()?,
    );
    match (protocol, field) {
        ("ip" | "ip6", _) if protocol.len() == 2 && !packet.source.is_ipv4() => text("none"),
        ("ip6", _) if packet.source.is_ipv4() => text("none"),
        ("ip" | "ip6", "saddr") => Some(Known::Address(packet.source)),
        ("ip" | "ip6", "daddr") => Some(Known::Address(packet.destination)),
        ("ip", "protocol") | ("ip6", "nexthdr") => text(packet.protocol),
        ("tcp" | "udp", _) if protocol != packet.protocol => text("none"),
        ("tcp" | "udp" | "th", "dport") => number(packet.port.into()),
        ("tcp" | "udp" | "th", "sport") => number(packet.source_port.into()),
        ("icmp" | "icmpv6" | "sctp" | "dccp" | "udplite" | "esp" | "ah" | "arp" | "igmp", _) => {
            text("none")
        }
        _ => None,
    }
}

fn is_value(known: &Known, right: &Value) -> Truth {
    let truth = |holds: bool| if holds { Truth::Yes } else { Truth::No };
    let number_of = |value: &Value| value.as_u64();
    match known {
        Known::Text(text) => match right.as_str() {
            Some(wanted) => truth(match wanted.strip_suffix('*') {
                Some(start) => text.starts_with(start),
                None => text == wanted,
            }),
            // A protocol or family by its number, or what this packet has nothing of.
            None if text == "none" => Truth::No,
            None => match (text.as_str(), number_of(right)) {
                ("tcp", Some(number)) => truth(number == 6),
                ("udp", Some(number)) => truth(number == 17),
                _ => Truth::Unknown,
            },
        },
        Known::Number(number) => {
            if let Some([low, high]) = right["range"].as_array().map(Vec::as_slice) {
                return match (number_of(low), number_of(high)) {
                    (Some(low), Some(high)) => truth((low..=high).contains(number)),
                    _ => Truth::Unknown,
                };
            }
            number_of(right).map_or(Truth::Unknown, |wanted| truth(wanted == *number))
        }
        Known::Address(address) => {
            let parsed =
                |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
            if let Some([low, high]) = right["range"].as_array().map(Vec::as_slice) {
                return match (parsed(low), parsed(high)) {
                    (Some(low), Some(high)) => truth((low..=high).contains(address)),
                    _ => Truth::Unknown,
                };
            }
            if let Some(prefix) = right.get("prefix") {
                let length = prefix["len"]
                    .as_u64()
                    .and_then(|length| u8::try_from(length).ok());
                let net = parsed(&prefix["addr"])
                    .zip(length)
                    .and_then(|(address, length)| IpNet::new(address, length).ok());
                return net.map_or(Truth::Unknown, |net| truth(net.contains(address)));
            }
            parsed(right).map_or(Truth::Unknown, |wanted| truth(wanted == *address))
        }
    }
}

/// Whether an expression neither asks nor decides anything.
fn is_idle(expression: &Value) -> bool {
    let idle = [
        "counter",
        "comment",
        "log",
        "mangle",
        "notrack",
        "ct helper",
        "flow",
    ];
    idle.iter().any(|name| expression.get(name).is_some())
}

/// The family of its tables.
fn family_of(packet: &Packet) -> &'static str {
    if packet.source.is_ipv4() { "ip" } else { "ip6" }
}

fn place_of(entry: &Value, chain: &str) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or_default();
    format!("{} {} {}", text("family"), text("table"), text(chain))
}

#[cfg(test)]
mod tests;
