//! The table of flows, seen from the controller: mapped into its memory, and shared with the programs.

mod unanswered;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use aya::maps::MapData;
use breakout_common::flows::{
    ANSWERED, ENTRIES, Facts, Kept, Key, Limits, MAGIC, PER_SET, SET_WORDS, Secret, Sets, State,
    facts_of, keep, note_of, pin_of,
};
use breakout_common::path::{EPOCHS, Flow, Pin, PinKey};

pub use unanswered::{BegunLately, Unanswered};

use super::mapped::MappedWords;
use super::{Clock, sys};

/// The maps of this module, as the eBPF object names them.
pub(super) const FLOWS: &str = "FLOWS";
pub(super) const NOTES: &str = "NOTES";
pub(super) const ADDRESSES: &str = "ADDRESSES";

/// The size of a table of flows, and what its hash is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Number of sets: a power of two.
    pub(super) sets: u32,
    pub(super) secret: Secret,
}

impl Shape {
    /// A new table for so many flows: it has twice as many entries.
    pub(super) fn for_flows(flows: u32) -> Self {
        Self::of_sets(
            flows
                .saturating_mul(2)
                .div_ceil(PER_SET)
                .next_power_of_two(),
        )
    }

    /// A new table of so many sets: a power of two.
    pub(super) fn of_sets(sets: u32) -> Self {
        // Each hasher has keys of its own, which the standard library takes from the kernel's randomness.
        let words = [(); 6].map(|()| RandomState::new().build_hasher().finish());
        Shape {
            sets,
            secret: Secret::of(words),
        }
    }

    /// The size of each map, by its name.
    pub(super) fn entries(&self) -> [(&'static str, u32); 3] {
        [
            (FLOWS, self.sets + 1),
            (NOTES, self.sets),
            (ADDRESSES, self.sets * PER_SET),
        ]
    }
}

/// A flow, or a client, that has a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Its addresses and ports. None of a client.
    pub key: Option<PinKey>,
    /// Path.
    pub pin: Pin,
    slot: u32,
    first: u64,
    second: u64,
}

impl Pinned {
    /// Returns whether it is what all media flows of a client share.
    pub fn is_client(&self) -> bool {
        self.pin.state == State::Client as u32
    }

    /// Returns whether it is a TCP flow.
    pub fn is_tcp(&self) -> bool {
        Facts::of(self.second).is_tcp()
    }
}

/// The table.
pub struct FlowTable {
    flows: MappedWords,
    notes: MappedWords,
    addresses: MapData,
    shape: Shape,
}

