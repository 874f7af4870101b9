//! Fragments: what those of one packet have in common.
//!
//! Only the first fragment has ports. The data path remembers the way of first fragments that it steers, so that
//! the later ones of the same packet follow it.

use crate::frame::Frame;
use crate::verdict::Decision;

/// Offset of a fragment's identification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset of the IP header from the start of the frame, in bytes.
    pub ip_offset: u32,
    /// Offset of the IPv6 fragment header, in bytes; `None` for IPv4.
    pub v6_header: Option<u32>,
}

impl Fragment {
    /// As a word: the offset of the IP header, above it that of the fragment header, and a bit that says whether there is
    /// one.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        match self.v6_header {
            Some(header) => 1 << 63 | (header as u64) << 32 | self.ip_offset as u64,
            None => self.ip_offset as u64,
        }
    }

    /// The fragment that a word stands for.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        let header = (word >> 32 & 0x7fff_ffff) as u32;
        Fragment {
            ip_offset: (word & 0xffff_ffff) as u32,
            v6_header: if word >> 63 == 0 { None } else { Some(header) },
        }
    }
}

/// Key of a packet among others that are in fragments (RFC 791, RFC 8200): source, destination,
/// identification and protocol. IPv4 addresses stand at the start of their places.
pub type Key = [u8; 40];

/// Memory of a first fragment: see [`remember`].
pub type Memory = [u64; 2];

/// Time for which a first fragment is remembered, in nanoseconds: as long as Linux waits for the rest (`ipfrag_time`).
const LIFETIME: u64 = 30_000_000_000;

/// The key of a fragment's packet. `None` if the frame is not what the walk saw.
#[inline(always)]
pub fn key<F: Frame + ?Sized>(frame: &F, fragment: &Fragment) -> Option<Key> {
    let mut key = [0; 40];
    match fragment.v6_header {
        None => {
            let ip = frame.read::<20>(fragment.ip_offset)?;
            key[..4].copy_from_slice(&[ip[12], ip[13], ip[14], ip[15]]);
            key[16..20].copy_from_slice(&[ip[16], ip[17], ip[18], ip[19]]);
            key[32..34].copy_from_slice(&[ip[4], ip[5]]);
            // Identifications are per protocol in IPv4.
            key[36] = ip[9];
            key[37] = 4;
        }
        Some(header) => {
            let addresses = frame.read::<32>(fragment.ip_offset + 8)?;
            key[..32].copy_from_slice(&addresses);
            let identification = frame.read::<4>(header + 4)?;
            key[32..36].copy_from_slice(&identification);
            key[37] = 6;
        }
    }
    Some(key)
}

/// Returns what to remember of a first fragment that was steered to an egress, because of an endpoint set, at `now`, in
/// nanoseconds.
#[inline(always)]
pub const fn remember(egress: u8, set: u16, now: u64) -> Memory {
    [(set as u64) << 8 | egress as u64, now]
}

/// The bit of what is remembered that says that it is the first fragment of a reply, whose client's address and port stand below it.
pub const REPLY: u64 = 1 << 63;

/// The address and port of the client that the first fragment of a reply belonged to, unless that is too long ago; 0 then.
#[inline(always)]
pub const fn client(memory: &Memory, now: u64) -> u64 {
    if memory[0] & REPLY == 0 || now.wrapping_sub(memory[1]) > LIFETIME {
        return 0;
    }
    memory[0] & 0xffff_ffff_ffff
}

/// Returns what was decided on the first fragment, unless that is too long ago.
#[inline(always)]
pub const fn recall(memory: &Memory, now: u64) -> Option<Decision> {
    let [way, _] = *memory;
    if way & REPLY != 0 || now.wrapping_sub(memory[1]) > LIFETIME {
        return None;
    }
    Some(Decision::steer(
        (way & 0xff) as u8,
        (way >> 8 & 0xffff) as u16,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_fragment_is_forgotten_after_its_lifetime() {
        let outcome = Decision::steer(2, 11);
        let memory = remember(2, 11, 1_000);
        assert_eq!(recall(&memory, 1_000), Some(outcome));
        assert_eq!(recall(&memory, 1_000 + LIFETIME), Some(outcome));
        assert_eq!(recall(&memory, 1_001 + LIFETIME), None);
    }

    #[test]
    fn keys_differ_in_each_part() {
        let mut ip = [0u8; 20];
        let fragment = Fragment {
            ip_offset: 0,
            v6_header: None,
        };
        let first = key(&ip[..], &fragment).unwrap();
        for at in [4, 5, 9, 12, 15, 16, 19] {
            ip[at] = 1;
            assert_ne!(key(&ip[..], &fragment).unwrap(), first, "byte {at}");
            ip[at] = 0;
        }
        ip[8] = 7;
        assert_eq!(
            key(&ip[..], &fragment).unwrap(),
            first,
            "the TTL is no part of it"
        );
    }
}
