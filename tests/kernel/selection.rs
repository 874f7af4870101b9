//! Which tests run in emulated machines with other kernels than the host's. An emulated machine needs minutes for what the host
//! does in seconds, so only tests of what kernels do differently run there: the verifier, hooks, helpers, links, routes and netfilter.

use crate::{Test, cards, link_kinds};

/// Tests that run under every kernel: the programs and how they are attached, replaced and removed.
const EVERY: &[&str] = &[
    "a_link_without_neighbours_translates",
    "a_million_prefixes_are_answered_exactly",
    "golden_verdicts_by_the_program",
    "killed_in_redirect_mode_nothing_is_lost",
    "later_fragments_follow_their_first_one",
    "reasons_by_the_programs",
    "redirect_by_tc_answers_what_is_too_long",
    "redirect_by_tc_carries_aggregates_of_any_length",
    "redirect_by_xdp_answers_what_is_too_long",
    "redirect_forwards_what_the_kernel_forwards",
    "redirect_translates_by_tc",
    "redirect_translates_by_xdp",
    "redirect_translates_fragments",
    "replies_are_redirected_too_if_wanted",
    "sigterm_removes_everything_in_redirect_mode",
    "sigterm_removes_everything_in_route_mode",
    "switches_under_traffic_lose_and_misplace_nothing",
    "ten_million_answers_by_the_kernel",
    "the_programs_are_far_from_the_verifiers_limit",
    "upgrades_in_redirect_mode_lose_and_misplace_nothing",
    "vlan_tags_count_wherever_they_stand",
    "xdp_rewrites_what_it_redirects",
    cards::VIRTIO,
    cards::VMXNET3,
    link_kinds::VLAN,
    link_kinds::NETEM,
];

/// Tests that run under the oldest kernel too: what the controller asks of routes, rules, netfilter and the older hooks.
const OLDEST: &[&str] = &[
    "a_clsact_qdisc_that_is_deleted_is_put_back",
    "a_dead_link_is_left_within_a_second",
    "a_lan_interface_that_comes_back_is_attached_again",
    "a_next_hop_is_learnt_from_every_kind_of_route",
    "a_next_hop_whose_mac_changes_unannounced_is_found",
    "a_program_that_is_taken_away_is_told_of",
    "an_egress_that_changes_its_mode_keeps_its_flows",
    "an_egress_whose_route_the_kernel_refuses_is_left",
    "another_xdp_program_is_respected",
    "downloads_by_a_narrow_egress_in_route_mode_go_on",
    "flows_stay_through_an_upgrade",
    "flows_that_a_firewall_drops_take_the_next_choice",
    "redirect_fails_open_without_a_controller",
    "redirect_from_a_bridge",
    "redirect_goes_through_a_shaper",
    "redirect_leaves_hard_packets_to_the_kernel",
    "rules_that_somebody_removes_come_back",
    "upgrades_in_route_mode_lose_and_misplace_nothing",
    "what_a_controller_leaves_is_removed_by_unload",
    "what_others_have_stays_as_it_is",
];

/// Panics if a name above is no test's.
pub(crate) fn check(tests: &[Test]) {
    for name in [EVERY, OLDEST].concat() {
        assert!(
            tests.iter().any(|(test, _)| *test == name),
            "tests/kernel/selection.rs names {name}, which is no test"
        );
    }
}

/// Whether a test is left out under this kernel; says so. BREAKOUT_TEST_KERNEL is `oldest` or `other` in an emulated machine
/// that is not asked for certain tests.
pub(crate) fn leaves_out(name: &str) -> bool {
    let runs = match std::env::var("BREAKOUT_TEST_KERNEL").as_deref() {
        Ok("oldest") => EVERY.contains(&name) || OLDEST.contains(&name),
        Ok("other") => EVERY.contains(&name),
        _ => true,
    };
    if !runs {
        println!("skipped: {name}: runs under the host's kernel");
    }
    !runs
}