impl FlowTable {
    /// Opens a table by its maps. One that has just been made gets what says what it is.
    pub(super) fn open(
        flows: &MapData,
        notes: &MapData,
        addresses: MapData,
        new: Option<Shape>,
    ) -> Result<Self> {
        let flows = MappedWords::new(flows, u32::try_from(SET_WORDS)?)?;
        let notes = MappedWords::new(notes, PER_SET)?;
        if let Some(new) = new {
            set_shape(&flows, new)?;
        }
        let shape = shape(&flows)?;
        ensure!(
            notes.words().len() == shape.sets as usize * ENTRIES,
            "a map of flows has another size"
        );
        Ok(FlowTable {
            flows,
            notes,
            addresses,
            shape,
        })
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Everything in the table that has an entry while it is gone through.
    ///
    /// # Errors
    ///
    /// When the addresses of flows over IPv6 cannot be read.
    pub fn entries(&self) -> Result<Vec<Pinned>> {
        let addresses = self.addresses()?;
        let live: Vec<_> = (0u32..)
            .zip(self.seconds())
            .filter_map(|(slot, _)| Some((slot, self.words(slot)?)))
            .collect();
        // Behind them, so that no packet has come later than that.
        let now = Clock::of_kernel().now();
        let pinned = live.into_iter().map(|(slot, (first, second))| Pinned {
            key: self.pin_key(addresses.get(&slot), first, second),
            pin: pin_of(
                Facts::of(second),
                self.note(slot).load(Ordering::Relaxed),
                now,
            ),
            slot,
            first,
            second,
        });
        Ok(pinned.collect())
    }

    /// The second words of all entries.
    fn seconds(&self) -> impl Iterator<Item = &AtomicU64> {
        let words = self.flows.words().iter().skip(1).step_by(2);
        words.take(self.shape.sets as usize * ENTRIES)
    }

    /// The words of an entry that is a flow's, or a client's.
    fn words(&self, slot: u32) -> Option<(u64, u64)> {
        let [first, second] = self.flows.words().get(slot as usize * 2..)?.first_chunk()?;
        let (first_word, second_word) = (first, second);
        let second = second_word.load(Ordering::Acquire);
        let first = first_word.load(Ordering::Acquire);
        // Whoever takes an entry over changes its second word first.
        let is_whole = second_word.load(Ordering::Acquire) == second;
        (is_whole && Facts::of(second).is_live()).then_some((first, second))
    }

    /// The addresses of flows over IPv6, by their slots.
    fn addresses(&self) -> Result<BTreeMap<u32, PinKey>> {
        Ok(sys::entries(&self.addresses)?.into_iter().collect())
    }

    /// Returns how many flows and how many clients have a way.
    pub fn counts(&self) -> (usize, usize) {
        let states = self
            .seconds()
            .map(|word| Facts::of(word.load(Ordering::Relaxed)).state());
        states.fold((0, 0), |(flows, clients), state| match state {
            state if state == State::Client as u32 => (flows, clients + 1),
            state if state >= State::Opening as u32 => (flows + 1, clients),
            _ => (flows, clients),
        })
    }

    /// Keeps a pin. `false` if there is no room for it.
    fn keep(&self, pin_key: &PinKey, pin: &Pin) -> bool {
        let key = Key::new(pin_key, &self.shape.secret);
        let slot = self.keep_words(&key, facts_of(key.kind(), pin), note_of(pin));
        if let Some(slot) = slot
            && facts_of(key.kind(), pin).is_v6()
        {
            self.set_addresses(slot, pin_key);
        }
        slot.is_some()
    }

    /// Keeps what another table has.
    fn keep_from(&self, other: &FlowTable, pinned: &Pinned) -> bool {
        if let (Some(key), true) = (pinned.key, self.shape.secret != other.shape.secret) {
            return self.keep(&key, &pinned.pin);
        }
        let key = Key::from_words(pinned.first, pinned.second, &self.shape.secret.sets);
        let answered = other.note(pinned.slot).load(Ordering::Relaxed) & ANSWERED;
        let note = note_of(&pinned.pin) | answered;
        let slot = self.keep_words(&key, Facts::of(pinned.second), note);
        if let (Some(slot), Some(key), true) = (slot, pinned.key, Facts::of(pinned.second).is_v6())
        {
            self.set_addresses(slot, &key);
        }
        slot.is_some()
    }

    fn keep_words(&self, key: &Key, facts: Facts, note: u64) -> Option<u32> {
        /// Limits by which no entry makes room.
        const NOTHING_MAKES_ROOM: Limits = Limits {
            tcp_idle: u32::MAX,
            udp_idle: u32::MAX,
            media_hold: u32::MAX,
            tcp_established: u32::MAX,
            udp_established: u32::MAX,
            only_free: true,
        };
        let now = Clock::of_kernel().now();
        match keep(&Memory(self), key, facts, now, &NOTHING_MAKES_ROOM) {
            Kept::There(slot) | Kept::New(slot) => {
                self.note(slot).store(note, Ordering::Relaxed);
                Some(slot)
            }
            Kept::Overtaken | Kept::No => None,
        }
    }

    /// Keeps pins. Returns for how many there is no room.
    pub(super) fn keep_all(&self, pins: &[(PinKey, Pin)]) -> usize {
        let lost = pins.iter().filter(|(key, pin)| !self.keep(key, pin));
        lost.count()
    }

    /// Takes over what is in another table: what goes on and was used last comes first. Returns for how much
    /// there is no room.
    pub(super) fn carry_over(&self, other: &FlowTable) -> Result<usize> {
        let mut entries = other.entries()?;
        entries.sort_by_key(|pinned| {
            let ends = pinned.pin.state != State::Established as u32;
            (ends, Reverse(pinned.pin.seen))
        });
        let lost = entries
            .iter()
            .filter(|pinned| !self.keep_from(other, pinned));
        Ok(lost.count())
    }

    /// Gives up entries that a controller had begun to write when it was killed: those that are as they were at the last
    /// call, some seconds ago. Then forgets the addresses of flows that are gone.
    pub(super) fn tidy(&self, begun: &mut BTreeMap<u32, u64>) -> Result<()> {
        let order = Ordering::SeqCst;
        let reserved = (0u32..).zip(self.seconds()).filter_map(|(slot, second)| {
            let word = second.load(Ordering::Relaxed);
            (Facts::of(word).state() == State::Reserved as u32).then_some((slot, word))
        });
        let reserved: BTreeMap<u32, u64> = reserved.collect();
        for (slot, word) in &reserved {
            if begun.get(slot) == Some(word) {
                let second = &self.flows.words()[*slot as usize * 2 + 1];
                let _ = second.compare_exchange(*word, 0, order, order);
            }
        }
        *begun = reserved;
        for (slot, key) in self.addresses()? {
            let words = self.words(slot);
            let is_its = words.is_some_and(|(first, second)| {
                self.pin_key(Some(&key), first, second).is_some() && Facts::of(second).is_v6()
            });
            if !is_its {
                let _ = sys::remove::<u32, PinKey>(&self.addresses, &slot);
            }
        }
        Ok(())
    }

    /// An epoch that no entry has, nor any of those that follow it soon: what is remembered of other epochs must not look
    /// like that of this one.
    pub(super) fn free_epoch(&self) -> u32 {
        let mut used = vec![false; EPOCHS as usize + 1];
        for second in self.seconds() {
            let facts = Facts::of(second.load(Ordering::Relaxed));
            used[facts.epoch() as usize] |= facts.is_live();
        }
        // The longest stretch that is free, which may go over the end.
        let (mut length, mut longest) = (0, (0, 0));
        for at in 0..2 * used.len() {
            length = if used[at % used.len()] { 0 } else { length + 1 };
            if length > longest.0 {
                longest = (length, at + 1 - length);
            }
        }
        u32::try_from(longest.1).unwrap_or(0)
    }

    /// Gives up an entry, if it still is of whom it was when it was read. With `if_silent` only if no packet has come
    /// since.
    pub(super) fn forget(&self, pinned: &Pinned, if_silent: bool) {
        let second = &self.flows.words()[pinned.slot as usize * 2 + 1];
        let order = Ordering::SeqCst;
        let _ = second.fetch_update(order, order, |now| {
            let is_its = if if_silent {
                now == pinned.second
            } else {
                now >> 32 == pinned.second >> 32 && Facts::of(now).is_live()
            };
            is_its.then_some(0)
        });
    }

    fn note(&self, slot: u32) -> &AtomicU64 {
        &self.notes.words()[slot as usize]
    }

    /// The addresses and ports of an entry; none of a client, nor of a flow whose addresses are not known.
    fn pin_key(&self, addresses: Option<&PinKey>, first: u64, second: u64) -> Option<PinKey> {
        let facts = Facts::of(second);
        if facts.state() == State::Client as u32 {
            return None;
        }
        let kind = if facts.is_tcp() { Flow::TCP } else { 0 };
        if facts.is_v6() {
            let [a, b, c, d, ports] = *addresses?;
            let key = [a, b, c, d, ports >> 32 << 32 | kind | Flow::V6];
            let words = Key::new(&key, &self.shape.secret);
            let is_same = (words.first(), words.second()) == (first, second >> 32 << 32);
            return is_same.then_some(key);
        }
        Some([0, first >> 32, 0, second >> 32, first << 32 | kind])
    }

    fn set_addresses(&self, slot: u32, key: &PinKey) {
        // Without them the flow goes on all the same, and is not listed.
        let _ = sys::set(&self.addresses, &slot, key);
    }
}

/// The memory as the programs' own code takes it.
struct Memory<'a>(&'a FlowTable);

