//! Millions of questions to the table in the kernel, each answered as the rules are written.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use breakout::datapath::Asker;
use breakout::list::{Instance, embedded, read_file};
use breakout::policy::{Action, Policy};
use breakout::ruleset::{Covering, Ruleset, Slots, compile, winner};
use breakout_common::question::{QUESTIONS, Question};
use breakout_common::table::{Destination, Transport};
use breakout_common::verdict::{Decision, Reason, Verdict};
use breakout_tests::programs;
use breakout_tests::random::{address_in, edge_of, tangled_prefix, tangled_ruleset};
use fastrand::Rng;
use ipnet::IpNet;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("ten_million_answers_by_the_kernel", ten_million)];

/// Calls with a random ruleset each, and as many with published lists, unless BREAKOUT_TEST_CALLS says how many.
const CALLS: usize = 80;
/// Protocols and ports that each destination is asked with.
const KEYS: usize = 32;

fn ten_million() -> Result<()> {
    let chosen = std::env::var("BREAKOUT_TEST_CALLS").ok();
    let calls = chosen.and_then(|text| text.parse().ok()).unwrap_or(CALLS);
    let seed = Rng::new().u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let published = published()?;
    let mut asked = 0;
    for ruleset in &published {
        asked += ask(ruleset, calls.div_ceil(published.len()), &mut rng)?;
    }
    for _ in 0..calls {
        asked += ask(&tangled_ruleset(&mut rng), 1, &mut rng)?;
    }
    println!("{asked} questions, all answered as the rules are written");
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
    let policy = Policy { egress: 0 };
    lists
        .iter()
        .map(|list| Ruleset::new(std::slice::from_ref(list), &policy, &mut Slots::default()))
        .collect()
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
                questions.push(Question {
                    destination: destination(address),
                    key: transport.key(port),
                });
                expected.push(decision(ruleset, address, &covering, transport, port).to_word());
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

fn destination(address: IpAddr) -> Destination {
    match address {
        IpAddr::V4(address) => Destination::V4(address.to_bits()),
        IpAddr::V6(address) => {
            let [high, low] = [0, 64].map(|shift| {
                u64::try_from(address.to_bits() << shift >> 64).expect("a half of it")
            });
            Destination::V6(high, low)
        }
    }
}

/// What the rules say, read one after the other.
fn decision(
    ruleset: &Ruleset,
    address: IpAddr,
    covering: &[Covering<'_>],
    transport: Transport,
    port: u16,
) -> Decision {
    let is_group = match address {
        IpAddr::V4(address) => address.octets()[0] >= 224,
        IpAddr::V6(address) => address.is_multicast(),
    };
    if is_group {
        return Decision::pass(Reason::GroupAddress);
    }
    if ruleset.own.contains(&address) {
        return Decision::pass(Reason::OwnAddress);
    }
    if covering.is_empty() {
        return Decision::pass(Reason::NoPrefix);
    }
    let Some(found) = winner(covering, transport, port) else {
        return Decision::pass(Reason::NoPort);
    };
    let (verdict, reason) = match found.rule.action {
        Action::Steer(egress) => (Verdict::Steer(egress), Reason::Steered),
        Action::Pass => (Verdict::Pass, Reason::Policy),
    };
    Decision {
        verdict,
        reason,
        set: Some(found.rule.slot),
    }
}
