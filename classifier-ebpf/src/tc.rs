//! TC ingress on a LAN interface: marks steered packets for the kernel's routing.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::info;
use breakout_common::classify::decide;
use breakout_common::egress::NextHop;
use breakout_common::packet::{Headers, walk};
use breakout_common::verdict::{Decision, Reason, Verdict};

use crate::count::count;
use crate::globals;
use crate::maps::{LiveTable, egress};
use crate::reader::Packet;

/// Bytes to make directly readable when the headers are not.
const PULL: u32 = 256;

/// Entry point. Always answers `TC_ACT_UNSPEC`, so that programs and filters behind this one run as before.
#[classifier]
pub(crate) fn breakout_tc(ctx: TcContext) -> i32 {
    let decision = match headers(&ctx) {
        Ok(headers) => steer(&ctx, &headers),
        Err(reason) => Decision::pass(reason),
    };
    if globals::tc_counts() != 0 {
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        let segments = unsafe { (*ctx.skb.skb).gso_segs };
        count(&decision, u64::from(segments.max(1)), u64::from(ctx.len()));
    }
    if globals::trace() != 0 {
        info!(&ctx, "tc: reason {}", decision.reason as u8);
    }
    TC_ACT_UNSPEC
}

/// Walks the headers, after moving them into the directly readable part if they are in fragments.
#[inline(always)]
fn headers(ctx: &TcContext) -> Result<Headers, Reason> {
    match walk(&packet(ctx)) {
        Err(Reason::Truncated) if ctx.data_end() - ctx.data() < ctx.len().min(PULL) as usize => {
            if ctx.pull_data(ctx.len().min(PULL)).is_err() {
                return Err(Reason::Truncated);
            }
            walk(&packet(ctx))
        }
        outcome => outcome,
    }
}

#[inline(always)]
fn packet(ctx: &TcContext) -> Packet {
    Packet::new(ctx.data(), ctx.data_end(), ctx.len())
}

#[inline(always)]
fn steer(ctx: &TcContext, headers: &Headers) -> Decision {
    let Some(table) = LiveTable::current() else {
        return Decision::pass(Reason::NoRuleset);
    };
    let decision = decide(&table, headers);
    let Verdict::Steer(index) = decision.verdict else {
        return decision;
    };
    let down = Decision {
        verdict: Verdict::Pass,
        reason: Reason::EgressDown,
        set: decision.set,
    };
    let Some(egress) = egress(index) else {
        return down;
    };
    if matches!(egress.next_hop(headers.destination), NextHop::None) {
        return down;
    }
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
    let mark = unsafe { (*ctx.skb.skb).mark };
    ctx.skb.set_mark((mark & !egress.mark_mask) | egress.mark);
    decision
}
