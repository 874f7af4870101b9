//! A note from XDP to TC on a packet that takes the ordinary path: it has been decided and counted.
//!
//! It stands in the packet's metadata. TC decides what comes without: where a driver has no room for it, or XDP is gone.

use aya_ebpf::helpers::generated::bpf_xdp_adjust_meta;
use aya_ebpf::programs::{TcContext, XdpContext};

/// The metadata of such a packet.
const DECIDED: u32 = u32::from_be_bytes(*b"BoPa");
/// Its size in bytes: the kernel takes multiples of four.
const LEN: i32 = 4;

/// Notes it. Nothing of the packet that was read before may be used after this.
#[inline(always)]
pub(crate) fn note(ctx: &XdpContext) {
    // SAFETY: the context is the live packet's.
    let made = unsafe { bpf_xdp_adjust_meta(ctx.ctx, -LEN) };
    let (start, end) = (ctx.metadata(), ctx.data());
    if made == 0 && start + 4 <= end {
        // SAFETY: those four bytes are the metadata's, as has been checked.
        unsafe { core::ptr::write_volatile(start as *mut u32, DECIDED) };
    }
}

/// Tells whether it was noted.
#[inline(always)]
pub(crate) fn noted(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end) = unsafe { ((*skb).data_meta as usize, (*skb).data as usize) };
    // SAFETY: those four bytes are the metadata's, as has been checked.
    start + 4 <= end && unsafe { core::ptr::read_volatile(start as *const u32) } == DECIDED
}
