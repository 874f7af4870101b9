//! Which tests run in emulated machines with other kernels than the host's. An emulated machine needs minutes for what the host
//! does in seconds, so only tests of what kernels do differently run there: the verifier, hooks, helpers, links, routes and netfilter.

use crate::{Test, cards, link_kinds, tunnels};

/// Tests that run under every kernel: the programs and how they are attached, replaced and removed.
const EVERY: &[&str] = &[
    "golden_verdicts_by_the_program",
    "redirect_by_xdp_answers_what_is_too_long",
    "redirect_translates_by_tc",
    "redirect_translates_by_xdp",
    "sigterm_removes_everything_in_redirect_mode",
    "the_programs_are_far_from_the_verifiers_limit",
    "xdp_rewrites_what_it_redirects",
    link_kinds::VLAN,
    tunnels::GRE,
];

/// Tests that run under the oldest kernel too: what the controller asks of routes, rules, netfilter and the older hooks.
const OLDEST: &[&str] = &[
    "later_fragments_follow_their_first_one",
    "redirect_by_tc_answers_what_is_too_long",
    "replies_are_redirected_too_if_wanted",
    "switches_under_traffic_lose_and_misplace_nothing",
    "upgrades_in_redirect_mode_lose_and_misplace_nothing",
    "a_clsact_qdisc_that_is_deleted_is_put_back",
    "a_lan_interface_that_comes_back_is_attached_again",
    "a_next_hop_is_learnt_from_every_kind_of_route",
    "another_xdp_program_is_respected",
    "flows_that_a_firewall_drops_take_the_next_choice",
    "redirect_from_a_bridge",
    "rules_that_somebody_removes_come_back",
    "sigterm_removes_everything_in_route_mode",
    "upgrades_in_route_mode_lose_and_misplace_nothing",
    cards::VIRTIO,
    link_kinds::NETEM,
];

/// Tests that run under the other kernels beside those of every one: XDP by vmxnet3 is younger than the oldest.
const OTHER: &[&str] = &[cards::VMXNET3];

/// Panics if a name above is no test's.
pub(crate) fn check(tests: &[Test]) {
    for name in [EVERY, OLDEST, OTHER].concat() {
        assert!(
            tests.iter().any(|(test, _)| *test == name),
            "tests/kernel/selection.rs names {name}, which is no test"
        );
    }
}

/// The tests that are left for an emulated machine that ended in the middle: those after the one in BREAKOUT_TEST_AFTER.
pub(crate) fn remaining(tests: Vec<Test>) -> Vec<Test> {
    let after = std::env::var("BREAKOUT_TEST_AFTER").unwrap_or_default();
    let ended = tests.iter().position(|(name, _)| *name == after);
    let skip = ended.map_or(0, |place| place + 1);
    tests.into_iter().skip(skip).collect()
}

/// Returns whether a test is left out under this kernel; says so. BREAKOUT_TEST_KERNEL is `oldest` or `other` in an emulated machine
/// that is not asked for certain tests.
pub(crate) fn leaves_out(name: &str) -> bool {
    let runs = match std::env::var("BREAKOUT_TEST_KERNEL").as_deref() {
        Ok("oldest") => EVERY.contains(&name) || OLDEST.contains(&name),
        Ok("other") => EVERY.contains(&name) || OTHER.contains(&name),
        _ => true,
    };
    if !runs {
        println!("skipped: {name}: runs under the host's kernel");
    }
    !runs
}
