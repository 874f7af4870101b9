//! Tests that need root, eBPF and network namespaces. Where those are missing, every test is reported as skipped.

mod adopt;
mod any_link;
mod assess;
mod bad_input;
mod boundaries;
mod captive;
mod cards;
mod cleanup;
mod coturn;
mod egress;
mod failover;
mod families;
mod feed;
mod flows;
mod follow;
mod golden;
mod headers;
mod icmp;
mod link_kinds;
mod links;
mod manual;
mod messages;
mod mtu;
mod nat;
mod office;
mod orders;
mod passive;
mod pinning;
mod policy;
mod probes;
mod proxies;
mod questions;
mod redirect;
mod reload;
mod replay;
mod routing;
mod seeing;
mod selection;
mod several;
mod sound;
mod switch;
mod synthetic;
mod thousand;
mod traffic;
mod translation;
mod tunnels;
mod unmoved;
mod upgrade;
mod watching;

use std::panic;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use breakout_tests::requirements;
use libtest_mimic::{Arguments, Failed, Trial};

/// A number that the environment may set, to make a long test shorter.
fn setting(name: &str, default: usize) -> usize {
    let chosen = std::env::var(name).ok();
    chosen.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How long a test takes before it says so.
const LONG: Duration = Duration::from_secs(15);

type Test = (&'static str, fn() -> anyhow::Result<()>);

/// Tests of what older kernels do not have: name, and the kernel that brought it.
const NEEDS: &[(&str, u32, u32)] = &[
    ("an_egress_that_takes_no_frames_now_is_left_to_tc", 6, 3),
    ("doctor_sends_packets_and_nothing_leaves", 6, 6),
    ("doctor_shows_where_packets_are_lost", 6, 6),
];

/// Tests of what newer kernels do otherwise: name, and the first of those.
const BEFORE: &[(&str, u32, u32)] = &[("a_clsact_qdisc_that_is_deleted_is_put_back", 6, 6)];

/// Tests of what else runs on gateways: the start of their names, and the program.
const TOOLS: &[(&str, &str)] = &[
    ("squid_", "squid"),
    ("what_others_have", "iptables"),
    ("a_new_address_by_dhcp", "dhclient"),
    ("events_flows_and_metrics", "curl"),
    ("a_full_table_of_pins", "curl"),
    ("a_family_that_is_not_there", "curl"),
    ("a_program_that_is_taken_away", "curl"),
    ("a_link_without_neighbours", "socat"),
    ("the_manuals_generators", "trafgen"),
    ("the_manuals_iperf3", "iperf3"),
    ("top_shows", "tmux"),
    ("prometheus_scrapes", "prometheus"),
    ("a_turn_relay", "turnserver"),
    ("assess_", "turnserver"),
    ("assess_", "dnsmasq"),
];

/// Returns whether a program is missing that a test runs; says so.
fn lacks_tool(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |tool: &str| {
        std::env::split_paths(&paths).any(|path| path.join(tool).exists())
            || requirements::unpacked(tool).is_some()
    };
    let mut tools = TOOLS.iter().filter(|(start, _)| name.starts_with(start));
    let missing = tools.find(|(_, tool)| !is_there(tool));
    if let Some((_, tool)) = missing {
        println!("skipped: {name}: there is no {tool}");
    }
    missing.is_some()
}

/// Returns whether this kernel lacks what a test needs; says so.
fn lacks(name: &str) -> bool {
    if let Some(missing) = link_kinds::lacks(name).or_else(|| cards::lacks(name)) {
        println!("skipped: {name}: {missing}");
        return true;
    }
    let before = BEFORE.iter().find(|(test, ..)| *test == name);
    if let Some((_, major, minor)) = before
        && requirements::kernel_at_least(*major, *minor).unwrap_or(true)
    {
        println!("skipped: {name}: is about kernels before Linux {major}.{minor}");
        return true;
    }
    let needs = NEEDS.iter().find(|(test, ..)| *test == name);
    needs.is_some_and(|(_, major, minor)| {
        let old = !requirements::kernel_at_least(*major, *minor).unwrap_or(false);
        if old {
            println!("skipped: {name}: needs Linux {major}.{minor}");
        }
        old
    })
}

/// Runs a test, and after a failure once more where BREAKOUT_TEST_TRIES says so: beside other machines on the same processors
/// an emulated one stands still for seconds. What failed at first is said, so that it is looked at, and so is what takes long.
fn attempt(name: &str, test: fn() -> anyhow::Result<()>) -> Result<(), Failed> {
    let started = Instant::now();
    let mut tries = setting("BREAKOUT_TEST_TRIES", 1);
    let result = loop {
        tries -= 1;
        let why = match panic::catch_unwind(test) {
            Ok(Ok(())) => break Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) if tries == 0 => panic::resume_unwind(panic),
            Err(_) => "a panic".to_owned(),
        };
        if tries == 0 {
            break Err(Failed::from(why));
        }
        println!("unsteady: {name}: {}", why.replace('\n', " "));
    };
    if started.elapsed() > LONG {
        println!("{name} took {} s", started.elapsed().as_secs());
    }
    result
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests wait most of their time, but labs that share a processor with too many others make timeouts likely.
    arguments
        .test_threads
        .get_or_insert(setting("BREAKOUT_TEST_LABS", 3));
    let missing = requirements::missing();
    let tests: Vec<Test> = [
        golden::TESTS,
        headers::TESTS,
        questions::TESTS,
        flows::TESTS,
        redirect::TESTS,
        any_link::TESTS,
        cards::TESTS,
        mtu::TESTS,
        nat::TESTS,
        sound::TESTS,
        egress::TESTS,
        unmoved::TESTS,
        families::TESTS,
        failover::TESTS,
        translation::TESTS,
        several::TESTS,
        links::TESTS,
        probes::TESTS,
        captive::TESTS,
        assess::TESTS,
        pinning::TESTS,
        icmp::TESTS,
        proxies::TESTS,
        seeing::TESTS,
        synthetic::TESTS,
        link_kinds::TESTS,
        tunnels::TESTS,
        routing::TESTS,
        reload::TESTS,
        replay::TESTS,
        switch::TESTS,
        policy::TESTS,
        manual::TESTS,
        follow::TESTS,
        feed::TESTS,
        orders::TESTS,
        passive::TESTS,
        thousand::TESTS,
        adopt::TESTS,
        upgrade::TESTS,
        watching::TESTS,
        cleanup::TESTS,
        boundaries::TESTS,
        bad_input::TESTS,
        messages::TESTS,
    ]
    .concat();
    selection::check(&tests);
    let tests = selection::remaining(tests);
    if let Some(reason) = &missing {
        println!("skipped: {} kernel tests: {reason}", tests.len());
    }
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || attempt(name, test)).with_ignored_flag(
            missing.is_some() || selection::leaves_out(name) || lacks(name) || lacks_tool(name),
        )
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
