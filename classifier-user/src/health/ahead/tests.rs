//! Tests of paths that are broken ahead, and of those that are not.

use super::*;

/// Flow `number` of a client to a destination.
fn flow(number: u32, client: u64, destination: u64, opens_tcp: bool) -> (u32, Silent) {
    let silent = Silent {
        client: (0, client),
        destination: (0, destination),
        opens_tcp,
    };
    (number, silent)
}

/// A path on which these flows begin; none of them is answered, and after `answered` other flows it is judged.
fn judged(flows: &[(u32, Silent)], answered: u64) -> bool {
    let (mut ahead, start) = (Ahead::default(), Instant::now());
    assert!(ahead.wants_flows());
    ahead.watch(start, flows.to_vec());
    ahead.look(start + PATIENCE - Duration::from_millis(1), |_| Some(false));
    assert!(!ahead.is_broken());
    ahead.note_answered(start, answered);
    ahead.look(start + PATIENCE, |_| Some(false));
    ahead.is_broken()
}

#[test]
fn several_clients_without_an_answer_from_several_destinations_break_it() {
    assert!(judged(&[flow(1, 1, 8, true), flow(2, 2, 9, true)], 0));
    assert!(judged(&[flow(1, 1, 8, true), flow(2, 2, 9, false)], 0));
    // One client, who wants much.
    let one = [8, 8, 8, 9].map(|to| flow(to, 1, u64::from(to), true));
    assert!(judged(&one, 0));
    // Little, but for long.
    assert!(!judged(&one[1..], 0));
    let (mut ahead, start) = (Ahead::default(), Instant::now());
    ahead.watch(start, one[1..].to_vec());
    for millis in (0..6000).step_by(250) {
        ahead.look(start + Duration::from_millis(millis), |_| Some(false));
        assert!(!ahead.is_broken());
    }
    ahead.look(start + FEW, |_| Some(false));
    assert!(ahead.is_broken());
}

#[test]
fn a_destination_that_is_down_does_not() {
    let down: Vec<_> = (0..500)
        .map(|number| flow(number, u64::from(number % 50), 8, true))
        .collect();
    assert!(!judged(&down, 0));
}

#[test]
fn a_client_that_scans_does_not_while_others_are_answered() {
    let scan: Vec<_> = (0..1000)
        .map(|number| flow(number, 7, u64::from(number), true))
        .collect();
    assert!(!judged(&scan, 1));
}

#[test]
fn datagrams_alone_do_not() {
    // Their answers may come by another way than this gateway.
    let datagrams: Vec<_> = (0..100)
        .map(|number| flow(number, u64::from(number), u64::from(number), false))
        .collect();
    assert!(!judged(&datagrams, 0));
}

#[test]
fn what_is_answered_late_or_gone_does_not_count() {
    let (mut ahead, start) = (Ahead::default(), Instant::now());
    let flows = [8, 9, 10, 11].map(|to| flow(to, u64::from(to), u64::from(to), true));
    ahead.watch(start, flows.to_vec());
    ahead.look(start + PATIENCE, |number| (*number == 8).then_some(false));
    assert!(!ahead.is_broken() && ahead.wants_flows());
    // One that goes on has been answered, whoever has seen that.
    ahead.watch(start, flows.to_vec());
    ahead.look(start + PATIENCE, |number| Some(*number == 8));
    assert!(!ahead.is_broken() && ahead.wants_flows());
}

#[test]
fn it_is_tried_again_ever_more_rarely_and_whole_with_the_first_answer() {
    let (mut ahead, mut now) = (Ahead::default(), Instant::now());
    let flows = [flow(1, 1, 8, true), flow(2, 2, 9, true)];
    ahead.watch(now, flows.to_vec());
    now += PATIENCE;
    ahead.look(now, |_| Some(false));
    assert!(ahead.is_broken() && !ahead.is_tried() && !ahead.wants_flows());
    for pause in [10, 20, 40, 60, 60] {
        let pause = Duration::from_secs(pause);
        ahead.look(now + pause - Duration::from_millis(1), |_| Some(false));
        assert!(!ahead.is_tried(), "{pause:?}");
        now += pause;
        ahead.look(now, |_| Some(false));
        assert!(ahead.is_broken() && ahead.is_tried() && ahead.wants_flows());
        // Datagrams that nobody answers do not count.
        now += UNTRIED / 2;
        ahead.watch(now, vec![flow(3, 1, 8, false)]);
        ahead.look(now + PATIENCE, |_| Some(false));
        assert!(ahead.is_tried());
        ahead.watch(now, vec![flow(3, 1, 8, true)]);
        now += PATIENCE;
        ahead.look(now, |_| Some(false));
        assert!(ahead.is_broken() && !ahead.is_tried());
    }
    now += Duration::from_secs(60);
    ahead.look(now, |_| Some(false));
    assert!(ahead.note_answered(now, 1));
    assert!(!ahead.is_broken() && ahead.wants_flows() && !ahead.note_answered(now, 1));
}

#[test]
fn what_nobody_tries_and_what_is_dead_is_not_said_to_be_broken() {
    let broken = |now: Instant| {
        let mut ahead = Ahead::default();
        ahead.watch(now, vec![flow(1, 1, 8, true), flow(2, 2, 9, true)]);
        ahead.look(now + PATIENCE, |_| Some(false));
        assert!(ahead.is_broken());
        ahead
    };
    let start = Instant::now();
    let mut ahead = broken(start);
    let tried = start + PATIENCE + PAUSES[0];
    ahead.look(tried, |_| None);
    ahead.look(tried + UNTRIED - Duration::from_millis(1), |_| None);
    assert!(ahead.is_tried());
    ahead.look(tried + UNTRIED, |_| None);
    assert!(!ahead.is_broken());
    let mut ahead = broken(start);
    ahead.give_up();
    assert!(!ahead.is_broken() && ahead.wants_flows());
}

#[test]
fn what_heals_and_breaks_again_is_tried_ever_more_rarely() {
    let (mut ahead, mut now) = (Ahead::default(), Instant::now());
    let flows = vec![flow(1, 1, 8, true), flow(2, 2, 9, true)];
    for (number, pause) in [(1, 10), (2, 20), (3, 40), (4, 60)] {
        ahead.watch(now, flows.clone());
        now += PATIENCE;
        ahead.look(now, |_| Some(false));
        let pause = Duration::from_secs(pause);
        ahead.look(now + pause - Duration::from_millis(1), |_| None);
        assert!(ahead.is_broken() && !ahead.is_tried());
        now += pause;
        ahead.look(now, |_| None);
        assert!(ahead.is_tried() && ahead.note_answered(now, number) && !ahead.is_broken());
    }
    now += FORGOTTEN;
    ahead.watch(now, flows);
    now += PATIENCE;
    ahead.look(now, |_| Some(false));
    ahead.look(now + PAUSES[0], |_| None);
    assert!(ahead.is_tried());
}
