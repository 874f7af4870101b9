//! Questions and answers as words: how tests and benchmarks ask the kernel thousands of things in one call.

use crate::table::Destination;
use crate::verdict::{Decision, Verdict};

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

const STEER: u32 = 1 << 8;
const SET: u32 = 1 << 31;

/// A decision as a word: the reason in the lowest bits, or the egress instead with a bit that says so; the endpoint set
/// in the upper half with a bit that says so.
#[inline(always)]
pub const fn to_word(decision: &Decision) -> u32 {
    let verdict = match decision.verdict {
        Verdict::Pass => decision.reason as u32,
        Verdict::Steer(egress) => STEER | egress as u32,
    };
    match decision.set {
        Some(set) => SET | (set as u32 & 0x7fff) << 16 | verdict,
        None => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Reason;

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

    #[test]
    fn different_decisions_are_different_words() {
        let mut words = [0; 5];
        for (word, (verdict, reason, set)) in words.iter_mut().zip([
            (Verdict::Pass, Reason::NoPrefix, None),
            (Verdict::Pass, Reason::Policy, Some(0)),
            (Verdict::Pass, Reason::Policy, Some(1)),
            (Verdict::Steer(0), Reason::Steered, Some(0)),
            (Verdict::Steer(1), Reason::Steered, Some(0)),
        ]) {
            *word = to_word(&Decision {
                verdict,
                reason,
                set,
            });
        }
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]), "{words:?}");
    }
}
