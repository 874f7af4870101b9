//! TC ingress on a LAN interface: marks steered packets for the kernel's routing.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::info;
use breakout_common::egress::Egress;
use breakout_common::frame::TAG_PRESENT;
use breakout_common::verdict::Decision;

use crate::count::count;
use crate::decide::decide_frame;
use crate::globals;
use crate::reader::Packet;

/// Bytes to make directly readable: all headers but unusually long chains of extension headers.
const PULL: u32 = 128;

/// Entry point. Always answers `TC_ACT_UNSPEC`, so that programs and filters behind this one run as before.
#[classifier]
pub(crate) fn breakout_tc(ctx: TcContext) -> i32 {
    let decision = match decide_frame(&packet(&ctx)) {
        Ok(decided) => {
            if let Some(words) = decided.egress {
                let egress = Egress::from_words(words);
                // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
                let mark = unsafe { (*ctx.skb.skb).mark };
                ctx.skb.set_mark((mark & !egress.mark_mask) | egress.mark);
            }
            decided.decision
        }
        Err(stop) => Decision::pass(stop.reason()),
    };
    if globals::tc_counts() != 0 {
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        let segments = unsafe { (*ctx.skb.skb).gso_segs };
        count(&decision, u64::from(segments.max(1)), u64::from(ctx.len()));
    }
    if globals::report() != 0 {
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        unsafe { (*ctx.skb.skb).cb[0] = decision.to_word() };
    }
    if globals::trace() != 0 {
        info!(&ctx, "tc: {}", decision.reason().name());
    }
    TC_ACT_UNSPEC
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
