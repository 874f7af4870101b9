//! TC ingress on a LAN interface: marks steered packets for the kernel's routing.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::info;
use breakout_common::egress::marked;
use breakout_common::frame::TAG_PRESENT;
use breakout_common::packet::{PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};

use crate::count::count;
use crate::decide::{Decided, decide_frame, decide_plain};
use crate::globals;
use crate::reader::Packet;

/// Bytes to make directly readable: all headers but unusually long chains of extension headers.
const PULL: u32 = 128;

/// Entry point. Always answers `TC_ACT_UNSPEC`, so that programs and filters behind this one run as before.
#[classifier]
pub(crate) fn breakout_tc(ctx: TcContext) -> i32 {
    let packet = packet(&ctx);
    let decided = match fast(&packet) {
        Some(decided) => decided,
        None => decide_frame(&packet),
    };
    finish(&ctx, &decided);
    if globals::trace() != 0 {
        info!(&ctx, "tc: {}", decided.decision.reason().name());
    }
    TC_ACT_UNSPEC
}

/// Decides what nearly all packets are.
#[inline(always)]
fn fast(packet: &Packet) -> Option<Decided> {
    if let Some(headers) = plain_v4(&packet.window::<PLAIN_V4_LEN>()?) {
        return decide_plain(packet, &headers);
    }
    let headers = plain_v6(&packet.window::<PLAIN_V6_LEN>()?)?;
    decide_plain(packet, &headers)
}

/// Marks what is steered, and counts.
#[inline(always)]
fn finish(ctx: &TcContext, decided: &Decided) {
    if let Some(egress) = decided.egress {
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        let mark = unsafe { (*ctx.skb.skb).mark };
        ctx.skb.set_mark(marked(egress, mark));
    }
    if globals::tc_counts() != 0 {
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        let segments = unsafe { (*ctx.skb.skb).gso_segs };
        count(
            &decided.decision,
            u64::from(segments.max(1)),
            u64::from(ctx.len()),
        );
    }
    if globals::report() != 0 {
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        unsafe { (*ctx.skb.skb).cb[0] = decided.decision.to_word() };
    }
}

/// The packet, with its headers moved into the directly readable part if they may be in fragments of the buffer.
#[inline(always)]
fn packet(ctx: &TcContext) -> Packet {
    let wanted = ctx.len().min(PULL);
    if ctx.data_end().wrapping_sub(ctx.data()) < wanted as usize {
        // If this fails the walk sees what there is, and finds it truncated.
        let _ = ctx.pull_data(wanted);
    }
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (present, tci) = unsafe { ((*ctx.skb.skb).vlan_present, (*ctx.skb.skb).vlan_tci) };
    let tag = if present == 0 { 0 } else { TAG_PRESENT | tci };
    Packet::new(ctx.data(), ctx.data_end(), ctx.len()).with_tag(tag)
}
