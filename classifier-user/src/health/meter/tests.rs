use super::*;

fn meter(text: &str) -> Meter {
    Meter::new(text.parse().unwrap())
}

fn silent() -> Result<Duration, Failure> {
    Err(Failure::Silence("no answer".to_owned()))
}

fn missed(meter: &mut Meter, times: u32) {
    for _ in 0..times {
        meter.note(silent());
    }
}

#[test]
fn what_never_answers_does_not_count_while_others_do() {
    let (mut relay, mut door) = (meter("stun:192.0.2.1"), meter("tls:192.0.2.2"));
    assert_eq!(
        Measure::of(&[relay.clone(), door.clone()], 0, false).alive,
        None
    );
    missed(&mut relay, 50);
    door.note(Ok(Duration::from_millis(20)));
    let measure = Measure::of(&[relay.clone(), door.clone()], 50, false);
    assert_eq!((measure.alive, measure.loss), (Some(true), 0.0));
    // If nothing ever answers, the link is dead.
    let mut door = meter("tls:192.0.2.2");
    missed(&mut door, SLOW_DEAD_AFTER - 1);
    assert_eq!(
        Measure::of(&[relay.clone(), door.clone()], 50, false).alive,
        None
    );
    missed(&mut door, 1);
    assert_eq!(Measure::of(&[relay, door], 50, false).alive, Some(false));
    assert_eq!(Measure::of(&[], 0, false).alive, None);
}

#[test]
fn loss_and_latency_are_followed() {
    let mut relay = meter("stun:192.0.2.1");
    for number in 0..600 {
        relay.note(if number % 5 == 4 {
            silent()
        } else {
            Ok(Duration::from_millis(40))
        });
    }
    let measure = Measure::of(std::slice::from_ref(&relay), 0, false);
    assert!((0.15..0.25).contains(&measure.loss), "{measure:?}");
    assert!((39.0..41.0).contains(&measure.latency_ms.unwrap()));
    for _ in 0..300 {
        relay.note(Ok(Duration::from_millis(40)));
    }
    assert!(Measure::of(std::slice::from_ref(&relay), 0, false).loss < 0.01);
    // Two lost probes drive no call away, and what was dead does not stay bad.
    let mut relay = meter("stun:192.0.2.1");
    relay.note(Ok(Duration::from_millis(40)));
    missed(&mut relay, 2);
    let loss = |relay: &Meter| Measure::of(std::slice::from_ref(relay), 0, false).loss;
    assert!(loss(&relay) > 0.0 && loss(&relay) < 0.02);
    missed(&mut relay, 1000);
    assert!(loss(&relay) < 0.07);
    relay.forgive();
    assert_eq!(loss(&relay), 0.0);
}

#[test]
fn a_silent_link_is_dead_though_its_average_is_good() {
    let mut relay = meter("stun:192.0.2.1");
    relay.note(Ok(Duration::from_millis(5)));
    assert_eq!(
        Measure::of(std::slice::from_ref(&relay), DEAD_AFTER - 1, false).alive,
        Some(true)
    );
    assert_eq!(Measure::of(&[relay], DEAD_AFTER, false).alive, Some(false));
}

#[test]
fn where_front_doors_answer_only_the_relays_are_gone() {
    let (mut relay, mut door) = (meter("stun:192.0.2.1"), meter("tcp:192.0.2.2:443"));
    relay.note(Ok(Duration::from_millis(5)));
    door.note(Ok(Duration::from_millis(5)));
    let measure = |silence, opened| Measure::of(&[relay.clone(), door.clone()], silence, opened);
    assert_eq!(measure(DEAD_AFTER, false).alive, Some(false));
    let both = measure(DEAD_AFTER, true);
    assert_eq!((both.alive, both.relays), (Some(true), Some(false)));
    assert_eq!(measure(0, false).relays, Some(true));
    missed(&mut door, SLOW_DEAD_AFTER);
    assert_eq!(
        Measure::of(&[relay, door], DEAD_AFTER, true).alive,
        Some(false)
    );
}

