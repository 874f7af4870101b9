//! The table against the scan over the rules.

use std::net::{Ipv4Addr, Ipv6Addr};

use breakout_common::condition::{Client, Condition, EVERYONE};
use breakout_common::table::{Answer, Destination, Lookup, Transport, is_covered};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::list::{Category, Instance, PortRange, SetKey};
use crate::policy::{Action, Choice};
use crate::ruleset::Rule;
use crate::ruleset::fold::outcome;
use crate::timestamp::Timestamp;

const CLIENT: Client = Client {
    source: Destination::V4(0),
    lan: 0,
    vlan: 0,
};

#[test]
fn what_rulesets_before_cover_stays_covered_until_it_is_not_needed() {
    let of = |prefix: &str| {
        compile(&Ruleset {
            rules: vec![own_port(1, vec![prefix.parse().unwrap()])],
            ..Ruleset::default()
        })
        .unwrap()
    };
    let destination = |address: &str| Destination::from(address.parse::<IpAddr>().unwrap());
    let (v4, v6, other) = (
        destination("52.98.0.1"),
        destination("2603:1006::1"),
        destination("9.9.9.9"),
    );
    let covers = |image: &Image, destination| is_covered(image.words(), destination);
    for (before, address) in [(of("52.98.0.0/16"), v4), (of("2603:1006::/40"), v6)] {
        let after = of("40.96.0.0/13");
        let mut image = after.clone();
        assert!(covers(&before, address) && !covers(&image, address));
        image.cover_as(before.words());
        assert!(covers(&image, address) && !covers(&image, other));
        assert!(image.cover_nothing_else());
        assert_eq!(image, after);
        assert!(!image.cover_nothing_else());
        image.cover_everything();
        assert!(covers(&image, address) && covers(&image, other));
    }
}

fn ask(image: &Image, address: IpAddr, transport: Transport, port: u16) -> Answer {
    ask_from(image, address, transport, port, CLIENT)
}

fn ask_from(
    image: &Image,
    address: IpAddr,
    transport: Transport,
    port: u16,
    client: Client,
) -> Answer {
    let answer = image
        .words()
        .lookup(address.into(), transport.key(port), || Some(client));
    answer.expect("the table is whole")
}

/// Returns what a leaf says where the rule wins by its first choice.
fn answer(rule: &Rule) -> Answer {
    let word = outcome(rule, rule.choices.first(), false);
    Answer::from_word(word).expect("an outcome is an answer")
}

/// Returns what the table should say, by the scan.
fn expected(
    ruleset: &Ruleset,
    address: IpAddr,
    transport: Transport,
    port: u16,
    client: &Client,
) -> Answer {
    if ruleset.own.contains(&address) {
        return Answer::Own;
    }
    match ruleset.find(address, transport, port, client) {
        Some(found) => {
            let word = outcome(found.set.rule, found.choice, ruleset.bypass);
            Answer::from_word(word).expect("an outcome is an answer")
        }
        None if ruleset.covering_prefix(address).is_some() => Answer::NoPort,
        None => Answer::NoPrefix,
    }
}

/// Addresses near enough to each other that random prefixes nest, repeat and touch.
fn prefix() -> impl Strategy<Value = IpNet> {
    let v4 = (prop_oneof![0u32..4096, any::<u32>()], 0u8..=32).prop_map(|(bits, len)| {
        Ipv4Net::new_assert(Ipv4Addr::from_bits(bits.reverse_bits()), len)
            .trunc()
            .into()
    });
    let v6 = (prop_oneof![0u128..4096, any::<u128>()], 0u8..=128).prop_map(|(bits, len)| {
        Ipv6Net::new_assert(Ipv6Addr::from_bits(bits.reverse_bits()), len)
            .trunc()
            .into()
    });
    prop_oneof![v4, v6]
}

