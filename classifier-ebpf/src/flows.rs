//! The table of flows in the kernel's memory.

use core::ptr;

use breakout_common::flows::{
    ANSWERED, ENTRIES, Facts, Kept, Key, PER_SET, SET_WORDS, Set, Sets, State, answered, facts_of,
    find, keep, note_of, pin_of, renew, with_answer,
};
use breakout_common::path::{ORDINARY, Pin, PinKey};

use crate::clock::now;
use crate::count::add;
use crate::globals;
use crate::maps::{ADDRESSES, ANSWERS, FLOWS, NOTES, paths};
use crate::opaque::opaque;

/// The table.
pub(crate) struct KernelSets;

/// A set of it.
#[derive(Clone, Copy)]
pub(crate) struct KernelSet(*mut [u64; SET_WORDS]);

impl Sets for KernelSets {
    type Set = KernelSet;

    #[inline(always)]
    fn mask(&self) -> u32 {
        globals::flow_mask()
    }

    #[inline(always)]
    fn set(&self, index: u32) -> Option<KernelSet> {
        FLOWS.get_ptr_mut(index).map(KernelSet)
    }
}

impl KernelSet {
    /// The set at this place of a map.
    #[inline(always)]
    pub(crate) fn new(set: *mut [u64; SET_WORDS]) -> Self {
        KernelSet(set)
    }

    #[inline(always)]
    fn place(&self, at: usize) -> *mut u64 {
        self.0.cast::<u64>().wrapping_add(at % SET_WORDS)
    }
}

impl Set for KernelSet {
    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        // SAFETY: the map's value has SET_WORDS words and is aligned for them, and `place` is one of them. The map lives as
        // long as the program. The access is volatile, because other CPUs and the controller write there; it is one
        // instruction, so it is whole.
        unsafe { ptr::read_volatile(self.place(at)) }
    }

    /// By an address that depends on what was seen, which is what keeps all processors from reading it before (there is no
    /// instruction for that before Linux 6.15).
    #[inline(always)]
    fn word_after(&self, at: usize, seen: u64) -> u64 {
        // SAFETY: as for `word`; nothing is added.
        unsafe { ptr::read_volatile(self.place(at).wrapping_add(zero_after(seen))) }
    }

    #[inline(always)]
    fn write(&self, at: usize, word: u64) {
        // SAFETY: as for `word`.
        unsafe { ptr::write_volatile(self.place(opaque(at)), word) };
    }

    /// By one instruction (Linux 5.12), which has full barriers on both sides. The compiler offers none.
    #[inline(always)]
    fn swap(&self, at: usize, was: u64, word: u64) -> bool {
        // A place that is found by comparing is bounded anew: the compiler knows its bounds, old verifiers do not.
        let place = self.place(opaque(at));
        #[cfg(target_arch = "bpf")]
        {
            let found: u64;
            // SAFETY: as for `word`; this is an atomic access to it.
            unsafe {
                core::arch::asm!(
                    "r0 = cmpxchg_64({0} + 0, r0, {1})",
                    in(reg) place, in(reg) word, inout("r0") was => found,
                    options(nostack)
                );
            }
            found == was
        }
        // Only the eBPF build is of use.
        #[cfg(not(target_arch = "bpf"))]
        {
            let _ = place;
            let is_same = self.word(at) == was;
            if is_same {
                self.write(at, word);
            }
            is_same
        }
    }
}

/// Zero, which the verifier knows and the compiler does not, made from what was seen.
#[inline(always)]
fn zero_after(seen: u64) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut zero = seen;
        // SAFETY: the instruction clears a register; it touches neither memory nor stack.
        unsafe {
            core::arch::asm!("{0} &= 0", inout(reg) zero, options(pure, nomem, nostack, preserves_flags));
        }
        zero as usize
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = seen;
        0
    }
}

/// The bit of what [`breakout_keep`] returns that says that the slot is new; those above it are 0.
const NEW: u64 = 1 << 32;
/// Return value if nothing is kept, because there is no room for it.
const NOWHERE: u64 = u64::MAX;
/// The same because another CPU was about the same.
const OVERTAKEN: u64 = u64::MAX - 1;

/// The key of what has these words elsewhere.
#[inline(always)]
pub(crate) fn key([a, b, c, d, e]: PinKey) -> Key {
    let secret = globals::set_secret();
    match Key::exact(&[a, b, c, d, e], &secret) {
        Some(key) => key,
        None => {
            let (first, second) = (
                breakout_first(a, b, c, d, e),
                breakout_second(a, b, c, d, e),
            );
            Key::from_words(first, second, &secret)
        }
    }
}

/// The pin of a flow or client.
#[inline(always)]
pub(crate) fn get(pin_key: PinKey, now: u32) -> Option<Pin> {
    let key = key(pin_key);
    let found = breakout_find(key.first(), key.second() | u64::from(key.kind()));
    if found == 0 {
        return None;
    }
    let slot = (found >> 32) as u32;
    // SAFETY: as for the words of a set.
    let note = place_of_note(slot).map_or(0, |note| unsafe { ptr::read_volatile(note) });
    Some(pin_of(Facts::of(found), note, now))
}

