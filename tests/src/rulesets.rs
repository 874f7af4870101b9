//! Rulesets: of published lists, and with prefixes and addresses by chance, from a seed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use breakout::list::{Category, Instance, List, PortRange, SetKey};
use breakout::policy::{Action, Choice, Policy};
use breakout::ruleset::{Rule, Ruleset, Slots};
use breakout::timestamp::Timestamp;
use breakout_common::condition::{Client, Condition, EVERYONE};
use breakout_common::table::Transport;
use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes that nest, touch and repeat: of any length, half of them close to each other.
pub fn tangled_prefix(rng: &mut Rng) -> IpNet {
    if rng.bool() {
        let bits = if rng.bool() {
            0x0a00_0000 | rng.u32(..) & 0x0003_0107
        } else {
            rng.u32(..)
        };
        v4(bits, rng.u8(0..=32))
    } else {
        let bits = if rng.bool() {
            0x2001_0db8 << 96 | rng.u128(..) & (7 << 94 | 7 << 46 | 7 << 14 | 3)
        } else {
            rng.u128(..)
        };
        v6(bits, rng.u8(0..=128))
    }
}

/// A prefix with a length as they occur in the Internet's routing tables, where most are as long as networks accept
/// them (/24 and /48), with one in fifty longer than that.
pub fn routed_prefix(rng: &mut Rng, is_v6: bool) -> IpNet {
    if is_v6 {
        let length = match rng.u8(0..100) {
            0..50 => 48,
            50..65 => 32,
            65..75 => 40,
            75..85 => 44,
            85..98 => rng.u8(29..=47),
            _ => rng.u8(49..=128),
        };
        // 2000::/3, all global unicast addresses.
        v6(1 << 125 | rng.u128(..) >> 3, length)
    } else {
        let length = match rng.u8(0..100) {
            0..60 => 24,
            60..70 => 23,
            70..80 => 22,
            80..85 => 21,
            85..90 => 20,
            90..98 => rng.u8(16..=19),
            _ => rng.u8(25..=32),
        };
        v4(rng.u32(0x0100_0000..0xe000_0000), length)
    }
}

fn v4(bits: u32, length: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), length)
        .trunc()
        .into()
}

fn v6(bits: u128, length: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length)
        .trunc()
        .into()
}

/// A rule with these prefixes.
pub fn rule(slot: u16, category: Category, prefixes: Vec<IpNet>, ports: Vec<PortRange>) -> Rule {
    Rule {
        key: SetKey::published(Instance::Worldwide, u32::from(slot) + 1),
        slot,
        service_area: "Random".to_owned(),
        choices: match category {
            Category::Optimize => vec![Choice::always(Action::Steer(0))],
            _ => Vec::new(),
        },
        category,
        prefixes,
        ports,
        withdrawn: None,
    }
}

/// What the default policy makes of a list, with the egress of index 0.
///
/// # Errors
///
/// When it has too many endpoint sets.
pub fn by_default(list: &List) -> Result<Ruleset> {
    let (policy, now) = (Policy::optimize(0), Timestamp::default());
    Ruleset::new(&list.sets, &policy, &mut Slots::default(), now)
}

/// A few rules with tangled prefixes and ports, and some addresses that are the gateway's own.
pub fn tangled_ruleset(rng: &mut Rng) -> Ruleset {
    let rules = (0..rng.u16(1..24)).map(|slot| {
        let category = match rng.u8(0..3) {
            0 => Category::Optimize,
            1 => Category::Allow,
            _ => Category::Default,
        };
        let prefixes = (0..rng.usize(1..40)).map(|_| tangled_prefix(rng)).collect();
        let ports = (0..rng.usize(1..4)).map(|_| ports(rng)).collect();
        rule(slot, category, prefixes, ports)
    });
    let mut ruleset = Ruleset {
        rules: rules.collect(),
        ..Ruleset::default()
    };
    ruleset.own = (0..rng.usize(0..4))
        .map(|_| tangled_prefix(rng).addr())
        .collect();
    ruleset
}

