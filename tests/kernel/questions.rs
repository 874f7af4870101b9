//! Millions of questions to the table in the kernel, each answered as the rules are written.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use breakout::datapath::Asker;
use breakout::list::{Category, Instance, PortRange, embedded, read_file};
use breakout::policy::Action;
use breakout::ruleset::{Covering, Found, Ruleset, compile};
use breakout_common::question::{QUESTIONS, Question};
use breakout_common::table::Transport;
use breakout_common::verdict::{Decision, Reason};
use breakout_tests::programs;
use breakout_tests::rulesets::{
    add_conditions, address_in, by_default, client, edge_of, routed_prefix, rule, tangled_prefix,
    tangled_ruleset,
};
use fastrand::Rng;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use crate::{Test, setting};

pub(crate) const TESTS: &[Test] = &[
    ("ten_million_answers_by_the_kernel", ten_million),
    ("a_million_prefixes_are_answered_exactly", a_million),
];

/// Calls with a random ruleset each, and as many with published lists, unless BREAKOUT_TEST_CALLS says how many.
const CALLS: usize = 80;
/// Protocols and ports that each destination is asked with.
const KEYS: usize = 32;

fn ten_million() -> Result<()> {
    let calls = setting("BREAKOUT_TEST_CALLS", CALLS);
    let seed = Rng::new().u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let published = published()?;
    let mut asked = 0;
    for ruleset in &published {
        asked += ask(ruleset, calls.div_ceil(published.len()), &mut rng)?;
    }
    for _ in 0..calls {
        let mut ruleset = tangled_ruleset(&mut rng);
        if rng.bool() {
            add_conditions(&mut rng, &mut ruleset);
        }
        asked += ask(&ruleset, 1, &mut rng)?;
    }
    println!("{asked} questions, all answered as the rules are written");
    Ok(())
}

/// The most prefixes that are promised, in rules of one category and with the same ports, so that the longest prefix
/// wins: as a prefix trie says too.
fn a_million() -> Result<()> {
    const RULES: u16 = 8;
    let is_short = setting("BREAKOUT_TEST_CALLS", CALLS) < CALLS;
    let share = if is_short { 100 } else { 1 };
    let seed = Rng::new().u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut trie = JointPrefixMap::<IpNet, u16>::new();
    let mut prefixes = vec![Vec::new(); usize::from(RULES)];
    for (v6, count) in [(false, 1_000_000 / share), (true, 250_000 / share)] {
        for _ in 0..count {
            let (prefix, slot) = (routed_prefix(&mut rng, v6), rng.u16(..RULES));
            // The first rule that has a prefix keeps it.
            if trie.get(&prefix).is_none() {
                trie.insert(prefix, slot);
                prefixes[usize::from(slot)].push(prefix);
            }
        }
    }
    let ports = vec![PortRange {
        transport: Transport::Tcp,
        first: 443,
        last: 443,
    }];
    let all: Vec<IpNet> = prefixes.concat();
    let rules = (0..RULES).zip(prefixes);
    let rules =
        rules.map(|(slot, prefixes)| rule(slot, Category::Optimize, prefixes, ports.clone()));
    let ruleset = Ruleset {
        rules: rules.collect(),
        ..Ruleset::default()
    };
    let mut asker = Asker::load(programs::object(), &compile(&ruleset)?)?;
    for _ in 0..10usize.div_ceil(share) {
        let addresses: Vec<IpAddr> = (0..QUESTIONS)
            .map(|_| {
                let near = all[rng.usize(..all.len())];
                let beside = rng.bool();
                if beside {
                    edge_of(&mut rng, &near)
                } else {
                    address_in(&mut rng, &near)
                }
            })
            .collect();
        let questions: Vec<Question> = addresses
            .iter()
            .map(|address| Question {
                destination: (*address).into(),
                key: Transport::Tcp.key(443),
                client: client(&mut rng, &ruleset, address.is_ipv6()),
            })
            .collect();
        for (address, answer) in addresses.iter().zip(asker.ask(&questions)?) {
            let expected = match trie.get_lpm(&IpNet::from(*address)) {
                _ if is_group(*address) => Decision::pass(Reason::GroupAddress),
                None => Decision::pass(Reason::NoPrefix),
                Some((_, slot)) => Decision::steer(0, *slot),
            };
            ensure!(
                answer == expected.to_word(),
                "{address}: {answer:#x}, not {expected:?}"
            );
        }
    }
    println!("{} prefixes", all.len());
    Ok(())
}

