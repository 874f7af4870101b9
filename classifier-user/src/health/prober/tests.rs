use tokio::runtime::Handle;

use super::*;
use crate::config::HealthConfig;
use crate::health::Probers;

fn path(targets: &[&str]) -> Path {
    Path {
        egress: "local".to_owned(),
        v6: false,
        interface: "inet".to_owned(),
        mark: 0,
        way: None,
        targets: targets.iter().map(|text| text.parse().unwrap()).collect(),
        health: HealthConfig::default(),
        budget: None,
    }
}

fn prober(targets: &[&str]) -> Prober {
    Prober::new(Arc::new(path(targets)), None, Arc::default())
}

/// A target, asked after others had answered, answers or does not.
fn note(prober: &mut Prober, index: usize, answer: Result<Duration, Failure>) {
    prober.note(Outcome {
        index,
        was_silent: false,
        is_late: false,
        answer: answer.map(|took| Answered {
            took,
            method: None,
            mapped: None,
        }),
    });
}

/// Returns how often each target is asked in so many quick probes.
fn shares(prober: &mut Prober, probes: usize) -> Vec<usize> {
    let mut counts = vec![0; prober.meters.len()];
    for _ in 0..probes {
        let index = prober.next_target().unwrap();
        prober.sent += 1;
        prober.asked[index] = prober.sent;
        counts[index] += 1;
    }
    counts
}

#[test]
fn all_quick_targets_are_asked_in_turn() {
    for count in 1..=6 {
        let names = [
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.3",
            "192.0.2.4",
            "192.0.2.5",
            "192.0.2.6",
        ];
        let targets: Vec<String> = names[..count]
            .iter()
            .map(|name| format!("icmp:{name}"))
            .collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let mut prober = prober(&targets);
        assert_eq!(shares(&mut prober, 10 * count), vec![10; count]);
        for meter in &mut prober.meters {
            meter.is_proven = true;
        }
        assert_eq!(shares(&mut prober, 10 * count), vec![10; count]);
    }
}

#[test]
fn what_has_never_answered_is_rarely_asked_where_others_have() {
    let mut prober = prober(&[
        "stun:192.0.2.1",
        "icmp:192.0.2.2",
        "icmp:192.0.2.3",
        "tcp:192.0.2.4:443",
    ]);
    prober.meters[1].is_proven = true;
    let shares = shares(&mut prober, 200);
    assert!(
        (9..=11).contains(&shares[0]) && (9..=11).contains(&shares[2]),
        "{shares:?}"
    );
    assert_eq!(shares[3], 0);
}

#[tokio::test]
async fn a_silence_has_the_front_doors_asked_at_once() {
    let mut prober = prober(&["stun:192.0.2.1", "tcp:192.0.2.4:443"]);
    note(&mut prober, 0, Ok(Duration::from_millis(5)));
    note(&mut prober, 1, Ok(Duration::from_millis(5)));
    let later = Instant::now() + Duration::from_secs(9);
    prober.next_slow[1] = Some(later);
    note(
        &mut prober,
        0,
        Err(Failure::Silence("no answer".to_owned())),
    );
    assert!(prober.next_slow[1].unwrap() < later && prober.burst == DEAD_AFTER);
    note(&mut prober, 1, Ok(Duration::from_millis(5)));
    for _ in 0..DEAD_AFTER {
        note(
            &mut prober,
            0,
            Err(Failure::Silence("no answer".to_owned())),
        );
    }
    let measure = Measure::of(&prober.known(), prober.silence, prober.door_opened);
    assert_eq!((measure.alive, measure.relays), (Some(true), Some(false)));
}

#[test]
fn what_was_sent_into_the_silence_is_no_loss_once_it_is_over() {
    let mut prober = prober(&["icmp:192.0.2.1"]);
    note(&mut prober, 0, Ok(Duration::from_millis(5)));
    for _ in 0..DEAD_AFTER {
        note(
            &mut prober,
            0,
            Err(Failure::Silence("no answer".to_owned())),
        );
    }
    assert_eq!(prober.silence, DEAD_AFTER);
    note(&mut prober, 0, Ok(Duration::from_millis(5)));
    for _ in 0..4 {
        prober.note(Outcome {
            index: 0,
            was_silent: true,
            is_late: false,
            answer: Err(Failure::Silence("no answer".to_owned())),
        });
    }
    let measure = Measure::of(&prober.known(), prober.silence, prober.door_opened);
    assert_eq!((prober.silence, measure.loss), (0, 0.0));
}

#[tokio::test]
async fn what_another_link_was_like_says_nothing() {
    let (before, mut after) = (path(&["icmp:192.0.2.1"]), path(&["icmp:192.0.2.1"]));
    after.interface = "wwan0".to_owned();
    let report = Report {
        is_doubtful: false,
        public: None,
        path: Arc::new(before.clone()),
        measure: Measure::default(),
    };
    let mut probers = Probers::new(Handle::current());
    probers.set(vec![before]);
    assert!(probers.is_current(&report));
    probers.set(vec![after]);
    assert!(!probers.is_current(&report));
}

