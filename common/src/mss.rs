//! The maximum segment size that TCP announces in a SYN, held to what fits through an egress.

/// The kinds of options that matter here (RFC 9293, section 3.2).
const END: u8 = 0;
const NOTHING: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Result of looking at one option in a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is the maximum segment size.
    Size,
    /// The next option is so many bytes further on.
    Next(u32),
    /// There are no more options, or they are damaged.
    End,
}

/// Tells of an option by its first two bytes.
#[inline(always)]
pub const fn option([kind, len]: [u8; 2]) -> Found {
    match (kind, len) {
        (END, _) => Found::End,
        (NOTHING, _) => Found::Next(1),
        (MAXIMUM_SEGMENT_SIZE, 4) => Found::Size,
        (_, 0 | 1) => Found::End,
        (_, len) => Found::Next(len as u32),
    }
}

/// The largest segment that fits into packets of `mtu` bytes without options (RFC 6691).
#[inline(always)]
pub const fn largest(mtu: u32, v6: bool) -> u32 {
    mtu.saturating_sub(if v6 { 60 } else { 40 })
}

/// Returns how a size stands in the checksum: at an odd place of the header it takes part in two words.
#[inline(always)]
pub const fn in_checksum(size: [u8; 2], place: u32) -> [u8; 2] {
    let [high, low] = size;
    if place.is_multiple_of(2) {
        [high, low]
    } else {
        [low, high]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_apart() {
        assert_eq!(option([2, 4]), Found::Size);
        assert_eq!(option([2, 3]), Found::Next(3));
        assert_eq!(option([1, 2]), Found::Next(1));
        assert_eq!(option([0, 4]), Found::End);
        assert_eq!(option([8, 10]), Found::Next(10));
        assert_eq!(option([8, 1]), Found::End);
        assert_eq!((largest(1492, false), largest(1492, true)), (1452, 1432));
        assert_eq!(largest(50, true), 0);
        assert_eq!(in_checksum([1, 2], 20), [1, 2]);
        assert_eq!(in_checksum([1, 2], 21), [2, 1]);
    }
}