fn ports() -> impl Strategy<Value = PortRange> {
    let port = || prop_oneof![Just(80u16), Just(443), 1u16..12, Just(u16::MAX)];
    (any::<bool>(), port(), port()).prop_map(|(tcp, a, b)| PortRange {
        transport: if tcp { Transport::Tcp } else { Transport::Udp },
        first: a.min(b),
        last: a.max(b),
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    let lans = prop_oneof![Just(u32::MAX), Just(1), Just(2), Just(6)];
    let vlan = prop_oneof![Just(0u16), Just(0), Just(10), Just(20)];
    let share = prop_oneof![Just(u16::MAX), Just(u16::MAX), any::<u16>()];
    (0u32..4, lans, vlan, share).prop_map(|(group, lans, vlan, share)| Condition {
        groups: if group == 3 { EVERYONE } else { 1 << group },
        lans,
        vlan,
        share,
    })
}

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let conditions = prop_oneof![
        3 => Just(vec![Condition::ANY]),
        2 => vec(condition(), 1..3),
    ];
    let choice = (
        0u16..6,
        proptest::option::weighted(0.3, vec(ports(), 1..3)),
        conditions,
        prop_oneof![Just(Action::Pass), (0u8..4).prop_map(Action::Steer)],
        any::<bool>(),
    );
    vec(choice, 0..4).prop_map(|choices| {
        let choices = choices.into_iter();
        let mut choices: Vec<Choice> = choices
            .map(|(policy, ports, conditions, action, shadow)| Choice {
                policy,
                ports,
                conditions,
                action,
                shadow,
                media: policy % 2 == 1,
                hard: policy % 3 == 1,
            })
            .collect();
        // A rule says one thing about a set.
        choices.sort_by_key(|choice| choice.policy);
        choices.dedup_by_key(|choice| choice.policy);
        choices
    })
}

fn key() -> impl Strategy<Value = SetKey> {
    prop_oneof![
        3 => (1u32..8).prop_map(|id| SetKey::published(Instance::Worldwide, id)),
        1 => (1u32..8).prop_map(|id| SetKey::published(Instance::China, id)),
        1 => (0u32..3).prop_map(|n| SetKey::Custom { name: format!("own {n}") }),
    ]
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    let rule = (
        key(),
        prop_oneof![
            Just(Category::Optimize),
            Just(Category::Allow),
            Just(Category::Default)
        ],
        vec(prefix(), 1..12),
        vec(ports(), 1..4),
        choices(),
        proptest::bool::weighted(0.2),
    );
    let own = vec(prefix().prop_map(|prefix| prefix.addr()), 0..3);
    let sources = vec(vec(prefix(), 1..6), 3);
    (vec(rule, 1..8), own, sources, proptest::bool::weighted(0.1)).prop_map(
        |(mut rules, own, sources, bypass)| {
            // Each set is there once.
            rules.sort_by(|a, b| a.0.cmp(&b.0));
            rules.dedup_by(|a, b| a.0 == b.0);
            Ruleset {
                rules: (0u16..)
                    .zip(rules)
                    .map(
                        |(slot, (key, category, prefixes, ports, choices, is_withdrawn))| Rule {
                            category: match key {
                                SetKey::Custom { .. } => Category::Custom,
                                SetKey::Published { .. } => category,
                            },
                            key,
                            slot,
                            service_area: String::new(),
                            prefixes,
                            ports,
                            withdrawn: is_withdrawn.then(Timestamp::default),
                            choices,
                        },
                    )
                    .collect(),
                own,
                sources,
                bypass,
                ..Ruleset::default()
            }
        },
    )
}

/// Clients at the edges of the source prefixes, and others.
fn clients(ruleset: &Ruleset) -> Vec<Client> {
    let sources = ruleset.sources.iter().flatten().flat_map(edges);
    let some = sources.step_by(3).take(6);
    some.zip([(0, 0), (1, 10), (2, 20), (1, 0), (0, 20), (2, 10)])
        .map(|(source, (lan, vlan))| Client {
            source: source.into(),
            lan,
            vlan,
        })
        .chain([CLIENT])
        .collect()
}

/// The first and last address of a prefix and its neighbours outside.
fn edges(prefix: &IpNet) -> Vec<IpAddr> {
    match prefix {
        IpNet::V4(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let near = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
            near.map(|bits| Ipv4Addr::from_bits(bits).into()).into()
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let near = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
            near.map(|bits| Ipv6Addr::from_bits(bits).into()).into()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn table_lookup_equals_scan(
        ruleset in ruleset(),
        random_v4 in vec(any::<u32>(), 8),
        random_v6 in vec(any::<u128>(), 8),
    ) {
        let image = compile(&ruleset).unwrap();
        let mut addresses: Vec<IpAddr> = ruleset.rules.iter()
            .flat_map(|rule| &rule.prefixes)
            .flat_map(edges)
            .collect();
        addresses.extend(random_v4.into_iter().map(|bits| IpAddr::V4(bits.into())));
        addresses.extend(random_v6.into_iter().map(|bits| IpAddr::V6(bits.into())));
        addresses.extend(ruleset.own.iter().flat_map(|address| edges(&IpNet::from(*address))));
        let clients = clients(&ruleset);
        for (address, client) in addresses.into_iter().zip(clients.iter().cycle()) {
            for transport in [Transport::Tcp, Transport::Udp] {
                for port in [0, 1, 2, 5, 11, 12, 79, 80, 81, 442, 443, 444, u16::MAX] {
                    prop_assert_eq!(
                        ask_from(&image, address, transport, port, *client),
                        expected(&ruleset, address, transport, port, client),
                        "{} {:?} {} from {:?}", address, transport, port, client
                    );
                }
            }
        }
    }
}

#[test]
fn the_shorter_prefix_wins_where_the_longer_one_has_other_ports() {
    let rule = |id: u16, category, prefix: &str, port, action| Rule {
        key: SetKey::published(Instance::Worldwide, id.into()),
        slot: id,
        service_area: String::new(),
        category,
        prefixes: vec![prefix.parse().unwrap()],
        ports: vec![PortRange {
            transport: Transport::Tcp,
            first: port,
            last: port,
        }],
        withdrawn: None,
        choices: vec![Choice::always(action)],
    };
    let ruleset = Ruleset {
        rules: vec![
            rule(1, Category::Optimize, "40.96.0.0/13", 443, Action::Steer(0)),
            rule(2, Category::Allow, "40.97.1.0/24", 25, Action::Pass),
        ],
        ..Ruleset::default()
    };
    let image = compile(&ruleset).unwrap();
    let address = "40.97.1.5".parse().unwrap();
    let steer = answer(&ruleset.rules[0]);
    let pass = answer(&ruleset.rules[1]);
    assert_eq!(ask(&image, address, Transport::Tcp, 443), steer);
    assert_eq!(ask(&image, address, Transport::Tcp, 25), pass);
    assert_eq!(ask(&image, address, Transport::Udp, 443), Answer::NoPort);
}

#[test]
fn no_rules_make_a_table_that_covers_nothing() {
    let image = compile(&Ruleset::default()).unwrap();
    for address in ["0.0.0.0", "255.255.255.255", "::", "ffff::"] {
        let address = address.parse().unwrap();
        assert_eq!(ask(&image, address, Transport::Tcp, 443), Answer::NoPrefix);
    }
}

/// A rule with TCP ports of its own.
fn own_port(id: u16, prefixes: Vec<IpNet>) -> Rule {
    Rule {
        key: SetKey::published(Instance::Worldwide, id.into()),
        slot: id,
        service_area: String::new(),
        category: Category::Optimize,
        prefixes,
        ports: vec![PortRange {
            transport: Transport::Tcp,
            first: id + 1,
            last: id + 1,
        }],
        withdrawn: None,
        choices: vec![Choice::always(Action::Steer(0))],
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    // Each endpoint set has a leaf of its own, as long as there are sets.
    let rule = |id: u16| {
        let network = Ipv4Addr::from_bits(0x0a00_0000 | u32::from(id) << 8);
        own_port(id, vec![Ipv4Net::new_assert(network, 24).into()])
    };
    let mut ruleset = Ruleset {
        rules: (0..4096).map(rule).collect(),
        ..Ruleset::default()
    };
    let error = compile(&ruleset).unwrap_err();
    assert!(
        matches!(error, TooLarge::Table { needed } if needed > 65_536),
        "{error}"
    );
    ruleset.rules.truncate(4000);
    assert!(compile(&ruleset).is_ok());
}

#[test]
fn too_many_ways_to_overlap_are_refused() {
    // Rule n covers the addresses whose bit n is set, so every address has another combination of rules.
    let rule = |bit: u16| {
        let prefixes = (0..1u32 << (16 - bit)).map(|upper| {
            let bits = 0x0a00_0000 | upper << (bit + 1) | 1 << bit;
            let length = u8::try_from(32 - bit).unwrap();
            Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), length).into()
        });
        own_port(bit, prefixes.collect())
    };
    let ruleset = Ruleset {
        rules: (0..17).map(rule).collect(),
        ..Ruleset::default()
    };
    let error = compile(&ruleset).unwrap_err();
    assert!(
        matches!(error, TooLarge::Leaves { needed } if needed > 131_000)
            && error.to_string().contains("its prefixes overlap in "),
        "{error}"
    );
}

#[test]
fn too_many_sets_on_the_same_addresses_are_refused() {
    let everywhere = |id: u16| own_port(id, vec!["0.0.0.0/0".parse().unwrap()]);
    let mut rules: Vec<Rule> = (0..4000).map(everywhere).collect();
    // Each address has its own order of all sets.
    for address in 0..9000u32 {
        let prefix = Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a00_0000 | address), 32);
        for rule in [address % 4000, (address * 7 + address / 4000) % 4000] {
            rules[rule as usize].prefixes.push(prefix.into());
        }
    }
    let ruleset = Ruleset {
        rules,
        ..Ruleset::default()
    };
    let error = compile(&ruleset).unwrap_err();
    assert_eq!(error, TooLarge::Overlaps);
    let words = "too many of its endpoint sets cover the same addresses";
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn too_many_combinations_of_ports_are_refused() {
    // Rule n lists the ports of both transports whose number has bit n, so every port has another combination of rules.
    let rule = |bit: u16| {
        let mut rule = own_port(bit, vec!["40.96.0.0/13".parse().unwrap()]);
        let ports = (0..70_000u32).filter(|number| number & 1 << bit != 0);
        rule.ports = ports
            .map(|number| {
                let port = u16::try_from(number & 0xffff).unwrap();
                PortRange {
                    transport: if number >> 16 == 0 {
                        Transport::Tcp
                    } else {
                        Transport::Udp
                    },
                    first: port,
                    last: port,
                }
            })
            .collect();
        rule
    };
    let ruleset = Ruleset {
        rules: (0..17).map(rule).collect(),
        ..Ruleset::default()
    };
    let error = compile(&ruleset).unwrap_err();
    assert!(
        matches!(error, TooLarge::Classes { needed } if needed == 70_000)
            && error
                .to_string()
                .contains("its endpoint sets list ports in "),
        "{error}"
    );
}
