//! The rulesets that are measured, and questions to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use breakout::list::{Category, Instance, PortRange, embedded};
use breakout::ruleset::{Image, Ruleset, compile};
use breakout_common::question::{QUESTIONS, Question};
use breakout_common::table::{Answer, Lookup, Transport};
use breakout_tests::rulesets::{address_in, by_default, client, routed_prefix, rule};
use fastrand::Rng;
use ipnet::IpNet;

/// Rules that random prefixes are shared out to. Each lists TCP 443, UDP 443 and a port of its own.
const RULES: u16 = 16;

/// How many prefixes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// The built-in Worldwide list.
    Real,
    /// So many random ones.
    Random(usize),
}

impl Size {
    pub(crate) fn label(self) -> String {
        match self {
            Size::Real => "Worldwide".to_owned(),
            Size::Random(count) if count >= 1_000_000 => format!("{}M", count / 1_000_000),
            Size::Random(count) if count >= 1000 => format!("{}k", count / 1000),
            Size::Random(count) => count.to_string(),
        }
    }
}

/// A ruleset of one address family, or the real one of both.
pub(crate) fn ruleset(size: Size, v6: bool, rng: &mut Rng) -> Result<Ruleset> {
    let Size::Random(count) = size else {
        return by_default(&embedded(Instance::Worldwide));
    };
    let mut prefixes = vec![Vec::new(); usize::from(RULES)];
    let mut seen = std::collections::HashSet::with_capacity(count);
    while seen.len() < count {
        let prefix = routed_prefix(rng, v6);
        if seen.insert(prefix) {
            prefixes[rng.usize(..usize::from(RULES))].push(prefix);
        }
    }
    let ports = |transport, port| PortRange {
        transport,
        first: port,
        last: port,
    };
    let rules = (0..RULES).zip(prefixes).map(|(slot, prefixes)| {
        let ports = vec![
            ports(Transport::Tcp, 443),
            ports(Transport::Tcp, 1000 + slot),
            ports(Transport::Udp, 443),
        ];
        rule(slot, Category::Optimize, prefixes, ports)
    });
    Ok(Ruleset {
        rules: rules.collect(),
        ..Ruleset::default()
    })
}

/// All prefixes of a family.
pub(crate) fn prefixes(ruleset: &Ruleset, v6: bool) -> Vec<IpNet> {
    let prefixes = ruleset.rules.iter().flat_map(|rule| &rule.prefixes);
    let of_family = prefixes.filter(|prefix| matches!(prefix, IpNet::V6(_)) == v6);
    of_family.copied().collect()
}

/// Questions about different destinations, `percent` of which a prefix covers.
pub(crate) fn questions(
    ruleset: &Ruleset,
    image: &Image,
    v6: bool,
    percent: usize,
    rng: &mut Rng,
) -> Vec<Question> {
    let prefixes = prefixes(ruleset, v6);
    let key = Transport::Tcp.key(443);
    let covered = |address: IpAddr| {
        image.words().lookup(address.into(), key, || None) != Some(Answer::NoPrefix)
    };
    let questions = (0..QUESTIONS).map(|_| {
        let address = if rng.usize(..100) < percent {
            let prefix = prefixes[rng.usize(..prefixes.len())];
            address_in(rng, &prefix)
        } else {
            std::iter::repeat_with(|| anywhere(rng, v6))
                .find(|address| !covered(*address))
                .expect("the iterator has no end")
        };
        Question {
            destination: address.into(),
            key,
            client: client(rng, ruleset, v6),
        }
    });
    questions.collect()
}

fn anywhere(rng: &mut Rng, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits(1 << 125 | rng.u128(..) >> 3).into()
    } else {
        let address = Ipv4Addr::from_bits(rng.u32(0x0b00_0000..0xe000_0000));
        // No gateway forwards to these.
        if address.is_loopback() || address.is_link_local() {
            return anywhere(rng, v6);
        }
        address.into()
    }
}

/// The table of a ruleset.
pub(crate) fn image(ruleset: &Ruleset) -> Result<Image> {
    Ok(compile(ruleset)?)
}
