//! Packets of interfaces that have no link header (PPP, tunnels): they begin with the IP header.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_skb_change_head, bpf_skb_load_bytes, bpf_skb_store_bytes};
use breakout_common::ethernet::ETHERNET_LEN;
use breakout_common::frame::Frame;

/// Offset of the ethertype in an Ethernet header.
const ETHERTYPE: u32 = 12;

/// Puts an Ethernet header before a packet that has none, with zeros for addresses. Returns whether it has one then. Nothing of the packet
/// that was read before may be used after this.
#[inline(always)]
pub(crate) fn dress(skb: *mut __sk_buff) -> bool {
    let ethertype = protocol(skb);
    // SAFETY: the helpers take the live socket buffer, and fail where they can do nothing; two bytes are read.
    unsafe {
        bpf_skb_change_head(skb.cast(), ETHERNET_LEN, 0) == 0
            && bpf_skb_store_bytes(skb.cast(), ETHERTYPE, (&raw const ethertype).cast(), 2, 0) == 0
    }
}

/// Returns the ethertype that the kernel has found, in network byte order.
#[inline(always)]
fn protocol(skb: *mut __sk_buff) -> u16 {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
    let protocol = unsafe { (*skb).protocol };
    (protocol & 0xffff) as u16
}

/// The first bytes of such a packet, behind an Ethernet header with zeros for addresses. The packet itself stays as it is.
pub(crate) struct Dressed<const N: usize> {
    bytes: [u8; N],
    len: u32,
}

impl<const N: usize> Dressed<N> {
    /// Copies them; `None` if there are not so many.
    #[inline(always)]
    pub(crate) fn copy(skb: *mut __sk_buff) -> Option<Self> {
        const { assert!(N > ETHERNET_LEN as usize) };
        let mut bytes = [0; N];
        let [first, second] = protocol(skb).to_ne_bytes();
        bytes[ETHERTYPE as usize] = first;
        bytes[ETHERTYPE as usize + 1] = second;
        #[expect(clippy::cast_possible_truncation, reason = "headers are short")]
        let wanted = const { N as u32 - ETHERNET_LEN };
        // SAFETY: the helper takes the live socket buffer, and writes the `wanted` bytes that are behind the header.
        let copied = unsafe {
            let place = bytes.as_mut_ptr().add(ETHERNET_LEN as usize);
            bpf_skb_load_bytes(skb.cast(), 0, place.cast(), wanted)
        };
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        let len = unsafe { (*skb).len };
        (copied == 0).then_some(Dressed {
            bytes,
            len: len.wrapping_add(ETHERNET_LEN),
        })
    }
}

impl<const N: usize> Frame for Dressed<N> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn read<const M: usize>(&self, offset: u32) -> Option<[u8; M]> {
        self.bytes.get(offset as usize..)?.first_chunk().copied()
    }
}
