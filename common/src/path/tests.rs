extern crate std;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::{settle as settle_now, *};
use crate::table::{NO_PREFIX, Outcome};
use crate::verdict::{Decision, Reason};

#[derive(Default)]
struct Memory {
    pins: RefCell<HashMap<PinKey, Pin>>,
    counts: RefCell<[u32; PIN_EVENTS]>,
    now: Cell<u32>,
}

impl Pins for Memory {
    fn flow(&self, flow: &Flow) -> Option<Pin> {
        self.pins.borrow().get(&flow.key()).copied()
    }

    fn client(&self, flow: &Flow) -> Option<Pin> {
        self.pins.borrow().get(&flow.client_key()).copied()
    }

    fn count(&self, event: PinEvent) {
        self.counts.borrow_mut()[event as usize] += 1;
    }

    fn now(&self) -> u32 {
        self.now.get()
    }
}

impl KeepsPins for Memory {
    fn keep(&self, flow: &Flow, pin: &Pin) -> bool {
        self.pins.borrow_mut().insert(flow.key(), *pin);
        true
    }

    fn share(&self, flow: &Flow, pin: &Pin) {
        self.pins.borrow_mut().insert(flow.client_key(), *pin);
    }
}

/// Everybody prefers egress 0, then 1; `working` are those that work.
fn table(epoch: u32, working: u32) -> PathTable {
    let mut table = PathTable {
        epoch,
        media_hold: 30,
        tcp_idle: 7200,
        udp_idle: 180,
        working: [working; PLACES],
        ..PathTable::EMPTY
    };
    let first = [0, 1].into_iter().find(|egress| working >> egress & 1 != 0);
    for place in 0..PLACES {
        table.set_choices(0, place, &[first.unwrap_or(ORDINARY); BUCKETS]);
    }
    table
}

fn flow(port: u16, facts: u64) -> Flow {
    Flow {
        source: (0, 0x0a01_0002),
        destination: (0, 0x3471_0001),
        facts: Flow::ports(port, 443) | Flow::PINNED | facts,
    }
}

/// Returns what the ruleset says: steered by a preference because of set 7.
const fn ruled(preference: u8, media: bool, hard: bool) -> u64 {
    let outcome = Outcome {
        set: 7,
        preference: Some(preference),
        hold: None,
        media,
        hard,
    };
    outcome.to_word() as u64
}

const STEERED: u64 = Flow::TCP | ruled(0, false, false);
const MEDIA: u64 = ruled(0, true, false);

/// The same at a time.
fn settle(flow: &Flow, table: &PathTable, pins: &Memory, now: u32) -> Decision {
    pins.now.set(now);
    settle_now(flow, table, pins)
}

#[test]
fn a_flow_stays_while_its_way_works() {
    let pins = Memory::default();
    let old = flow(1000, STEERED);
    assert_eq!(settle(&old, &table(1, 3), &pins, 10).egress(), Some(0));
    // The other one becomes the only one; it moves at once, and does not move back.
    assert_eq!(settle(&old, &table(2, 2), &pins, 11).egress(), Some(1));
    let way = settle(&old, &table(3, 3), &pins, 12);
    assert_eq!(way, Decision::steer(1, 7));
    assert_eq!(
        settle(&flow(1001, STEERED), &table(3, 3), &pins, 12).egress(),
        Some(0)
    );
    // One that began on the ordinary path stays there too.
    let late = flow(1002, STEERED);
    assert_eq!(settle(&late, &table(4, 0), &pins, 13).egress(), None);
    let way = settle(&late, &table(5, 3), &pins, 14);
    assert_eq!(way, Decision::pass_set(Reason::Pinned, 7));
    assert_eq!(*pins.counts.borrow(), [3, 1, 0, 3]);
}

#[test]
fn a_new_connection_from_the_same_port_takes_the_new_way() {
    let pins = Memory::default();
    assert_eq!(
        settle(&flow(1000, STEERED), &table(1, 2), &pins, 10).egress(),
        Some(1)
    );
    let opening = flow(1000, STEERED | Flow::OPENS);
    assert_eq!(settle(&opening, &table(2, 3), &pins, 11).egress(), Some(0));
    assert_eq!(
        settle(&flow(1000, STEERED), &table(2, 3), &pins, 12).egress(),
        Some(0)
    );
}

