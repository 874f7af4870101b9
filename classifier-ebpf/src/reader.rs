//! The one place that touches packet memory.
//!
//! The compiler takes a packet's bytes for unaligned and would load and store each of them. The kernel aligns the accesses
//! of machines that need that, so they are written here as wide as they can be.

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

    /// Returns where its bytes begin.
    #[inline(always)]
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Returns where its readable bytes end.
    #[inline(always)]
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// Its first `N` bytes, if so many are readable.
    #[inline(always)]
    pub(crate) fn window<const N: usize>(&self) -> Option<Window<N>> {
        let start = opaque(self.start);
        if start.wrapping_add(N) > self.end {
            return None;
        }
        Some(Window {
            start,
            end: self.end,
            len: self.len,
            tag_beside: self.tag_beside,
        })
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
        // SAFETY: `at` has compared the end of the 20 bytes with `data_end`; see `read`.
        Some(unsafe { sum_of_20(bytes.cast()) })
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let bytes = self.at::<N>(offset)?;
        // SAFETY: `at` has compared the end of the `N` bytes with `data_end`; the kernel keeps them valid
        // until the program changes the packet's size, after which no `Packet` made before is used. The verifier
        // proves the same at load.
        Some(unsafe { load(bytes.cast_const()) })
    }
}

impl FrameMut for Packet {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        let place = self.at(offset)?;
        // SAFETY: as for `read`; XDP packet memory is writable.
        unsafe { store(place, bytes) };
        Some(())
    }
}

/// A packet of which it is known that its first `N` bytes are readable. Places in it are constants.
pub(crate) struct Window<const N: usize> {
    start: usize,
    end: usize,
    len: u32,
    tag_beside: u32,
}

impl<const N: usize> Window<N> {
    /// The address of `M` readable bytes at `offset`.
    #[inline(always)]
    fn at<const M: usize>(&self, offset: u32) -> Option<*mut [u8; M]> {
        let address = self.start.wrapping_add(offset as usize);
        if offset as usize + M > N && address.wrapping_add(M) > self.end {
            return None;
        }
        Some(address as *mut [u8; M])
    }
}

impl<const N: usize> Frame for Window<N> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn tag_beside(&self) -> u32 {
        self.tag_beside
    }

    #[inline(always)]
    fn sum_of_20(&self, offset: u32) -> Option<u16> {
        let bytes = self.at::<20>(offset)?;
        // SAFETY: as for `read`.
        Some(unsafe { sum_of_20(bytes.cast()) })
    }

    #[inline(always)]
    fn read<const M: usize>(&self, offset: u32) -> Option<[u8; M]> {
        let bytes = self.at::<M>(offset)?;
        // SAFETY: `Packet::window` has compared the end of the first `N` bytes with `data_end`, and `at` that of others. No
        // window is used after the packet's size changes.
        Some(unsafe { load(bytes.cast_const()) })
    }
}

impl<const N: usize> FrameMut for Window<N> {
    #[inline(always)]
    fn write<const M: usize>(&mut self, offset: u32, bytes: [u8; M]) -> Option<()> {
        let place = self.at(offset)?;
        // SAFETY: as for `read`; XDP packet memory is writable.
        unsafe { store(place, bytes) };
        Some(())
    }
}

/// The ones' complement sum of 20 bytes; see [`Frame::sum_of_20`].
///
/// # Safety
///
/// The bytes must be readable packet memory.
#[inline(always)]
unsafe fn sum_of_20(bytes: *const u8) -> u16 {
    let mut sum = 0u64;
    for word in 0..5 {
        // SAFETY: the caller answers for the bytes.
        sum += u64::from(unsafe { wide::load_u32(bytes.add(word * 4)) });
    }
    folded(sum)
}

/// Loads `N` bytes: two, four and eight by one instruction, and others by as many.
///
/// # Safety
///
/// The bytes must be readable packet memory.
#[inline(always)]
unsafe fn load<const N: usize>(bytes: *const [u8; N]) -> [u8; N] {
    let from: *const u8 = bytes.cast();
    let mut all = [0; N];
    // SAFETY: the caller answers for the `N` bytes.
    unsafe {
        if let (2, Some(two)) = (N, all.first_chunk_mut()) {
            *two = wide::load_u16(from).to_ne_bytes();
        } else if let (4, Some(four)) = (N, all.first_chunk_mut()) {
            *four = wide::load_u32(from).to_ne_bytes();
        } else if let (8, Some(eight)) = (N, all.first_chunk_mut()) {
            *eight = wide::load_u64(from).to_ne_bytes();
        } else {
            all = *bytes;
        }
    }
    all
}

/// Stores `N` bytes as [`load`] loads them.
///
/// # Safety
///
/// The bytes must be writable packet memory.
#[inline(always)]
unsafe fn store<const N: usize>(place: *mut [u8; N], bytes: [u8; N]) {
    let to: *mut u8 = place.cast();
    // SAFETY: the caller answers for the `N` bytes.
    unsafe {
        if let (2, Some(two)) = (N, bytes.first_chunk()) {
            wide::store_u16(to, u16::from_ne_bytes(*two));
        } else if let (4, Some(four)) = (N, bytes.first_chunk()) {
            wide::store_u32(to, u32::from_ne_bytes(*four));
        } else if let (8, Some(eight)) = (N, bytes.first_chunk()) {
            wide::store_u64(to, u64::from_ne_bytes(*eight));
        } else {
            *place = bytes;
        }
    }
}

/// Single loads and stores, each one instruction.
mod wide {
    macro_rules! wide {
        ($load:ident, $store:ident, $type:ty, $name:literal) => {
            /// # Safety
            ///
            /// The bytes must be readable packet memory.
            #[inline(always)]
            pub(super) unsafe fn $load(from: *const u8) -> $type {
                #[cfg(target_arch = "bpf")]
                {
                    let value: u64;
                    // SAFETY: the caller answers for the bytes; the instruction only loads them.
                    unsafe {
                        core::arch::asm!(
                            concat!("{0} = *(", $name, " *)({1} + 0)"),
                            out(reg) value, in(reg) from,
                            options(pure, readonly, nostack, preserves_flags)
                        );
                    }
                    #[expect(clippy::cast_possible_truncation, reason = "the load clears what is above")]
                    {
                        value as $type
                    }
                }
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the caller answers for the bytes, and no alignment is asked for.
                unsafe {
                    from.cast::<$type>().read_unaligned()
                }
            }

            /// # Safety
            ///
            /// The bytes must be writable packet memory.
            #[inline(always)]
            pub(super) unsafe fn $store(to: *mut u8, value: $type) {
                #[cfg(target_arch = "bpf")]
                // SAFETY: the caller answers for the bytes; the instruction only stores to them.
                unsafe {
                    core::arch::asm!(
                        concat!("*(", $name, " *)({0} + 0) = {1}"),
                        in(reg) to, in(reg) u64::from(value),
                        options(nostack, preserves_flags)
                    );
                }
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the caller answers for the bytes, and no alignment is asked for.
                unsafe {
                    to.cast::<$type>().write_unaligned(value);
                }
            }
        };
    }

    wide!(load_u16, store_u16, u16, "u16");
    wide!(load_u32, store_u32, u32, "u32");
    wide!(load_u64, store_u64, u64, "u64");
}
