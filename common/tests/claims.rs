//! The claim of an entry, in every order in which two CPUs can take its steps, with memory as weakly ordered as the
//! hardware's.

use breakout_common::flows::{
    ENTRIES, Facts, Kept, Key, Limits, SET_WORDS, Secret, Set, Sets, State, find, forget, keep,
};
use breakout_common::path::Flow;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

const SECRET: Secret = Secret::of([7, 11, 13, 17, 19, 23]);
const LIMITS: Limits = Limits {
    tcp_idle: 1000,
    udp_idle: 50,
    media_hold: 8,
    tcp_established: 75,
    udp_established: 8,
    only_free: false,
};

/// A table of two sets, each of which every flow may be in.
struct Table([[AtomicU64; SET_WORDS]; 2]);

#[derive(Clone, Copy)]
struct OneSet<'a>(&'a [AtomicU64; SET_WORDS]);

impl<'a> Sets for &'a Table {
    type Set = OneSet<'a>;

    fn mask(&self) -> u32 {
        1
    }

    fn set(&self, index: u32) -> Option<Self::Set> {
        self.0.get(index as usize).map(OneSet)
    }
}

impl Set for OneSet<'_> {
    fn word(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Acquire)
    }

    fn word_after(&self, at: usize, _: u64) -> u64 {
        self.word(at)
    }

    fn write(&self, at: usize, word: u64) {
        self.0[at].store(word, Ordering::Relaxed);
    }

    fn swap(&self, at: usize, was: u64, word: u64) -> bool {
        let order = Ordering::SeqCst;
        let outcome = self.0[at].compare_exchange(was, word, order, order);
        fence(order);
        outcome.is_ok()
    }
}

impl Table {
    /// One that has so many free places in each set.
    fn with_room(places: [usize; 2]) -> Self {
        let table = Table(Default::default());
        for (index, places) in places.into_iter().enumerate() {
            for entry in places..ENTRIES {
                let other = key(100 + u16::try_from(entry).expect("a set is small"));
                let set = table.set_of(index);
                set.write(2 * entry, other.first());
                set.write(
                    2 * entry + 1,
                    other.second() | facts(&other, State::Established),
                );
            }
        }
        table
    }

    /// Returns how many entries a flow has, and how many are neither free nor anybody's.
    fn entries_of(&self, key: &Key) -> (usize, usize) {
        let mut counts = (0, 0);
        for (index, entry) in (0..2).flat_map(|index| (0..ENTRIES).map(move |entry| (index, entry)))
        {
            let set = self.set_of(index);
            let [first, second] = [0, 1].map(|word| set.word(2 * entry + word));
            let facts = Facts::of(second);
            let is_its = first == key.first() && second >> 32 == key.second() >> 32;
            counts.0 += usize::from(facts.is_live() && is_its);
            counts.1 += usize::from(second != 0 && !facts.is_live());
        }
        counts
    }

    fn set_of(&self, index: usize) -> OneSet<'_> {
        OneSet(&self.0[index])
    }
}

fn facts(key: &Key, state: State) -> u64 {
    Facts::new(key.kind(), 5, 1).with(2, state as u32).0.into()
}

fn key(port: u16) -> Key {
    let ports = Flow::ports(port, 443) | Flow::TCP;
    Key::new(&[0, 0x0a01_0002, 0, 0x3471_0001, ports], &SECRET)
}

fn put(table: &Table, key: &Key, state: State) -> Kept {
    let facts = Facts::new(key.kind(), 5, 1).with(2, state as u32);
    keep(&table, key, facts, 5, &LIMITS)
}

/// Every order with at most so many switches from a CPU that could go on.
fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(check);
}

#[test]
fn one_flow_on_two_cpus_has_one_entry() {
    model(|| {
        let table = Arc::new(Table::with_room([1, 1]));
        let other = Arc::clone(&table);
        let cpu = thread::spawn(move || put(&other, &key(9), State::Opening));
        let kept = [put(&table, &key(9), State::Opening), cpu.join().unwrap()];
        let (live, stuck) = table.entries_of(&key(9));
        assert!(live <= 1 && stuck == 0, "{live} {stuck} {kept:?}");
    });
}

#[test]
fn two_flows_that_want_one_place_both_stay_whole() {
    model(|| {
        let table = Arc::new(Table::with_room([1, 0]));
        let other = Arc::clone(&table);
        let cpu = thread::spawn(move || put(&other, &key(8), State::Opening));
        let kept = [put(&table, &key(9), State::Opening), cpu.join().unwrap()];
        let of = [9, 8].map(|port| table.entries_of(&key(port)));
        assert!(of.iter().all(|(_, stuck)| *stuck == 0));
        let live: usize = of.iter().map(|(live, _)| live).sum();
        assert_eq!(live, 1, "{kept:?}");
    });
}

#[test]
fn what_is_given_up_while_it_is_kept_is_whole_or_gone() {
    model(|| {
        let table = Arc::new(Table::with_room([1, 0]));
        put(&table, &key(9), State::Opening);
        let other = Arc::clone(&table);
        let cpu = thread::spawn(move || forget(&&*other, &key(9)));
        put(&table, &key(9), State::Established);
        cpu.join().unwrap();
        let (live, stuck) = table.entries_of(&key(9));
        assert!(live <= 1 && stuck == 0);
        assert_eq!(find(&&*table, &key(9)).is_some(), live == 1);
    });
}
