//! Limits, hysteresis and hold-down.

use std::time::Duration;

use super::*;

fn measure(loss: f64, latency: f64) -> Measure {
    Measure {
        alive: Some(true),
        loss,
        latency_ms: Some(latency),
        ..Measure::default()
    }
}

struct Case {
    judge: Judge,
    now: Instant,
    limits: HealthConfig,
    life: Life,
}

impl Case {
    fn new() -> Self {
        Case {
            judge: Judge::default(),
            now: Instant::now(),
            limits: HealthConfig::default(),
            life: Life::default(),
        }
    }

    /// Seconds later, with this measure.
    fn after(&mut self, seconds: u64, problem: Option<&str>, measure: &Measure) -> State {
        self.now += Duration::from_secs(seconds);
        self.judge
            .look(self.now, &self.limits, problem, Some(measure), self.life);
        self.judge.standing().state
    }
}

#[test]
fn loss_drives_media_out_and_mail_stays() {
    let mut case = Case::new();
    assert_eq!(case.after(0, None, &measure(0.0, 20.0)), State::Up);
    assert_eq!(case.after(1, None, &measure(0.2, 20.0)), State::Degraded);
    assert!(case.judge.works(Class::Standard) && !case.judge.works(Class::Media));
    // Better, but not twice as good as the limit.
    assert_eq!(case.after(60, None, &measure(0.015, 20.0)), State::Degraded);
    assert_eq!(case.after(1, None, &measure(0.005, 20.0)), State::Degraded);
    assert_eq!(case.after(9, None, &measure(0.005, 20.0)), State::Degraded);
    assert_eq!(case.after(1, None, &measure(0.005, 20.0)), State::Up);
    assert_eq!(case.after(1, None, &measure(0.5, 20.0)), State::Down);
}

#[test]
fn a_link_that_flaps_is_not_used_between_flaps() {
    let mut case = Case::new();
    let good = measure(0.0, 20.0);
    case.after(0, None, &good);
    for _ in 0..10 {
        assert_eq!(case.after(1, Some("no carrier"), &good), State::Down);
        assert_eq!(case.after(1, None, &good), State::Down);
        assert_eq!(case.after(9, None, &good), State::Down);
    }
    assert!(case.judge.standing().why.unwrap().contains("10s"));
    assert_eq!(case.after(1, None, &good), State::Up);
    assert_eq!(case.judge.standing().why, None);
}

#[test]
fn front_doors_that_do_not_answer_leave_media_alone() {
    let mut case = Case::new();
    let shut = Measure {
        doors: Some(false),
        ..measure(0.0, 20.0)
    };
    case.after(0, None, &measure(0.0, 20.0));
    assert_eq!(case.after(1, None, &shut), State::Degraded);
    assert!(case.judge.works(Class::Media));
    assert_eq!(case.after(1, None, &measure(0.0, 2500.0)), State::Down);
    let score = |loss, latency| score(&measure(loss, latency), &HealthConfig::default());
    assert!(score(0.0, 10.0) > 9.9 && score(0.2, 10.0) < 5.1 && score(0.4, 10.0) < 0.1);
}

#[test]
fn relays_that_do_not_answer_leave_mail_alone() {
    let mut case = Case::new();
    let mute = Measure {
        relays: Some(false),
        ..measure(0.0, 20.0)
    };
    case.after(0, None, &measure(0.0, 20.0));
    assert_eq!(case.after(1, None, &mute), State::Degraded);
    assert!(case.judge.works(Class::Standard));
}

#[test]
fn a_new_link_must_answer_but_not_wait() {
    let mut case = Case::new();
    let untried = Measure::untried(&["icmp:192.0.2.1".parse().unwrap()]);
    assert_eq!(case.after(0, None, &untried), State::Down);
    assert_eq!(case.after(1, None, &measure(0.0, 20.0)), State::Up);
    // One that turns out to be dead is not new any more.
    let mut case = Case::new();
    let dead = Measure {
        alive: Some(false),
        ..untried
    };
    case.after(0, None, &dead);
    assert_eq!(case.after(1, None, &measure(0.0, 20.0)), State::Down);
}

