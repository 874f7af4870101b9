//! Questions as words: how tests and benchmarks ask the kernel thousands of things in one call.

use crate::table::Destination;

/// Questions that the kernel is given at once. A power of two.
pub const QUESTIONS: usize = 1 << 16;

/// A destination, and a protocol and port as [`Transport::key`](crate::table::Transport::key) gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where the packet goes.
    pub destination: Destination,
    /// Protocol and port.
    pub key: u32,
}

/// A question as words: 4 or 6, the key, and the address as numbers, an IPv4 address in the first word.
pub type QuestionWords = [u32; 6];

impl Question {
    /// The question as words.
    pub const fn to_words(&self) -> QuestionWords {
        match self.destination {
            Destination::V4(address) => [4, self.key, address, 0, 0, 0],
            Destination::V6(high, low) => [
                6,
                self.key,
                (high >> 32) as u32,
                (high & 0xffff_ffff) as u32,
                (low >> 32) as u32,
                (low & 0xffff_ffff) as u32,
            ],
        }
    }

    /// The question that the words stand for.
    #[inline(always)]
    pub const fn from_words(words: &QuestionWords) -> Self {
        let destination = if words[0] == 4 {
            Destination::V4(words[2])
        } else {
            Destination::V6(
                (words[2] as u64) << 32 | words[3] as u64,
                (words[4] as u64) << 32 | words[5] as u64,
            )
        };
        Question {
            destination,
            key: words[1],
        }
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
            };
            assert_eq!(Question::from_words(&question.to_words()), question);
        }
    }
}
