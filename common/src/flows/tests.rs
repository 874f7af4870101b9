//! The table against a map, full ones, and hostile ones.

extern crate std;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::path::{
    BUCKETS, Flow, KeepsPins, ORDINARY, PLACES, PathTable, Pin, PinEvent, PinKey, Pins, settle,
};
use crate::table::Outcome;

const SECRET: Secret = Secret::of([
    0x0123_4567_89ab_cdef,
    0xfedc_ba98_7654_3210,
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
    0x2545_f491_4f6c_dd1d,
    0x6a09_e667_f3bc_c908,
]);
const LIMITS: Limits = Limits {
    tcp_idle: 1800,
    udp_idle: 45,
    media_hold: 8,
    tcp_established: 75,
    udp_established: 8,
    only_free: false,
};

/// A table in memory.
pub(crate) struct Table(Vec<[AtomicU64; SET_WORDS]>);

impl Table {
    pub(crate) fn new(sets: usize) -> Self {
        Table((0..sets).map(|_| Default::default()).collect())
    }

    fn live(&self) -> usize {
        let seconds = self.0.iter().flat_map(|set| set.iter().skip(1).step_by(2));
        let live = |word: &&AtomicU64| {
            let word = word.load(Ordering::Relaxed);
            Facts::of(word).is_live()
        };
        seconds.filter(live).count()
    }
}

impl<'a> Sets for &'a Table {
    type Set = &'a [AtomicU64; SET_WORDS];

    fn mask(&self) -> u32 {
        u32::try_from(self.0.len() - 1).unwrap()
    }

    fn set(&self, index: u32) -> Option<Self::Set> {
        self.0.get(index as usize)
    }
}

/// A flow of a client with this number, over TCP or UDP, IPv4 or IPv6.
fn pin_key(client: u32, port: u16, is_tcp: bool, is_v6: bool) -> PinKey {
    let kind = if is_tcp { Flow::TCP } else { 0 } | if is_v6 { Flow::V6 } else { 0 };
    let ports = Flow::ports(port, 443) | kind;
    let high = if is_v6 { 0xfd00 << 48 } else { 0 };
    [high, u64::from(client), high, 0x3471_0001, ports]
}

fn key(client: u32, port: u16) -> Key {
    Key::new(&pin_key(client, port, true, false), &SECRET)
}

fn facts(key: &Key, tick: u32, state: State) -> Facts {
    Facts::new(key.kind(), tick, 1).with(3, state as u32)
}

fn put(table: &Table, key: &Key, tick: u32, state: State) -> Kept {
    keep(&table, key, facts(key, tick, state), tick, &LIMITS)
}

fn get(table: &Table, key: &Key) -> Option<Facts> {
    find(&table, key).map(|(_, facts)| facts)
}

#[test]
fn facts_hold_what_they_are_made_of() {
    let key = Key::new(&pin_key(7, 9, true, true), &SECRET);
    for (tick, epoch, egress, state) in [(0, 0, 0, 2), (8191, 511, 15, 5), (17, 256, 0xff, 3)] {
        let facts = Facts::new(key.kind(), tick, epoch).with(egress, state);
        assert_eq!(
            (facts.epoch(), facts.egress(), facts.state()),
            (epoch, egress, state)
        );
        assert!(facts.is_tcp() && facts.is_v6() && facts.is_live());
        assert_eq!(facts.silent(tick), 0);
    }
}

#[test]
fn ticks_wrap() {
    let key = key(1, 1);
    for (seen, now, silent) in [
        (8186, 4, 10),
        (0, 8191, 0),
        (5, 5 + 8192, 0),
        (100, 8000, 7900),
    ] {
        assert_eq!(
            facts(&key, seen, State::Opening).silent(now),
            silent,
            "{seen} {now}"
        );
    }
}

#[test]
fn what_is_known_is_what_was_noted() {
    let table = Table::new(16);
    let flow = key(1, 1000);
    assert_eq!(
        put(&table, &flow, 5, State::Established),
        Kept::New(find(&&table, &flow).unwrap().0)
    );
    let sets = [flow.set(15), flow.other_set(15)].map(|index| (&table).set(index).unwrap());
    let known_in = |tick, epoch| sets.map(|set| known(set, &flow, tick, epoch));
    let found: Vec<_> = known_in(5, 1)
        .into_iter()
        .filter(|facts| facts.is_live())
        .collect();
    assert_eq!(found, [facts(&flow, 5, State::Established)]);
    for (tick, epoch) in [(6, 1), (5, 2)] {
        assert!(known_in(tick, epoch).iter().all(|facts| !facts.is_live()));
    }
    assert!(!known(sets[0], &key(1, 1001), 5, 1).is_live());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// As long as there is room, the table is a map.
    #[test]
    fn a_table_with_room_is_a_map(
        steps in proptest::collection::vec((0..40u32, any::<bool>(), any::<bool>(), 0..3u8), 1..300),
    ) {
        let table = Table::new(64);
        let mut model: HashMap<PinKey, Facts> = HashMap::new();
        for (step, (client, is_tcp, is_v6, what)) in (0u32..).zip(steps) {
            let pin_key = pin_key(client, 5, is_tcp, is_v6);
            let key = Key::new(&pin_key, &SECRET);
            if what == 0 {
                prop_assert_eq!(forget(&&table, &key), model.remove(&pin_key).is_some());
            } else {
                let state = if what == 1 { State::Opening } else { State::Established };
                let kept = put(&table, &key, step / 50, state);
                prop_assert_ne!(kept, Kept::No);
                prop_assert_eq!(matches!(kept, Kept::New(_)), model.insert(pin_key, facts(&key, step / 50, state)).is_none());
            }
            prop_assert_eq!(get(&table, &key), model.get(&pin_key).copied());
        }
        prop_assert_eq!(table.live(), model.len());
    }
}

