//! Questions as words: how tests and benchmarks ask the kernel thousands of things in one call.

use crate::condition::Client;
use crate::table::Destination;

/// Questions that the kernel is given at once. A power of two.
pub const QUESTIONS: usize = 1 << 16;

/// A destination, and a protocol and port as [`Transport::key`](crate::table::Transport::key) gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Destination of the packet.
    pub destination: Destination,
    /// Protocol and port.
    pub key: u32,
    /// Client. The source has the family of the destination.
    pub client: Client,
}

/// A question as words: 4 or 6, the key, the destination and the source as numbers, an IPv4 address in the first word of
/// four, LAN and VLAN.
pub type QuestionWords = [u32; 12];

impl Question {
    /// The question as words.
    pub const fn to_words(&self) -> QuestionWords {
        let family = if self.destination.is_v6() { 6 } else { 4 };
        let [a, b, c, d] = address_to_words(self.destination);
        let [e, f, g, h] = address_to_words(self.client.source);
        let (lan, vlan) = (self.client.lan, self.client.vlan);
        [family, self.key, a, b, c, d, e, f, g, h, lan, vlan]
    }

    /// The question that the words stand for.
    #[inline(always)]
    pub const fn from_words(words: &QuestionWords) -> Self {
        let [family, key, a, b, c, d, e, f, g, h, lan, vlan] = *words;
        Question {
            destination: address_from_words(family, [a, b, c, d]),
            key,
            client: Client {
                source: address_from_words(family, [e, f, g, h]),
                lan,
                vlan,
            },
        }
    }
}

/// An address as numbers; of an IPv4 address the first one.
#[inline(always)]
pub const fn address_to_words(address: Destination) -> [u32; 4] {
    match address {
        Destination::V4(address) => [address, 0, 0, 0],
        Destination::V6(high, low) => [
            (high >> 32) as u32,
            (high & 0xffff_ffff) as u32,
            (low >> 32) as u32,
            (low & 0xffff_ffff) as u32,
        ],
    }
}

#[inline(always)]
const fn address_from_words(family: u32, [a, b, c, d]: [u32; 4]) -> Destination {
    if family == 4 {
        Destination::V4(a)
    } else {
        Destination::V6((a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_survive_the_words() {
        for destination in [
            Destination::V4(0x3470_0001),
            Destination::V6(0x2603_1006_ffff_0001, 0xfeff_0000_0000_0007),
        ] {
            let question = Question {
                destination,
                key: 0x1_0d96,
                client: Client {
                    source: destination,
                    lan: 3,
                    vlan: 4094,
                },
            };
            assert_eq!(Question::from_words(&question.to_words()), question);
        }
    }
}