/// Keeps the pin of a flow or client.
#[inline(always)]
pub(crate) fn put(pin_key: PinKey, pin: &Pin) -> bool {
    let key = key(pin_key);
    let facts = facts_of(key.kind(), pin);
    let kept = breakout_keep(
        key.first(),
        key.second() | u64::from(facts.0),
        note_of(pin),
        pin.seen,
    );
    if kept >= OVERTAKEN {
        return kept == OVERTAKEN;
    }
    if kept & NEW != 0 && facts.is_v6() && pin.state != State::Client as u32 {
        let [a, b, c, d, e] = pin_key;
        breakout_note_addresses((kept & 0xffff_ffff) | e >> 32 << 32, a, b, c, d);
    }
    true
}

/// Returns where it is noted what stands beside an entry.
#[inline(always)]
fn place_of_note(slot: u32) -> Option<*mut u64> {
    let notes = NOTES.get_ptr_mut(slot / PER_SET)?;
    Some(notes.cast::<u64>().wrapping_add(slot as usize % ENTRIES))
}

/// The first half of the hash of a key; see [`Key::halves`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_first(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    Key::halves(&[a, b, c, d, e], &globals::key_secret()).0
}

/// The other half.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_second(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    Key::halves(&[a, b, c, d, e], &globals::key_secret()).1
}

/// Notes the addresses of a flow over IPv6, and its ports, which stand above its slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_note_addresses(slot: u64, a: u64, b: u64, c: u64, d: u64) -> u32 {
    let ports = slot >> 32 << 32;
    let _ = ADDRESSES.insert((slot & 0xffff_ffff) as u32, [a, b, c, d, ports], 0);
    0
}

/// Notes that a packet of a flow has come; see [`renew`]. Returns what is known of the flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_renew(
    first: u64,
    second: u64,
    now: u32,
    epoch: u32,
    most: u32,
) -> u32 {
    let key = Key::from_words(first, second, &globals::set_secret());
    let mask = globals::flow_mask();
    let mut facts = Facts(0);
    if let Some(set) = KernelSets.set(key.set(mask)) {
        facts = renew(set, &key, now, epoch, most);
    }
    if facts.0 == 0
        && let Some(set) = KernelSets.set(key.other_set(mask))
    {
        facts = renew(set, &key, now, epoch, most);
    }
    facts.0
}

/// The slot of a flow, above what is known of it; 0 if there is none. A function of its own, which the verifier looks at
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_find(first: u64, second: u64) -> u64 {
    let key = Key::from_words(first, second, &globals::set_secret());
    match find(&KernelSets, &key) {
        Some((slot, facts)) => u64::from(slot) << 32 | u64::from(facts.0),
        None => 0,
    }
}

/// The bits of a note that say since when.
const SINCE: u64 = 0xffff_ffff;

/// Keeps an entry with its note, as [`keep`] does. A note of no time leaves that which is there. Returns its slot, [`NEW`]
/// or not, or [`NOWHERE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_keep(first: u64, second: u64, note: u64, now: u32) -> u64 {
    let key = Key::from_words(first, second, &globals::set_secret());
    let Some(paths) = paths() else {
        return NOWHERE;
    };
    let facts = Facts::of(second);
    let (slot, new) = match keep(&KernelSets, &key, facts, now, &paths.limits()) {
        Kept::There(slot) => (slot, 0),
        Kept::New(slot) => (slot, NEW),
        Kept::Overtaken => return OVERTAKEN,
        Kept::No => return NOWHERE,
    };
    if let Some(place) = place_of_note(slot) {
        // SAFETY: as for the words of a set.
        unsafe {
            let since = if note & SINCE != 0 {
                0
            } else if new != 0 {
                u64::from(now)
            } else {
                ptr::read_volatile(place) & (SINCE | ANSWERED)
            };
            ptr::write_volatile(place, note | since);
        }
    }
    u64::from(slot) | new
}

/// Tells whether a flow is known, and leaves by an egress.
#[inline(always)]
pub(crate) fn is_steered(pin_key: PinKey) -> bool {
    let key = key(pin_key);
    let found = breakout_find(key.first(), key.second() | u64::from(key.kind()));
    found != 0 && Facts::of(found).egress() != ORDINARY
}

/// Offset of the tick of the last answer in a note, in units of its size.
const TICK_OF_ANSWER: usize = if cfg!(target_endian = "little") { 3 } else { 0 };

/// Notes that the flow with this key is answered, and counts that for its egress.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_note_answer(a: u64, b: u64, c: u64, d: u64, e: u64) -> u32 {
    let key = key([a, b, c, d, e]);
    let found = breakout_find(key.first(), key.second() | u64::from(key.kind()));
    let facts = Facts::of(found);
    let slot = (found >> 32) as u32;
    let Some(note) = place_of_note(slot) else {
        return 0;
    };
    if found == 0 || facts.egress() == ORDINARY {
        return 0;
    }
    // SAFETY: as for the words of a set; the tick of the answer is an aligned part of the note. Nothing else of it is written, so
    // another CPU that writes the note at the same time may have this answer forgotten, and nothing more.
    let is_first = unsafe {
        let before = ptr::read_volatile(note);
        let tick = answered(with_answer(before, now()));
        if tick != answered(before) {
            ptr::write_volatile(note.cast::<u16>().wrapping_add(TICK_OF_ANSWER), tick);
        }
        answered(before) == 0
    };
    let place = u32::from(facts.egress()) << 1 | u32::from(facts.is_v6());
    add(ANSWERS.get_ptr_mut(place), 1, u64::from(is_first));
    0
}