/// Adds a policy to a ruleset that asks who the clients are: sources, LAN, VLAN and share.
pub fn add_conditions(rng: &mut Rng, ruleset: &mut Ruleset) {
    let group = |rng: &mut Rng| (0..rng.usize(1..20)).map(|_| tangled_prefix(rng)).collect();
    ruleset.sources = (0..rng.usize(1..32)).map(|_| group(rng)).collect();
    for rule in &mut ruleset.rules {
        rule.choices = (0..rng.u16(0..4))
            .map(|policy| choice(rng, policy, ruleset.sources.len()))
            .collect();
        if rng.u8(0..8) == 0 {
            rule.key = SetKey::published(Instance::China, u32::from(rule.slot) + 1);
        }
        if rng.u8(0..8) == 0 {
            rule.withdrawn = Some(Timestamp::default());
        }
    }
}

fn choice(rng: &mut Rng, policy: u16, groups: usize) -> Choice {
    let condition = |rng: &mut Rng| Condition {
        groups: if rng.bool() {
            1 << rng.usize(0..groups)
        } else {
            EVERYONE
        },
        lans: if rng.bool() { rng.u32(1..8) } else { u32::MAX },
        vlan: if rng.u8(0..4) == 0 { rng.u16(1..4) } else { 0 },
        share: if rng.bool() { rng.u16(..) } else { u16::MAX },
    };
    Choice {
        policy,
        ports: (rng.u8(0..3) == 0).then(|| vec![ports(rng)]),
        conditions: match rng.u8(0..3) {
            0 => vec![Condition::ANY],
            _ => (0..rng.usize(1..4)).map(|_| condition(rng)).collect(),
        },
        action: if rng.u8(0..4) == 0 {
            Action::Pass
        } else {
            Action::Steer(rng.u8(0..4))
        },
        shadow: rng.u8(0..6) == 0,
        media: rng.bool(),
        hard: rng.bool(),
    }
}

/// A client of a family, at the edge of a source prefix or anywhere.
pub fn client(rng: &mut Rng, ruleset: &Ruleset, is_v6: bool) -> Client {
    let near = rng
        .choice(&ruleset.sources)
        .and_then(|group| rng.choice(group));
    let near = near.filter(|prefix| prefix.addr().is_ipv6() == is_v6 && rng.u8(0..8) > 0);
    let source = match near {
        Some(prefix) if rng.bool() => edge_of(rng, prefix),
        Some(prefix) => address_in(rng, prefix),
        None if is_v6 => Ipv6Addr::from_bits(rng.u128(..)).into(),
        None => Ipv4Addr::from_bits(rng.u32(..)).into(),
    };
    Client {
        source: source.into(),
        lan: rng.u32(0..4),
        vlan: rng.u32(0..4),
    }
}

fn ports(rng: &mut Rng) -> PortRange {
    let first = *rng.choice(&[1, 79, 80, 443, 3478, 65_000]).unwrap_or(&80);
    PortRange {
        transport: *rng
            .choice(&[Transport::Tcp, Transport::Udp])
            .unwrap_or(&Transport::Tcp),
        first,
        last: first + rng.u16(0..400),
    }
}

/// An address in a prefix.
pub fn address_in(rng: &mut Rng, prefix: &IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(net) => {
            let bits = net.network().to_bits() | rng.u32(..) & net.hostmask().to_bits();
            Ipv4Addr::from_bits(bits).into()
        }
        IpNet::V6(net) => {
            let bits = net.network().to_bits() | rng.u128(..) & net.hostmask().to_bits();
            Ipv6Addr::from_bits(bits).into()
        }
    }
}

/// The first and last address of a prefix, or one that is next to it outside.
pub fn edge_of(rng: &mut Rng, prefix: &IpNet) -> IpAddr {
    let (first, last, beside) = (prefix.network(), prefix.broadcast(), rng.bool());
    match (if rng.bool() { first } else { last }, beside) {
        (address, false) => address,
        (IpAddr::V4(address), true) if IpAddr::V4(address) == first => {
            Ipv4Addr::from_bits(address.to_bits().wrapping_sub(1)).into()
        }
        (IpAddr::V4(address), true) => {
            Ipv4Addr::from_bits(address.to_bits().wrapping_add(1)).into()
        }
        (IpAddr::V6(address), true) if IpAddr::V6(address) == first => {
            Ipv6Addr::from_bits(address.to_bits().wrapping_sub(1)).into()
        }
        (IpAddr::V6(address), true) => {
            Ipv6Addr::from_bits(address.to_bits().wrapping_add(1)).into()
        }
    }
}
