//! Holds the segment size that a SYN announces to what fits through its egress.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes};
use breakout_common::mss::{Found, in_checksum, option};

use crate::globals;

/// Offsets of the checksum and of the data offset in a TCP header.
const CHECKSUM: u32 = 16;
const DATA_OFFSET: u32 = 12;
const HEADER: u32 = 20;

/// The number of options that are looked at: more than any system sends.
const MOST: u32 = 16;

/// Looks for the option in the TCP header at `transport`, and lowers it if it is above `largest`. What cannot be read or changed
/// stays as it is.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_clamp(skb: *mut __sk_buff, transport: u32, largest: u32) -> u32 {
    let Some([offset]) = load::<1>(skb, transport + DATA_OFFSET) else {
        return 0;
    };
    let end = u32::from(offset >> 4) * 4;
    let mut place = HEADER;
    for _ in 0..MOST {
        if place + 4 > end {
            return 0;
        }
        let Some(bytes) = load::<2>(skb, transport + place) else {
            return 0;
        };
        match option(bytes) {
            Found::Size => return lower(skb, transport, place + 2, largest),
            // What is masked off is beyond any header; the verifier would look at each place there is.
            Found::Next(step) => place = ((place + step) ^ globals::zero()) & 63,
            Found::End => return 0,
        }
    }
    0
}

/// Lowers the size that stands in this place of the TCP header.
#[inline(always)]
fn lower(skb: *mut __sk_buff, transport: u32, place: u32, largest: u32) -> u32 {
    let Some(size) = load::<2>(skb, transport + place) else {
        return 0;
    };
    if u32::from(u16::from_be_bytes(size)) <= largest {
        return 0;
    }
    let lowered = ((largest & 0xffff) as u16).to_be_bytes();
    let (from, to) = (in_checksum(size, place), in_checksum(lowered, place));
    let word = |bytes| u64::from(u16::from_ne_bytes(bytes));
    // SAFETY: the helpers take the live socket buffer, check their offsets, and read two bytes of the array.
    unsafe {
        bpf_l4_csum_replace(skb.cast(), transport + CHECKSUM, word(from), word(to), 2);
        bpf_skb_store_bytes(skb.cast(), transport + place, lowered.as_ptr().cast(), 2, 0);
    }
    1
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    #[expect(clippy::cast_possible_truncation, reason = "one byte, or two")]
    let len = const { N as u32 };
    let mut bytes = [0; N];
    // SAFETY: the helper writes N bytes, or fails.
    let loaded = unsafe { bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), len) };
    (loaded == 0).then_some(bytes)
}