#[test]
fn a_full_queue_raises_one_alarm_and_not_one_for_each_probe() {
    let mut prober = prober(&["icmp:192.0.2.1", "tls:192.0.2.2"]);
    let soon = Ok(Duration::from_millis(20));
    note(&mut prober, 0, soon.clone());
    note(&mut prober, 1, soon);
    let mut alarms = 0;
    for _ in 0..50 {
        note(
            &mut prober,
            0,
            Err(Failure::Silence("no answer".to_owned())),
        );
        alarms += u32::from(prober.burst > 0);
        prober.note(Outcome {
            index: 0,
            was_silent: false,
            is_late: true,
            answer: Ok(Answered {
                took: Duration::from_millis(1500),
                method: None,
                mapped: None,
            }),
        });
        assert_eq!(prober.burst, 0);
    }
    assert_eq!(alarms, 1);
    let measure = Measure::of(&prober.known(), prober.silence, prober.door_opened);
    assert_eq!((measure.alive, measure.loss), (Some(true), 0.0));
    assert!(measure.is_slowed());
}

/// A prober with a budget for its probes.
fn metered(targets: &[&str], budget: u64) -> Prober {
    let path = Path {
        budget: Some(budget),
        ..path(targets)
    };
    let mut prober = Prober::new(Arc::new(path), None, Arc::default());
    prober.trust = Trust::built_in().ok();
    prober
}

fn until(next: Option<Instant>) -> Duration {
    next.unwrap().saturating_duration_since(Instant::now())
}

#[test]
fn a_name_is_awaited_until_it_is_known_whether_it_has_an_address() {
    let address = Some("192.0.2.1:443".parse().unwrap());
    let mut prober = prober(&["tls:front.example", "turn:relay.example"]);
    // Until then nothing else tells that the link leads to Microsoft.
    assert_eq!(prober.known().len(), 1);
    assert!(prober.names.take_in(0, Some(address)), "a new one");
    assert!(!prober.names.take_in(0, Some(address)), "the same one");
    assert!(!prober.names.take_in(0, None), "it is kept");
    assert_eq!(prober.names.address(0), address);
    let mut nowhere = self::prober(&["tls:front.example"]);
    assert!(!nowhere.names.take_in(0, None));
    assert_eq!(nowhere.known().len(), 0);
}

#[tokio::test]
async fn doors_of_a_metered_link_are_tried_again_at_growing_intervals() {
    let mut prober = metered(&["tcp:192.0.2.1:443", "icmp:192.0.2.2"], 1 << 20);
    let second = || Ok(Duration::from_millis(5));
    let lost = || Err(Failure::Silence("no answer".to_owned()));
    note(&mut prober, 0, second());
    note(&mut prober, 1, second());
    let mut pauses = Vec::new();
    for _ in 0..12 {
        note(&mut prober, 0, lost());
        pauses.push(until(prober.next_slow[0]).as_secs());
    }
    assert!(pauses[..2].iter().all(|pause| *pause < 1), "{pauses:?}");
    assert!(
        pauses[2..].is_sorted_by(|a, b| b * 5 >= a * 4),
        "{pauses:?}"
    );
    assert!((200..400).contains(&pauses[11]), "{pauses:?}");
    // The link is back, and so they may be.
    for _ in 0..DEAD_AFTER {
        note(&mut prober, 1, lost());
    }
    note(&mut prober, 1, second());
    assert_eq!(until(prober.next_slow[0]), Duration::ZERO);
}

#[tokio::test]
async fn suspicions_are_followed_as_long_as_the_budget_lasts() {
    let mut prober = metered(&["icmp:192.0.2.1", "tcp:192.0.2.2:443"], 1 << 20);
    note(&mut prober, 1, Ok(Duration::from_millis(5)));
    let late = Instant::now() + Duration::from_secs(1000);
    (prober.next_quick, prober.next_slow[1]) = (late, Some(late));
    // Nobody answers quick probes there.
    prober.suspect();
    assert_eq!(
        (prober.next_quick, until(prober.next_slow[1])),
        (late, Duration::ZERO)
    );
    note(&mut prober, 0, Ok(Duration::from_millis(5)));
    prober.suspect();
    assert_eq!(prober.next_quick, late, "a moment later");
    prober.suspected = None;
    prober.suspect();
    assert!(prober.next_quick < late);
    prober.next_quick = late;
    let mut tries = JoinSet::new();
    while prober.may_hurry() {
        prober.start(1, &mut tries);
    }
    prober.suspected = None;
    prober.suspect();
    assert_eq!(prober.next_quick, late);
}