/// Pins in a table, as the data path has them.
struct TablePins<'a> {
    table: &'a Table,
    notes: RefCell<HashMap<u32, u64>>,
    now: Cell<u32>,
}

impl TablePins<'_> {
    fn get(&self, key: &PinKey) -> Option<Pin> {
        let (slot, facts) = find(&self.table, &Key::new(key, &SECRET))?;
        Some(pin_of(facts, self.notes.borrow()[&slot], self.now.get()))
    }

    fn put(&self, key: &PinKey, pin: &Pin) -> bool {
        let key = Key::new(key, &SECRET);
        let facts = facts_of(key.kind(), pin);
        match keep(&self.table, &key, facts, pin.seen, &LIMITS) {
            Kept::New(slot) | Kept::There(slot) => {
                self.notes.borrow_mut().insert(slot, note_of(pin));
                true
            }
            Kept::Overtaken => true,
            Kept::No => false,
        }
    }
}

impl Pins for TablePins<'_> {
    fn flow(&self, flow: &Flow) -> Option<Pin> {
        self.get(&flow.key())
    }

    fn client(&self, flow: &Flow) -> Option<Pin> {
        self.get(&flow.client_key())
    }

    fn count(&self, _: PinEvent) {}

    fn now(&self) -> u32 {
        self.now.get()
    }
}

impl KeepsPins for TablePins<'_> {
    fn keep(&self, flow: &Flow, pin: &Pin) -> bool {
        self.put(&flow.key(), pin)
    }

    fn share(&self, flow: &Flow, pin: &Pin) {
        let state = State::Client as u32;
        self.put(&flow.client_key(), &Pin { state, ..*pin });
    }
}

/// A port, whether the packet is TCP, media, and opens its connection; and what happens before it.
type Step = (u16, (bool, bool, bool), u32);

/// Everything that happens to links and flows, with the pins in a table. Returns how many ways were predicted, each as it
/// was settled.
fn predictions(steps: Vec<Step>) -> u32 {
    let memory = Table::new(4);
    let pins = TablePins {
        table: &memory,
        notes: RefCell::default(),
        now: Cell::new(1),
    };
    let mut table = PathTable {
        epoch: 1,
        media_hold: 8,
        tcp_idle: 1800,
        udp_idle: 45,
        ..PathTable::EMPTY
    };
    let mut predicted = 0;
    for (port, (is_tcp, is_media, opens), event) in steps {
        match event {
            0..5 => pins.now.set(pins.now.get() + event),
            5..9 => {
                let working = event - 5;
                table.epoch += 1;
                table.working = [working; PLACES];
                let first = [1u8, 0]
                    .into_iter()
                    .find(|egress| working >> egress & 1 != 0);
                for place in 0..PLACES {
                    table.set_choices(0, place, &[first.unwrap_or(ORDINARY); BUCKETS]);
                }
            }
            _ => {}
        }
        let outcome = Outcome {
            set: 7,
            preference: Some(0),
            hold: None,
            media: is_media,
            hard: false,
        };
        let mut facts = Flow::ports(port, 443) | Flow::PINNED | u64::from(outcome.to_word());
        facts |= if is_tcp { Flow::TCP } else { 0 };
        facts |= if is_tcp && opens && event > 30 {
            Flow::OPENS
        } else {
            0
        };
        let flow = Flow {
            source: (0, 0x0a01_0002),
            destination: (0, 0x3471_0001),
            facts,
        };
        let key = Key::new(&flow.key(), &SECRET);
        let guess = flow
            .is_settled()
            .then(|| predict(&flow, &key, &&memory, &table, pins.now.get(), |way| way));
        let guess = guess.flatten();
        // What would only be noted to go on; none of that may be another way, nor be noted otherwise.
        let most = flow.may_be_silent(&table);
        let mut renewed = Facts(0);
        if guess.is_none() && flow.is_settled() && most > 0 {
            let sets = [key.set(3), key.other_set(3)].map(|index| (&memory).set(index).unwrap());
            let now = pins.now.get();
            renewed = sets.map(|set| renew(set, &key, now, table.epoch, most))[0];
        }
        let settled = settle(&flow, &table, &pins);
        if let Some(egress) = guess {
            predicted += 1;
            assert_eq!(flow.steered(egress), settled);
        }
        if renewed.is_live() {
            assert_eq!(settled.egress().unwrap_or(ORDINARY), renewed.egress());
            assert_eq!(get(&memory, &key), Some(renewed));
        }
    }
    predicted
}