/// Its rule says `pass` now, or its prefix is gone.
#[test]
fn a_connection_that_is_opened_beyond_the_ruleset_is_not_split() {
    let pins = Memory::default();
    settle(&flow(1000, STEERED), &table(1, 3), &pins, 10);
    let beyond = |facts| flow(1000, Flow::TCP | u64::from(NO_PREFIX) | facts);
    let table = table(2, 3);
    assert_eq!(settle(&beyond(0), &table, &pins, 11).egress(), Some(0));
    assert_eq!(
        settle(&beyond(Flow::OPENS), &table, &pins, 12).egress(),
        None
    );
    assert_eq!(settle(&beyond(0), &table, &pins, 13).egress(), None);
    // Nothing is pinned for connections that were not there before.
    settle(
        &flow(1001, Flow::TCP | Flow::OPENS | u64::from(NO_PREFIX)),
        &table,
        &pins,
        13,
    );
    assert_eq!(pins.pins.borrow().len(), 1);
}

#[test]
fn a_connection_without_a_pin_is_counted() {
    let pins = Memory::default();
    settle(&flow(1000, STEERED | Flow::OPENS), &table(1, 3), &pins, 10);
    settle(&flow(1000, STEERED), &table(1, 3), &pins, 11);
    settle(&flow(1001, STEERED), &table(1, 3), &pins, 11);
    assert_eq!(*pins.counts.borrow(), [2, 0, 0, 1]);
}

#[test]
fn a_call_with_the_ports_of_one_before_joins_its_client() {
    let pins = Memory::default();
    settle(&flow(1000, MEDIA), &table(1, 1), &pins, 10);
    // Later, on the other way, another stream begins a call, which has the ports of the first one as well.
    let after = table(2, 2);
    assert_eq!(
        settle(&flow(1001, MEDIA), &after, &pins, 60).egress(),
        Some(1)
    );
    let back = table(3, 3);
    assert_eq!(
        settle(&flow(1000, MEDIA), &back, &pins, 61).egress(),
        Some(1)
    );
}

#[test]
fn an_idle_flow_is_forgotten() {
    let pins = Memory::default();
    let udp = flow(1000, ruled(0, false, false));
    assert_eq!(settle(&udp, &table(1, 2), &pins, 10).egress(), Some(1));
    assert_eq!(settle(&udp, &table(2, 3), &pins, 190).egress(), Some(1));
    assert_eq!(settle(&udp, &table(3, 3), &pins, 371).egress(), Some(0));
}

#[test]
fn what_is_no_longer_steered_stays_where_it_was() {
    let pins = Memory::default();
    settle(&flow(1000, STEERED), &table(1, 3), &pins, 10);
    let unruled = flow(1000, Flow::TCP | u64::from(NO_PREFIX));
    let way = settle(&unruled, &table(2, 3), &pins, 20);
    assert_eq!(way, Decision::steer(0, 7));
    assert_eq!(settle(&unruled, &table(3, 2), &pins, 20).egress(), None);
    assert_eq!(
        settle(
            &flow(1001, Flow::TCP | u64::from(NO_PREFIX)),
            &table(2, 3),
            &pins,
            20
        )
        .egress(),
        None
    );
}

#[test]
fn what_is_held_back_moves_and_stays_on_the_ordinary_path() {
    let pins = Memory::default();
    settle(&flow(1000, STEERED), &table(1, 3), &pins, 10);
    let held = flow(1000, STEERED | u64::from(Outcome::BYPASS));
    assert_eq!(settle(&held, &table(1, 3), &pins, 11).egress(), None);
    assert_eq!(
        settle(&flow(1000, STEERED), &table(1, 3), &pins, 12).egress(),
        None
    );
}

