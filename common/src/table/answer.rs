//! Answers of a table, as words of its leaves.

use super::{NO_PORT, NO_PREFIX, OWN};

/// Content of a leaf for a class: the endpoint set that wins there and what is done with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Outcome {
    /// The endpoint set's slot, the index of its counter.
    pub set: u16,
    /// The preference that says which egress to steer to (see [`path`](crate::path)), or `None` where the policy passes
    /// the set.
    pub preference: Option<u8>,
    /// Reason why it is not steered there all the same, if so.
    pub hold: Option<Hold>,
    /// True if it is of the class `media`.
    pub media: bool,
    /// True if its flows take what is best at any time, rather than stay where they are.
    pub hard: bool,
}

/// Reason why a packet that the policy steers takes the ordinary path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hold {
    /// The policy only shows what it would do.
    Shadow,
    /// The operator has switched steering off for a time.
    Bypass,
}

impl Outcome {
    /// The lowest bits of a word: the endpoint set's slot.
    pub const SET: u32 = 0xffff;
    /// Bit position of the preference, 5 bits long.
    pub const PREFERENCE: u32 = 16;
    /// There is a preference.
    pub const STEER: u32 = 1 << 21;
    /// There is an outcome.
    pub const PRESENT: u32 = 1 << 22;
    /// See [`Hold::Shadow`].
    pub const SHADOW: u32 = 1 << 23;
    /// See [`Hold::Bypass`].
    pub const BYPASS: u32 = 1 << 24;
    /// It is of the class `media`.
    pub const MEDIA: u32 = 1 << 25;
    /// Its flows take what is best at any time.
    pub const HARD: u32 = 1 << 26;
    /// All bits that a word can have.
    pub const ALL: u32 = (1 << 27) - 1;

    /// The outcome as a table word, which is never zero.
    pub const fn to_word(self) -> u32 {
        let hold = match self.hold {
            None => 0,
            Some(Hold::Shadow) => Self::SHADOW,
            Some(Hold::Bypass) => Self::BYPASS,
        };
        let media = if self.media { Self::MEDIA } else { 0 };
        let hard = if self.hard { Self::HARD } else { 0 };
        let steer = match self.preference {
            Some(preference) => Self::STEER | (preference as u32 & 31) << Self::PREFERENCE,
            None => 0,
        };
        Self::PRESENT | steer | hold | media | hard | self.set as u32
    }

    /// The outcome that a table word stands for.
    pub const fn from_word(word: u32) -> Self {
        Outcome {
            set: (word & Self::SET) as u16,
            preference: if word & Self::STEER == 0 {
                None
            } else {
                Some((word >> Self::PREFERENCE & 31) as u8)
            },
            hold: if word & Self::BYPASS != 0 {
                Some(Hold::Bypass)
            } else if word & Self::SHADOW != 0 {
                Some(Hold::Shadow)
            } else {
                None
            },
            media: word & Self::MEDIA != 0,
            hard: word & Self::HARD != 0,
        }
    }
}

/// Answer of a table about a destination, protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No prefix covers the destination.
    NoPrefix,
    /// Prefixes cover the destination, none with this protocol and port.
    NoPort,
    /// The destination is the gateway itself.
    Own,
    /// An endpoint set wins.
    Match(Outcome),
}

impl Answer {
    /// The answer that a word of a leaf stands for, if any.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Option<Self> {
        match word {
            0 => None,
            NO_PREFIX => Some(Answer::NoPrefix),
            NO_PORT => Some(Answer::NoPort),
            OWN => Some(Answer::Own),
            word => Some(Answer::Match(Outcome::from_word(word))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::CHAIN;
    use super::*;

    #[test]
    fn outcomes_survive_the_word() {
        for preference in [None, Some(0), Some(31)] {
            for set in [0, 1, u16::MAX] {
                for hold in [None, Some(Hold::Shadow), Some(Hold::Bypass)] {
                    for (media, hard) in [(false, false), (true, false), (false, true)] {
                        let outcome = Outcome {
                            set,
                            preference,
                            hold,
                            media,
                            hard,
                        };
                        let word = outcome.to_word();
                        assert_eq!(word & CHAIN, 0);
                        assert_eq!(Answer::from_word(word), Some(Answer::Match(outcome)));
                    }
                }
            }
        }
    }
}