impl<'a> Sets for Memory<'a> {
    type Set = &'a [AtomicU64; SET_WORDS];

    fn mask(&self) -> u32 {
        self.0.shape.sets - 1
    }

    fn set(&self, index: u32) -> Option<Self::Set> {
        let start = index as usize * SET_WORDS;
        self.0.flows.words().get(start..)?.first_chunk()
    }
}

/// Returns what stands behind the last set.
fn header(flows: &MappedWords) -> &[AtomicU64] {
    let words = flows.words();
    &words[words.len() - SET_WORDS..]
}

pub(super) fn set_shape(flows: &MappedWords, shape: Shape) -> Result<()> {
    let sets = flows.words().len() / SET_WORDS - 1;
    ensure!(
        sets == shape.sets as usize,
        "a map of flows has another size"
    );
    let words = header(flows);
    for (word, value) in words[1..].iter().zip(shape.secret.keys) {
        word.store(value, Ordering::Relaxed);
    }
    words[0].store(MAGIC, Ordering::Release);
    Ok(())
}

/// The shape of the table in a map.
pub(super) fn shape(flows: &MappedWords) -> Result<Shape> {
    let sets = flows.words().len() / SET_WORDS - 1;
    let words = header(flows);
    ensure!(
        words[0].load(Ordering::Acquire) == MAGIC && sets.is_power_of_two(),
        "a map of flows has another layout"
    );
    let secret = [1, 2, 3, 4, 5, 6].map(|at: usize| words[at].load(Ordering::Relaxed));
    Ok(Shape {
        sets: u32::try_from(sets)?,
        secret: Secret::of(secret),
    })
}
