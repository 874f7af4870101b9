//! Tests that need root, eBPF and network namespaces. Where those are missing, every test is reported as skipped.

mod adopt;
mod any_link;
mod bad_input;
mod boundaries;
mod cards;
mod cleanup;
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
mod several;
mod sound;
mod switch;
mod thousand;
mod traffic;
mod translation;
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
const NEEDS: &[(&str, u32, u32)] = &[("an_egress_that_takes_no_frames_now_is_left_to_tc", 6, 3)];

/// Tests of what newer kernels do otherwise: name, and the first of those.
const BEFORE: &[(&str, u32, u32)] = &[("a_clsact_qdisc_that_is_deleted_is_put_back", 6, 6)];

/// Tests for which the kernel makes no difference, beside those of whole modules.
const OF_NO_KERNEL: &[&str] = &[
    "a_bad_list_or_config_changes_nothing",
    "a_call_that_returns_with_its_ports_is_translated",
    "a_cleared_mark_is_an_alert",
    "a_config_typo_is_refused",
    "a_failed_installation_leaves_the_one_before_in_force",
    "a_flapping_link_splits_and_loses_nothing",
    "a_gateway_beyond_the_prefix_is_reached_by_its_route",
    "a_gateway_that_is_not_on_link_is_refused",
    "a_huge_broken_list_costs_little",
    "a_lan_interface_that_is_missing_holds_up_no_other",
    "a_full_link_ends_no_connection",
    "a_link_that_is_down_at_the_start_is_waited_for",
    "a_link_whose_flows_are_answered_is_not_dead",
    "a_next_hop_with_another_mac_is_followed",
    "a_relay_that_is_silent_costs_the_media_only",
    "a_rule_that_only_looks_like_ours_is_replaced",
    "a_second_controller_is_refused",
    "an_egress_interface_that_comes_back_is_used_again",
    "an_egress_without_any_gateway_is_refused",
    "bad_lists_are_refused",
    "commands_without_a_controller_say_so",
    "doctor_follows_packets_through_the_firewall",
    "flows_of_a_gap_of_our_rules_are_translated_again",
    "golden_verdicts_by_explain",
    "half_a_table_of_flows_keeps_nobody_from_starting",
    "media_leaves_a_lossy_link_and_mail_stays",
    "missing_interfaces_are_refused",
    "our_table_is_made_again_if_somebody_flushes_all",
    "pins_of_a_version_before_are_carried_over",
    "pins_that_are_removed_are_put_back",
    "probes_are_few",
    "probes_of_each_kind_are_answered",
    "redirect_beside_an_xdp_program_of_others",
    "redirect_from_a_lan_that_refuses_xdp",
    "replay_of_a_damaged_capture_says_so",
    "replay_sums_up",
    "sighup_reloads",
    "somebody_elses_translation_is_an_alert",
    "the_manuals_export_of_routes_follows_the_list",
    "the_manuals_policy_is_tried_and_applied",
    "the_operators_own_nat_is_moved_along",
    "trace_logs_decisions_only_when_asked",
    "traceroute_shows_the_gateway_in_redirect_mode",
    "unload_removes_our_table_too",
    "what_a_bypass_moves_is_translated_afresh",
    "what_a_hard_rule_moves_is_translated_afresh",
    "what_a_stop_moves_is_translated_afresh",
    "without_root_it_says_so",
    "a_new_public_address_is_used_at_once",
    "a_translating_egress_leaves_others_alone",
    "masquerading_moves_from_the_kernel_to_the_programs",
    "public_ports_stay_over_a_failover",
    "public_ports_that_run_out_are_an_alert",
    "strangers_do_not_get_in_by_a_public_port",
    "translated_flows_keep_their_public_ports",
    "clients_hear_that_a_port_is_closed",
    "redirect_by_tc_says_what_it_leaves",
    "redirect_follows_a_new_mac_of_the_next_hop",
    "redirect_that_translates_answers_what_is_too_long",
    "redirect_to_a_macvlan",
    "redirect_whose_replies_a_firewall_drops_takes_the_next_choice",
    "redirect_without_next_hop_is_forwarded_by_the_kernel",
    "tcp_finds_a_narrow_link_behind_a_redirecting_egress",
    "tcp_finds_a_narrow_link_behind_a_translating_egress",
];

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
];

/// Whether a program is missing that a test runs; says so.
fn lacks_tool(name: &str) -> bool {
    let tool = TOOLS.iter().find(|(start, _)| name.starts_with(start));
    tool.is_some_and(|(_, tool)| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let is_there = std::env::split_paths(&paths).any(|path| path.join(tool).exists())
            || requirements::unpacked(tool).is_some();
        if !is_there {
            println!("skipped: {name}: there is no {tool}");
        }
        !is_there
    })
}

/// Whether a test is left out under this kernel because others show as much; says so. BREAKOUT_TEST_KERNEL is `oldest` for
/// what any kernel but the machine's own can show, and `other` for what each of them may do differently: programs, maps and links.
fn is_shown_elsewhere(name: &str) -> bool {
    let is_of = |modules: &[&[Test]]| modules.concat().iter().any(|(test, _)| *test == name);
    let is_same = OF_NO_KERNEL.contains(&name)
        || is_of(&[
            follow::TESTS,
            feed::TESTS,
            orders::TESTS,
            thousand::TESTS,
            messages::TESTS,
            boundaries::TESTS,
            failover::TESTS,
            unmoved::TESTS,
            families::TESTS,
            several::TESTS,
            pinning::TESTS,
            seeing::TESTS,
            policy::TESTS,
        ]);
    let is_of_links = is_of(&[
        egress::TESTS,
        translation::TESTS,
        links::TESTS,
        probes::TESTS,
        icmp::TESTS,
        routing::TESTS,
        reload::TESTS,
        replay::TESTS,
        bad_input::TESTS,
    ]);
    let why = match std::env::var("BREAKOUT_TEST_KERNEL").as_deref() {
        Ok("oldest" | "other") if is_same => "the same under every kernel",
        Ok("other") if is_of_links => "shown under the oldest kernel and the machine's own",
        _ => return false,
    };
    println!("skipped: {name}: {why}");
    true
}

/// Whether this kernel lacks what a test needs; says so.
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
    // The tests measure nothing, but two machines' worth of labs on one core make timeouts likely.
    arguments.test_threads.get_or_insert(2);
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
        pinning::TESTS,
        icmp::TESTS,
        proxies::TESTS,
        seeing::TESTS,
        link_kinds::TESTS,
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
    if let Some(reason) = &missing {
        println!("skipped: {} kernel tests: {reason}", tests.len());
    }
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || attempt(name, test)).with_ignored_flag(
            missing.is_some() || is_shown_elsewhere(name) || lacks(name) || lacks_tool(name),
        )
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