#[test]
fn what_is_predicted_is_what_is_settled() {
    let steps = (0..6u16, any::<(bool, bool, bool)>(), 0..40u32);
    let steps = proptest::collection::vec(steps, 1..80);
    let all = Cell::new(0);
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(8000)
    };
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        all.set(all.get() + predictions(steps));
        Ok(())
    });
    outcome.unwrap();
    assert!(all.get() > 10_000, "{}", all.get());
}

/// At half load nearly every flow finds a place.
#[test]
fn a_half_full_table_has_room() {
    let table = Table::new(1 << 12);
    let lost = (0..1 << 13)
        .filter(|client| put(&table, &key(*client, 7), 1, State::Established) == Kept::No);
    assert!(lost.count() <= 16);
}

/// A client that opens connections without end gets as many places as are free, and none of those that others use.
#[test]
fn a_flood_pushes_out_nobody_who_is_established() {
    let table = Table::new(1 << 8);
    let others: Vec<_> = (0..400).map(|client| key(client, 7)).collect();
    for flow in &others {
        put(&table, flow, 1, State::Established);
    }
    let kept: Vec<_> = others
        .iter()
        .filter(|flow| get(&table, flow).is_some())
        .collect();
    assert!(kept.len() > 395);
    for port in 0..50_000 {
        let flow = key(9_999, port);
        put(&table, &flow, 2 + u32::from(port) / 1000, State::Opening);
    }
    assert!(kept.iter().all(|flow| get(&table, flow).is_some()));
    // The newest of the flood are there: whoever opens a connection now is remembered as long as anybody.
    assert!(get(&table, &key(9_999, 49_999)).is_some());
    // One that has been silent for long makes room, when nothing cheaper does.
    let full = Table::new(1);
    for client in 0..4 {
        put(&full, &key(client, 7), 1 + client, State::Established);
    }
    assert_eq!(put(&full, &key(9, 7), 76, State::Opening), Kept::No);
    assert!(matches!(
        put(&full, &key(9, 7), 78, State::Opening),
        Kept::New(_)
    ));
    assert!(get(&full, &key(0, 7)).is_none() && get(&full, &key(3, 7)).is_some());
}

/// Without the secret nobody finds many flows that share a set: those of consecutive ports and addresses spread evenly.
#[test]
fn neighbours_spread_over_the_sets() {
    for secret in [[0, 1, 2, 3, 4, 5], [u64::MAX; 6], SECRET.keys].map(Secret::of) {
        let mut counts = [0u32; 256];
        for (client, port) in (0..64).flat_map(|client| (0..256).map(move |port| (client, port))) {
            let key = Key::new(&pin_key(client, port, false, false), &secret);
            counts[key.set(255) as usize] += 1;
            counts[key.other_set(255) as usize] += 1;
        }
        // 128 in the mean; five standard deviations around it.
        assert!(
            counts.iter().all(|count| count.abs_diff(128) < 57),
            "{counts:?}"
        );
    }
}

#[test]
fn keys_differ_in_all_that_tells_flows_apart() {
    let all = [
        pin_key(1, 2, true, false),
        pin_key(1, 2, false, false),
        pin_key(1, 2, true, true),
        pin_key(1, 3, true, true),
        pin_key(2, 2, true, true),
    ];
    let mut client = all[2];
    client[4] |= Flow::CLIENT;
    let keys: Vec<_> = all
        .iter()
        .chain([&client])
        .map(|key| Key::new(key, &SECRET))
        .collect();
    for (n, key) in keys.iter().enumerate() {
        let same = keys.iter().filter(|other| {
            (other.first(), other.second(), other.kind()) == (key.first(), key.second(), key.kind())
        });
        assert_eq!(same.count(), 1, "{n}");
        let second = key.second() | u64::from(facts(key, 3, State::Opening).0);
        assert_eq!(Key::from_words(key.first(), second, &SECRET.sets), *key);
    }
}

/// Two CPUs that hammer one set: no flow is there twice, no entry stays reserved, and what is kept is found.
#[test]
fn two_cpus_claim_and_give_up_the_same_flows() {
    let table = Table::new(1);
    std::thread::scope(|scope| {
        for cpu in 0..2u32 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..200_000u32 {
                    let flow = key((round.wrapping_mul(2_654_435_761) >> 7) % 6, 7);
                    if (round + cpu) % 3 == 0 {
                        forget(&table, &flow);
                    } else {
                        let _ = put(table, &flow, round >> 12 & 63, State::Opening);
                    }
                }
            });
        }
    });
    let set = (&table).set(0).unwrap();
    let words: Vec<_> = (0..ENTRIES)
        .map(|entry| (set.word(2 * entry), set.word(2 * entry + 1)))
        .collect();
    for (first, second) in &words {
        let facts = Facts::of(*second);
        assert_ne!(facts.state(), State::Reserved as u32);
        let same = words
            .iter()
            .filter(|other| *second != 0 && (other.0, other.1 >> 32) == (*first, second >> 32));
        assert!(same.count() <= 1, "{words:x?}");
    }
}