#[test]
fn a_successor_goes_on_from_the_verdict() {
    let mut case = Case::new();
    let good = measure(0.0, 20.0);
    case.after(0, None, &good);
    case.after(1, None, &measure(0.1, 20.0));
    let verdict = case.judge.verdict();
    assert!(verdict.standard && !verdict.media);
    let untried = Measure::untried(&["icmp:192.0.2.1".parse().unwrap()]);
    let mut next = Case {
        judge: Judge::resume(verdict),
        ..Case::new()
    };
    assert_eq!(next.judge.verdict(), verdict);
    assert_eq!(next.after(0, None, &untried), State::Degraded);
    assert_eq!(next.after(1, None, &good), State::Degraded);
    assert_eq!(next.after(10, None, &good), State::Up);
}

#[test]
fn a_link_that_is_back_must_answer_first() {
    let mut case = Case::new();
    let good = measure(0.0, 20.0);
    let untried = Measure::untried(&["icmp:192.0.2.1".parse().unwrap()]);
    assert_eq!(case.after(0, None, &good), State::Up);
    assert_eq!(case.after(1, Some("no carrier"), &good), State::Down);
    assert_eq!(case.after(60, None, &untried), State::Down);
    assert_eq!(case.after(1, None, &good), State::Down);
    assert_eq!(case.after(10, None, &good), State::Up);
    assert_eq!(case.after(1, None, &untried), State::Up);
}

#[test]
fn without_probes_the_link_alone_decides() {
    let mut case = Case::new();
    let limits = HealthConfig::default();
    assert_eq!(
        case.judge.look(case.now, &limits, None, None, case.life),
        Some(State::Down)
    );
    assert_eq!(
        case.judge.look(case.now, &limits, None, None, case.life),
        None
    );
    assert_eq!(case.judge.standing().score, 10.0);
    assert_eq!(
        case.judge
            .look(case.now, &limits, Some("gone"), None, case.life),
        Some(State::Up)
    );
    assert_eq!(case.judge.standing().score, 0.0);
}

#[test]
fn what_is_answered_is_not_dead_whatever_the_probes_say() {
    let mut case = Case::new();
    let good = measure(0.0, 20.0);
    let silent = Measure {
        alive: Some(false),
        ..measure(0.3, 20.0)
    };
    case.after(0, None, &good);
    case.life = Life {
        is_alive: true,
        is_recent: true,
    };
    assert_eq!(case.after(1, None, &silent), State::Degraded);
    assert!(case.judge.works(Class::Standard) && !case.judge.works(Class::Media));
    // A lost carrier is no question.
    assert_eq!(case.after(1, Some("no carrier"), &silent), State::Down);
    assert!(!case.judge.keeps(Class::Standard));
    // What has been left comes back by probes alone.
    assert_eq!(case.after(1, None, &silent), State::Down);
    case.after(1, None, &good);
    assert_eq!(case.after(10, None, &good), State::Up);
    // Without an answer just now it is dead at once.
    case.life.is_alive = false;
    assert_eq!(case.after(1, None, &silent), State::Down);
    assert!(!case.judge.keeps(Class::Standard));
}

#[test]
fn a_full_link_keeps_the_flows_that_it_has() {
    let mut case = Case::new();
    let full = Measure {
        idle_latency_ms: Some(20.0),
        ..measure(0.0, 1900.0)
    };
    case.after(0, None, &measure(0.0, 20.0));
    case.life.is_recent = true;
    assert_eq!(case.after(1, None, &full), State::Degraded);
    assert!(!case.judge.works(Class::Standard) && case.judge.keeps(Class::Standard));
    assert!(!case.judge.keeps(Class::Media));
    let standing = case.judge.standing();
    assert!(standing.congested && standing.why.unwrap().starts_with("congested: answers"));
    // Nobody is answered there any more.
    case.life.is_recent = false;
    assert_eq!(case.after(1, None, &full), State::Down);
    assert!(!case.judge.standing().congested);
    case.life.is_recent = true;
    case.after(1, None, &full);
    assert!(!case.judge.keeps(Class::Standard));
}