/// The built-in lists, and those that the service has sent where they are at hand.
fn published() -> Result<Vec<Ruleset>> {
    let mut lists: Vec<_> = Instance::ALL
        .iter()
        .map(|instance| embedded(*instance))
        .collect();
    for name in ["worldwide.2025-11.json", "usgovgcchigh.2025-11.json"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/endpoints/");
        if let Ok(list) = read_file(format!("{path}{name}").as_ref(), Instance::Worldwide) {
            lists.push(list);
        }
    }
    lists.iter().map(by_default).collect()
}

/// Asks the kernel in so many calls. Returns the number of questions.
fn ask(ruleset: &Ruleset, calls: usize, rng: &mut Rng) -> Result<usize> {
    let mut asker = Asker::load(programs::object(), &compile(ruleset)?)?;
    let prefixes: Vec<IpNet> = ruleset
        .rules
        .iter()
        .flat_map(|rule| &rule.prefixes)
        .copied()
        .collect();
    for _ in 0..calls {
        let mut questions = Vec::with_capacity(QUESTIONS);
        let mut expected = Vec::with_capacity(QUESTIONS);
        while questions.len() < QUESTIONS {
            let address = address(rng, ruleset, &prefixes);
            let covering = ruleset.covering(address);
            for _ in 0..KEYS {
                let (transport, port) = key(rng, ruleset);
                let question = Question {
                    destination: address.into(),
                    key: transport.key(port),
                    client: client(rng, ruleset, address.is_ipv6()),
                };
                let decided = ruleset.decide(&covering, transport, port, &question.client);
                questions.push(question);
                expected.push(decision(ruleset, address, &covering, decided).to_word());
            }
        }
        let answers = asker.ask(&questions)?;
        for ((question, answer), expected) in questions.iter().zip(&answers).zip(&expected) {
            ensure!(
                answer == expected,
                "{question:x?}: the kernel says {answer:#x}, the rules {expected:#x}"
            );
        }
    }
    Ok(calls * QUESTIONS)
}

fn address(rng: &mut Rng, ruleset: &Ruleset, prefixes: &[IpNet]) -> IpAddr {
    let near = *rng.choice(prefixes).expect("every ruleset has prefixes");
    match (rng.u8(0..8), ruleset.own.as_slice()) {
        (0, _) => tangled_prefix(rng).addr(),
        (1, [first, ..]) => edge_of(rng, &IpNet::from(*first)),
        (1..5, _) => edge_of(rng, &near),
        _ => address_in(rng, &near),
    }
}

/// A port at the edge of a rule's range, or any.
fn key(rng: &mut Rng, ruleset: &Ruleset) -> (Transport, u16) {
    let transport = if rng.bool() {
        Transport::Tcp
    } else {
        Transport::Udp
    };
    let rule = rng.choice(&ruleset.rules).expect("every ruleset has rules");
    let ports = rng.choice(&rule.ports).expect("every rule has ports");
    match rng.u8(0..4) {
        0 => (transport, rng.u16(..)),
        1 => (ports.transport, ports.first.wrapping_sub(rng.u16(0..2))),
        2 => (ports.transport, ports.last.wrapping_add(rng.u16(0..2))),
        _ => (transport, rng.u16(ports.first..=ports.last)),
    }
}

/// Returns whether an address is multicast, broadcast or reserved.
fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[0] >= 224,
        IpAddr::V6(address) => address.is_multicast(),
    }
}

/// What the rules say, read one after the other.
fn decision(
    ruleset: &Ruleset,
    address: IpAddr,
    covering: &[Covering<'_>],
    decided: Option<Found<'_>>,
) -> Decision {
    if is_group(address) {
        return Decision::pass(Reason::GroupAddress);
    }
    if ruleset.own.contains(&address) {
        return Decision::pass(Reason::OwnAddress);
    }
    if covering.is_empty() {
        return Decision::pass(Reason::NoPrefix);
    }
    let Some(found) = decided else {
        return Decision::pass(Reason::NoPort);
    };
    let slot = found.set.rule.slot;
    match found.choice.map(|choice| (choice.action, choice.shadow)) {
        Some((Action::Steer(egress), false)) => Decision::steer(egress, slot),
        Some((Action::Steer(_), true)) => Decision::pass_set(Reason::Shadow, slot),
        Some((Action::Pass, _)) | None => Decision::pass_set(Reason::Policy, slot),
    }
}
