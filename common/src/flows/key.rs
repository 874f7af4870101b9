//! Keys of entries.

use super::{TCP, V6};
use crate::path::{Flow, PinKey};

/// Secret that makes the hashes of one table unlike those of any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Secret {
    /// Of the sets that a key has.
    pub sets: SetSecret,
    /// Of keys that are hashes: twelve words of 32 bits.
    pub keys: KeySecret,
}

/// See [`Secret::sets`].
pub type SetSecret = [u64; 2];
/// See [`Secret::keys`]. They are chosen by chance, and kept behind the table's last set.
pub type KeySecret = [u64; 6];

impl Secret {
    /// Nobody's.
    pub const NONE: Secret = Secret {
        sets: [0; 2],
        keys: [0; 6],
    };

    /// The secret that follows from its words.
    pub const fn of(keys: KeySecret) -> Self {
        let [a, b, c, d, e, f] = keys;
        Secret {
            sets: [folded(a, b, c), folded(d, e, f)],
            keys,
        }
    }
}

/// Key of a flow or a client, as a table with a secret has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    first: u64,
    second: u64,
    kind: u32,
    hash: u64,
}

impl Key {
    /// The bit of a [kind](Self::kind) that says TCP.
    pub const TCP: u64 = TCP as u64;

    /// The key of what has this key elsewhere.
    #[inline(always)]
    pub const fn new(key: &PinKey, secret: &Secret) -> Self {
        match Self::exact(key, &secret.sets) {
            Some(exact) => exact,
            None => {
                let (first, second) = Self::halves(key, &secret.keys);
                Self::from_words(first, second, &secret.sets)
            }
        }
    }

    /// The key of a flow over IPv4, which is no hash; `None` for all else.
    #[inline(always)]
    pub const fn exact(key: &PinKey, secret: &SetSecret) -> Option<Self> {
        let [_, source, _, destination, ports] = *key;
        if ports & (Flow::V6 | Flow::CLIENT) != 0 {
            return None;
        }
        let first = source << 32 | ports >> 32;
        Some(Self::from_words(
            first,
            destination << 32 | kind_of(ports),
            secret,
        ))
    }

    /// The words of a key that is a hash: the first one, and the second one with its kind.
    #[inline(always)]
    pub const fn halves(key: &PinKey, secret: &KeySecret) -> (u64, u64) {
        let [a, b, c, d, e, f] = *secret;
        let first = lane(*key, [a, b, c, d, e]);
        let second = lane(*key, [b, c, d, e, f]);
        (first, second & !0xffff_ffff | kind_of(key[4]))
    }

    /// The key with these words of an entry, in a table with this secret.
    #[inline(always)]
    pub const fn from_words(first: u64, second: u64, secret: &SetSecret) -> Self {
        let kind = (second & 0xffff_ffff) as u32 & (TCP | V6);
        let second = second & !0xffff_ffff;
        let hash = mixed(first ^ secret[0], MULTIPLIERS[0]);
        let hash = mixed(hash ^ second ^ kind as u64 ^ secret[1], MULTIPLIERS[1]);
        Key {
            first,
            second,
            kind,
            hash: mixed(hash, MULTIPLIERS[0]),
        }
    }

    /// The first word of its entry.
    #[inline(always)]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The upper half of the second word; the lower one is zero.
    #[inline(always)]
    pub const fn second(&self) -> u64 {
        self.second
    }

    /// The bits of the second word's lower half that are the flow's for ever.
    #[inline(always)]
    pub const fn kind(&self) -> u32 {
        self.kind
    }

    /// The same with other sets than those that its hash gives.
    #[inline(always)]
    #[must_use]
    pub const fn in_sets(self, set: u32, other: u32) -> Self {
        Key {
            hash: (other as u64) << 32 | set as u64,
            ..self
        }
    }

    /// The index of its first set.
    #[inline(always)]
    pub const fn set(&self, mask: u32) -> u32 {
        (self.hash & 0xffff_ffff) as u32 & mask
    }

    /// The index of its other set.
    #[inline(always)]
    pub const fn other_set(&self, mask: u32) -> u32 {
        let other = (self.hash >> 32) as u32 & mask;
        if other == self.set(mask) {
            (other ^ 1) & mask
        } else {
            other
        }
    }
}

/// Odd numbers with about as many ones as zeros: those of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom
/// Number Generators, 2014).
const MULTIPLIERS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// The kind of a key, by its last word.
#[inline(always)]
const fn kind_of(ports: u64) -> u64 {
    let tcp = if ports & Flow::TCP != 0 { TCP } else { 0 };
    let v6 = if ports & Flow::V6 != 0 { V6 } else { 0 };
    (tcp | v6) as u64
}

/// Half of a hash: NH of UMAC (RFC 4418, section 5.2.2), by which two keys collide with a probability of 2^-32 for either
/// half whatever they are, then mixed so that all of its bits can be used. The other half has the secret's words moved on
/// by one.
#[inline(always)]
const fn lane([a, b, c, d, e]: PinKey, [u, v, w, x, y]: [u64; 5]) -> u64 {
    let sum = product(a, u)
        .wrapping_add(product(b, v))
        .wrapping_add(product(c, w))
        .wrapping_add(product(d, x))
        .wrapping_add(product(e, y));
    mixed(mixed(sum, MULTIPLIERS[0]), MULTIPLIERS[1])
}

/// The halves of a word, each with a secret number added, multiplied.
#[inline(always)]
const fn product(word: u64, secret: u64) -> u64 {
    let low = word.wrapping_add(secret) & 0xffff_ffff;
    let high = (word >> 32).wrapping_add(secret >> 32) & 0xffff_ffff;
    low.wrapping_mul(high)
}

const fn folded(a: u64, b: u64, c: u64) -> u64 {
    let word = a ^ b.rotate_left(21) ^ c.rotate_left(42);
    mixed(mixed(word, MULTIPLIERS[0]), MULTIPLIERS[1])
}

#[inline(always)]
const fn mixed(word: u64, multiplier: u64) -> u64 {
    let word = word.wrapping_mul(multiplier);
    word ^ word >> 32
}
