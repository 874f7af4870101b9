//! The one place that touches packet memory.

use breakout_common::frame::{Frame, FrameMut, MAX_OFFSET, folded};

use crate::globals;
use crate::opaque::opaque;

/// A packet's directly readable bytes.
pub(crate) struct Packet {
    start: usize,
    end: usize,
    len: u32,
    tag_beside: u32,
}

impl Packet {
    /// `start` and `end` are the context's `data` and `data_end`; `len` is the whole frame's length, which is more
    /// than the readable bytes where a socket buffer has fragments.
    #[inline(always)]
    pub(crate) fn new(start: usize, end: usize, len: u32) -> Self {
        Packet {
            start,
            end,
            len,
            tag_beside: 0,
        }
    }

    /// The same with a VLAN tag beside the bytes; see [`Frame::tag_beside`].
    #[inline(always)]
    pub(crate) fn with_tag(self, tag: u32) -> Self {
        Packet {
            tag_beside: tag,
            ..self
        }
    }

    /// The address of `N` readable bytes at `offset`.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: u32) -> Option<*mut [u8; N]> {
        let offset = opaque(offset as usize);
        if offset > MAX_OFFSET as usize {
            return None;
        }
        let address = opaque(self.start.wrapping_add(offset));
        if address.wrapping_add(N) > self.end {
            return None;
        }
        Some(address as *mut [u8; N])
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn tag_beside(&self) -> u32 {
        self.tag_beside
    }

    #[inline(always)]
    fn blur(&self, value: u32) -> u32 {
        value ^ globals::zero()
    }

    #[inline(always)]
    fn sum_of_20(&self, offset: u32) -> Option<u16> {
        let bytes = self.at::<20>(offset)?;
        let mut sum = 0u64;
        for word in 0..5 {
            // SAFETY: `at` has compared the end of the 20 bytes with `data_end`; see `read`.
            sum += unsafe { load_word(bytes.cast::<u8>().add(word * 4)) };
        }
        Some(folded(sum))
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: `at` has compared the end of the `N` bytes with `data_end`; the kernel keeps them valid
        // until the program changes the packet's size, after which no `Packet` made before is used. The verifier
        // proves the same at load. `[u8; N]` has alignment 1.
        self.at(offset).map(|bytes| unsafe { *bytes })
    }
}

/// Four bytes as the machine reads them, by one instruction: the compiler takes packets for unaligned and would load each byte,
/// but the kernel aligns the accesses of machines that need that.
///
/// # Safety
///
/// The four bytes must be readable.
#[inline(always)]
unsafe fn load_word(bytes: *const u8) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: the caller answers for the bytes; the instruction only loads them.
        unsafe {
            core::arch::asm!("{0} = *(u32 *)({1} + 0)", out(reg) word, in(reg) bytes, options(pure, readonly, nostack, preserves_flags));
        }
        word
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller answers for the bytes, and no alignment is asked for.
    unsafe {
        u64::from(bytes.cast::<u32>().read_unaligned())
    }
}

impl FrameMut for Packet {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        let place = self.at(offset)?;
        // SAFETY: as for `read`; XDP packet memory is writable.
        unsafe { *place = bytes };
        Some(())
    }
}
