//! Access to the bytes of a packet.

/// The furthest byte, counted from the start of the frame, that the header walk ever asks for.
///
/// The kernel's verifier needs a constant bound on every variable offset into a packet. Headers that
/// reach further than this pass, with [`Reason::ExtensionHeaders`](crate::verdict::Reason).
pub const MAX_OFFSET: u32 = 1023;

/// The bit of [`Frame::tag_beside`] that says there is a tag.
pub const TAG_PRESENT: u32 = 1 << 16;

/// A frame, from its first link-layer byte on.
pub trait Frame {
    /// The frame's whole length in bytes, whether or not all of it can be read here.
    fn len(&self) -> u32;

    /// The `N` bytes at `offset`, or `None` if the frame ends before them or `offset` is above
    /// [`MAX_OFFSET`].
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The VLAN tag that the frame had and that stands beside its bytes, as in a socket buffer: its tag control information
    /// and [`TAG_PRESENT`], or 0.
    #[inline(always)]
    fn tag_beside(&self) -> u32 {
        0
    }

    /// Returns `value`. In the kernel, in a way that hides from the verifier what it knows of it.
    ///
    /// The verifier follows every way through the header walk on its own as long as it knows an offset exactly, and
    /// would go through everything behind it once for each of them.
    #[inline(always)]
    fn blur(&self, value: u32) -> u32 {
        value
    }

    /// The ones' complement sum (RFC 1071) of the 20 bytes at `offset`, in any byte order: 0xffff where a checksum among them is
    /// right. `None` where [`read`](Self::read) is.
    #[inline(always)]
    fn sum_of_20(&self, offset: u32) -> Option<u16> {
        let bytes = self.read::<20>(offset)?;
        let (words, _) = bytes.as_chunks::<4>();
        let mut sum = 0;
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        Some(folded(sum))
    }

    /// Returns whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A ones' complement sum of 32-bit words, in 16 bits.
#[inline(always)]
pub const fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum + (sum >> 16)) & 0xffff) as u16
}

/// A frame that can be changed in place.
pub trait FrameMut: Frame {
    /// Replaces the `N` bytes at `offset`; `None`, and nothing changed, where [`Frame::read`] of the same
    /// place is `None`.
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()>;
}

impl Frame for [u8] {
    fn len(&self) -> u32 {
        u32::try_from(<[u8]>::len(self)).unwrap_or(u32::MAX)
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.get(offset as usize..)?.first_chunk().copied()
    }
}

impl FrameMut for [u8] {
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        if offset > MAX_OFFSET {
            return None;
        }
        *self.get_mut(offset as usize..)?.first_chunk_mut()? = bytes;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end_and_at_the_bound() {
        let bytes = [7u8; 2048];
        let frame: &[u8] = &bytes[..20];
        assert_eq!(frame.read::<4>(16), Some([7; 4]));
        assert_eq!(frame.read::<4>(17), None);
        assert_eq!(frame.read::<1>(u32::MAX), None);
        let long: &[u8] = &bytes;
        assert_eq!(long.read::<1>(MAX_OFFSET), Some([7]));
        assert_eq!(long.read::<1>(MAX_OFFSET + 1), None);
    }

    #[test]
    fn a_write_that_does_not_fit_changes_nothing() {
        let mut bytes = [0u8; 8];
        let frame: &mut [u8] = &mut bytes;
        assert_eq!(frame.write(6, [1, 2, 3]), None);
        assert_eq!(frame.write(5, [1, 2, 3]), Some(()));
        assert_eq!(bytes, [0, 0, 0, 0, 0, 1, 2, 3]);
    }
}
