//! Facts about a packet, and whether a value of a rule is one of them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// Truth of a condition on the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Unknown,
    /// The packet has nothing of what is asked for, so the rule does not match, whatever it compares.
    Absent,
}

/// Returns whether all of them hold.
pub(super) fn all(truths: impl Iterator<Item = Truth>) -> Truth {
    let mut all = Truth::Yes;
    for truth in truths {
        match truth {
            Truth::No | Truth::Absent => return truth,
            Truth::Unknown => all = Truth::Unknown,
            Truth::Yes => {}
        }
    }
    all
}

/// Knowledge of a packet.
pub(super) enum Known {
    Text(String),
    Number(u64),
    Address(IpAddr),
    /// It has no such thing.
    Absent,
    Nothing,
}

impl Known {
    pub(super) fn is(&self, right: &Value) -> Truth {
        let truth = |holds: bool| if holds { Truth::Yes } else { Truth::No };
        match self {
            Known::Absent => Truth::Absent,
            Known::Nothing => Truth::Unknown,
            Known::Text(text) => match right.as_str() {
                Some(wanted) => truth(match wanted.strip_suffix('*') {
                    Some(start) => text.starts_with(start),
                    None => text == wanted,
                }),
                None => match (text.as_str(), right.as_u64()) {
                    ("tcp", Some(number)) => truth(number == 6),
                    ("udp", Some(number)) => truth(number == 17),
                    _ => Truth::Unknown,
                },
            },
            Known::Number(number) => {
                if let Some([low, high]) = right["range"].as_array().map(Vec::as_slice) {
                    return match (low.as_u64(), high.as_u64()) {
                        (Some(low), Some(high)) => truth((low..=high).contains(number)),
                        _ => Truth::Unknown,
                    };
                }
                right
                    .as_u64()
                    .map_or(Truth::Unknown, |wanted| truth(wanted == *number))
            }
            Known::Address(address) => {
                if let Some([low, high]) = right["range"].as_array().map(Vec::as_slice) {
                    return match (parsed(low), parsed(high)) {
                        (Some(low), Some(high)) => truth((low..=high).contains(address)),
                        _ => Truth::Unknown,
                    };
                }
                if let Some(prefix) = right.get("prefix") {
                    let length = prefix["len"]
                        .as_u64()
                        .and_then(|len| u8::try_from(len).ok());
                    let net = parsed(&prefix["addr"])
                        .zip(length)
                        .and_then(|(address, length)| IpNet::new(address, length).ok());
                    return net.map_or(Truth::Unknown, |net| truth(net.contains(address)));
                }
                parsed(right).map_or(Truth::Unknown, |wanted| truth(wanted == *address))
            }
        }
    }
}

pub(super) fn parsed(value: &Value) -> Option<IpAddr> {
    value.as_str().and_then(|text| text.parse().ok())
}