#[test]
fn the_wait_for_an_answer_follows_latency_and_variation() {
    let mut relay = meter("icmp:192.0.2.1");
    assert_eq!(relay.timeout(), Duration::from_secs(1));
    for _ in 0..100 {
        relay.note(Ok(Duration::from_millis(100)));
    }
    assert_eq!(relay.timeout(), Duration::from_millis(150));
    for number in 0..200 {
        relay.note(Ok(Duration::from_millis(if number % 2 == 0 {
            200
        } else {
            300
        })));
    }
    let wait = relay.timeout().as_millis();
    assert!((400..500).contains(&wait), "{wait}");
}

#[test]
fn whoever_answers_in_a_servers_place_is_no_way_out() {
    let foreign = || Err(Failure::Foreign("another certificate".to_owned()));
    let answered = || Ok(Duration::from_millis(5));
    let (mut relay, mut door) = (meter("turn:192.0.2.1"), meter("tcp:192.0.2.2:443"));
    let mut named = meter("tls:front.example");
    door.note(answered());
    let measure = |relay: &Meter, named: &Meter, silence| {
        Measure::of(&[relay.clone(), door.clone(), named.clone()], silence, true)
    };
    // A portal takes the connection before it shows its certificate.
    assert_eq!(measure(&relay, &named, 0).alive, None);
    named.note(foreign());
    assert_eq!(measure(&relay, &named, 0).alive, None, "it may be a slip");
    named.note(foreign());
    let captured = measure(&relay, &named, 0);
    assert_eq!((captured.alive, captured.doors), (Some(false), Some(false)));
    assert_eq!(
        captured.captive.as_deref(),
        Some("tls:front.example:443: another certificate")
    );
    // Silence tells nothing new for some time.
    missed(&mut named, FOREIGN_LAPSES - 1);
    assert!(measure(&relay, &named, 0).captive.is_some());
    missed(&mut named, 1);
    assert_eq!(measure(&relay, &named, 0).captive, None);
    named.note(foreign());
    assert_eq!(measure(&relay, &named, 0).alive, Some(true), "long silent");
    named.note(foreign());
    // Where relays answer, only TLS is intercepted.
    relay.note(answered());
    let intercepted = measure(&relay, &named, 0);
    assert_eq!(
        (intercepted.alive, intercepted.doors),
        (Some(true), Some(false))
    );
    assert_eq!(measure(&relay, &named, DEAD_AFTER).alive, Some(false));
    named.note(answered());
    let free = measure(&relay, &named, 0);
    assert_eq!((free.captive, free.doors), (None, Some(true)));
    // One host that is intercepted does not speak for all.
    let mut other = meter("http://front.example/ 204");
    other.note(foreign());
    other.note(foreign());
    let both = |named: &Meter| Measure::of(&[named.clone(), other.clone()], 0, false);
    assert_eq!(both(&named).captive, None);
    missed(&mut named, SLOW_DEAD_AFTER - 1);
    assert_eq!(both(&named).captive, None, "one lost probe or two");
    missed(&mut named, 1);
    assert!(both(&named).captive.is_some());
    // A status that is a portal's alone needs no expected one.
    let mut any = meter("http://front.example/");
    any.note(foreign());
    any.note(foreign());
    assert!(Measure::of(&[any], 0, false).captive.is_some());
}

#[test]
fn a_link_that_has_become_slow_is_alive_again() {
    for (target, before, after) in [("icmp:192.0.2.1", 20, 900), ("tls:192.0.2.1", 60, 2500)] {
        let mut meter = meter(target);
        let mut silence = 0;
        for number in 0..130 {
            let time = Duration::from_millis(if number < 100 { before } else { after });
            let is_heard = time <= meter.timeout();
            silence = if is_heard { 0 } else { silence + 1 };
            meter.note(if is_heard { Ok(time) } else { silent() });
        }
        let measure = Measure::of(&[meter], silence, false);
        assert_eq!(measure.alive, Some(true), "{target}");
    }
}