#[test]
fn a_clients_media_moves_together() {
    let pins = Memory::default();
    let (audio, video) = (flow(50_000, MEDIA), flow(50_020, MEDIA));
    for flow in [&audio, &video] {
        assert_eq!(settle(flow, &table(1, 3), &pins, 10).egress(), Some(0));
    }
    // Audio notices the outage, video was silent meanwhile.
    assert_eq!(settle(&audio, &table(2, 2), &pins, 11).egress(), Some(1));
    assert_eq!(settle(&audio, &table(3, 3), &pins, 12).egress(), Some(1));
    assert_eq!(settle(&video, &table(3, 3), &pins, 13).egress(), Some(1));
    // So does a flow that the client adds to the call, and another client's does not.
    assert_eq!(
        settle(&flow(50_040, MEDIA), &table(3, 3), &pins, 14).egress(),
        Some(1)
    );
    let other = Flow {
        source: (0, 0x0a01_0003),
        ..flow(50_000, MEDIA)
    };
    assert_eq!(settle(&other, &table(3, 3), &pins, 14).egress(), Some(0));
    // After the hold time the next call takes the better way.
    assert_eq!(
        settle(&flow(50_060, MEDIA), &table(3, 3), &pins, 45).egress(),
        Some(0)
    );
}

#[test]
fn hard_rules_always_take_what_is_best() {
    let pins = Memory::default();
    let hard = flow(1000, Flow::TCP | ruled(0, false, true));
    assert_eq!(settle(&hard, &table(1, 2), &pins, 10).egress(), Some(1));
    assert_eq!(settle(&hard, &table(2, 3), &pins, 11).egress(), Some(0));
    assert!(pins.pins.borrow().is_empty());
}

#[test]
fn weights_share_clients_out_and_keep_the_flows_of_each_together() {
    let pins = Memory::default();
    let mut table = table(1, 3);
    let mut choices = [0; BUCKETS];
    choices[48..].fill(1);
    for place in 0..PLACES {
        table.set_choices(2, place, &choices);
    }
    let unpinned = |client: u64, port: u16, facts: u64| Flow {
        source: (0, 0x0a01_0000 + client),
        destination: (0, 0x3471_0001 + u64::from(port)),
        facts: flow(port, facts).facts & !Flow::PINNED,
    };
    let (standard, media) = (Flow::TCP | ruled(2, false, false), ruled(2, true, false));
    let mut by_second = 0;
    for client in 0..10_000 {
        let way = settle(&unpinned(client, 1, standard), &table, &pins, 1);
        for (port, facts) in [(1, standard), (2, standard), (3, media), (4, media)] {
            let other = settle(&unpinned(client, port, facts), &table, &pins, 2);
            assert_eq!(other.egress(), way.egress(), "client {client}, port {port}");
        }
        by_second += u32::from(way.egress() == Some(1));
    }
    assert!(by_second.abs_diff(2500) < 150, "{by_second}");

    // While a path is tried again, each client has flows in every bucket, and its media stays together.
    table.by_flow = 1 << 2;
    let of_one = (1..1001_u16).filter(|port| {
        let flow = unpinned(7, *port, standard);
        settle(&flow, &table, &pins, 1).egress() == Some(1)
    });
    assert!((150..350).contains(&of_one.count()));
    let media_of = |port| settle(&unpinned(7, port, media), &table, &pins, 1).egress();
    assert!((1..100).all(|port| media_of(port) == media_of(1)));
}

#[test]
fn a_flow_beyond_the_ruleset_stays_as_long_as_it_lives() {
    let pins = Memory::default();
    settle(&flow(1000, STEERED), &table(1, 3), &pins, 10);
    let unruled = flow(1000, Flow::TCP | u64::from(NO_PREFIX));
    for hour in 1..20 {
        let way = settle(&unruled, &table(2, 3), &pins, 10 + hour * 3600);
        assert_eq!(way.egress(), Some(0), "after {hour} hours");
    }
}

#[test]
fn rules_that_prefer_other_egresses_do_not_lead_each_other() {
    let pins = Memory::default();
    let mut table = table(1, 3);
    for place in 0..PLACES {
        table.set_choices(1, place, &[1; BUCKETS]);
    }
    assert_eq!(settle(&flow(1, MEDIA), &table, &pins, 1).egress(), Some(0));
    let other = flow(2, ruled(1, true, false));
    assert_eq!(settle(&other, &table, &pins, 1).egress(), Some(1));
    let shown = flow(3, ruled(0, true, false) | u64::from(Outcome::SHADOW));
    assert_eq!(settle(&shown, &table, &pins, 1).egress(), None);
    assert_eq!(settle(&flow(4, MEDIA), &table, &pins, 1).egress(), Some(0));
}
