//! Rulesets, prefixes and addresses by chance, from a seed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use breakout::list::{Category, Instance, PortRange, SetKey};
use breakout::policy::Action;
use breakout::ruleset::{Rule, Ruleset};
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
        key: SetKey {
            instance: Instance::Worldwide,
            id: u32::from(slot) + 1,
        },
        slot,
        service_area: "Random".to_owned(),
        action: match category {
            Category::Optimize => Action::Steer(0),
            _ => Action::Pass,
        },
        category,
        prefixes,
        ports,
    }
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
    Ruleset {
        rules: rules.collect(),
        own: (0..rng.usize(0..4))
            .map(|_| tangled_prefix(rng).addr())
            .collect(),
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
