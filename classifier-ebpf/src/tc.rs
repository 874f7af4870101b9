//! TC ingress on a LAN interface: sends steered packets to egresses in redirect mode, and marks others for the kernel's routing.

pub(crate) mod message;
mod mss;
mod port;
pub(crate) mod redirect;
pub(crate) mod rewrite;
pub(crate) mod too_big;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::info;
use breakout_common::egress::{marked, mtu, nat, redirects};
use breakout_common::frame::TAG_PRESENT;
use breakout_common::packet::{PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};
use breakout_common::verdict::{Decision, Reason};

use crate::bare::dress;
use crate::count::count;
use crate::decide::{Walked, decide_frame, decide_plain};
use crate::decided;
use crate::globals;
use crate::maps::{egress, paths};
use crate::nat::{FULL, UNKNOWN};
use crate::reader::Packet;

/// The MTU that clients' segments fit into, so that only narrower egresses need a look at them.
const ETHERNET_MTU: u32 = 1500;
/// Bytes to make directly readable: all headers but unusually long chains of extension headers.
const PULL: u32 = 128;

/// Entry point. Answers `TC_ACT_UNSPEC` to all that is not redirected, so that programs and filters behind this one run as before; on an
/// interface without a link header they see one.
#[classifier]
#[inline(always)]
pub(crate) fn breakout_tc(ctx: TcContext) -> i32 {
    // A tag that stands beside the packet is one that XDP has not seen.
    if globals::tc_counts() == 0 && tag(ctx.skb.skb) == 0 && decided::noted(&ctx) {
        return TC_ACT_UNSPEC;
    }
    // What is not sent goes on with a link header, as from any Ethernet.
    if globals::bare() != 0 && !dress(ctx.skb.skb) {
        return TC_ACT_UNSPEC;
    }
    pull(&ctx);
    // Functions of their own, whose stacks are not needed at once. What they take is read again, which costs less than to
    // keep it.
    let mut decision = fast_v4(ctx.data(), ctx.data_end(), ctx.len(), tag(ctx.skb.skb));
    if decision == UNDECIDED {
        decision = fast_v6(ctx.data(), ctx.data_end(), ctx.len(), tag(ctx.skb.skb));
    }
    if decision == UNDECIDED {
        decision = slow(ctx.data(), ctx.data_end(), ctx.len(), tag(ctx.skb.skb));
    }
    let mut decision = Decision::from_known_word(decision);
    let action = finish(&ctx, &mut decision);
    if globals::trace() != 0 {
        info!(&ctx, "tc: {}", decision.reason().name());
    }
    action
}

/// The packet is not decided yet.
const UNDECIDED: u32 = u32::MAX;

/// Decides plain packets over IPv4: nearly all there are.
#[inline(never)]
fn fast_v4(start: usize, end: usize, len: u32, tag: u32) -> u32 {
    let packet = Packet::new(start, end, len).with_tag(tag);
    let headers = packet
        .window::<PLAIN_V4_LEN>()
        .and_then(|window| plain_v4(&window));
    headers.map_or(UNDECIDED, |headers| {
        decide_plain(&packet, &headers).0.to_word()
    })
}

/// The same for IPv6.
#[inline(never)]
fn fast_v6(start: usize, end: usize, len: u32, tag: u32) -> u32 {
    let packet = Packet::new(start, end, len).with_tag(tag);
    let headers = packet
        .window::<PLAIN_V6_LEN>()
        .and_then(|window| plain_v6(&window));
    headers.map_or(UNDECIDED, |headers| {
        decide_plain(&packet, &headers).0.to_word()
    })
}

/// Decides all else.
#[inline(never)]
fn slow(start: usize, end: usize, len: u32, tag: u32) -> u32 {
    let packet = Packet::new(start, end, len).with_tag(tag);
    let mut walked = Walked::NONE;
    decide_frame(&packet, &mut walked).0.to_word()
}

/// Sends or marks what is steered, and counts. Returns the action.
#[inline(always)]
fn finish(ctx: &TcContext, decision: &mut Decision) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (len, segments) = unsafe { ((*skb).len, (*skb).gso_segs) };
    let mut action = TC_ACT_UNSPEC;
    // Where XDP runs before this it has counted all but what it leaves to be sent.
    let mut counts = globals::tc_counts() != 0;
    if let (Some(index), Some(paths)) = (decision.egress(), paths())
        && let Some(egress) = egress(paths, index)
    {
        if redirects(egress) {
            counts = true;
            let translates = globals::nat_mask() != 0 && nat(egress) != 0;
            let index = u32::from(index);
            let port = if translates {
                port::breakout_port(skb, index)
            } else {
                port::NO_PORT
            };
            match port {
                FULL => *decision = decision.but_pass(Reason::NatFull),
                UNKNOWN => *decision = decision.but_pass(Reason::NatUnknown),
                port => {
                    let outcome = redirect::breakout_redirect(skb, index, port);
                    action = redirect::action(outcome);
                    *decision = because_of(*decision, redirect::reason(outcome));
                }
            }
            if decision.reason_number() == Reason::TooBig as u32 {
                action = too_big::breakout_answer(skb, index);
            }
        } else {
            if mtu(egress).min(u32::from(globals::lan_mtu())) < ETHERNET_MTU {
                redirect::breakout_hold_size(skb, u32::from(index));
            }
            // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
            let mark = unsafe { (*skb).mark };
            ctx.skb.set_mark(marked(egress, mark));
        }
    }
    if counts {
        count(decision, u64::from(segments.max(1)), u64::from(len));
    }
    if globals::report() != 0 {
        // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
        unsafe { (*skb).cb[0] = decision.to_word() };
    }
    action
}

/// The decision once it is known what became of the packet, by the number of the reason.
#[inline(always)]
const fn because_of(decision: Decision, reason: u32) -> Decision {
    const NOT_FOR_GATEWAY: u32 = Reason::NotForGateway as u32;
    const NO_DEVICE: u32 = Reason::NoDevice as u32;
    const TAGGED: u32 = Reason::Tagged as u32;
    match reason {
        NOT_FOR_GATEWAY => Decision::pass(Reason::NotForGateway),
        NO_DEVICE => decision.but_pass(Reason::NoDevice),
        TAGGED => decision.but_pass(Reason::Tagged),
        reason => decision.because_of(reason),
    }
}

/// Moves the headers into the directly readable part if they may be in fragments of the buffer.
#[inline(always)]
pub(crate) fn pull(ctx: &TcContext) {
    let wanted = ctx.len().min(PULL);
    if ctx.data_end().wrapping_sub(ctx.data()) < wanted as usize {
        // If this fails the walk sees what there is, and finds it truncated.
        let _ = ctx.pull_data(wanted);
    }
}

/// The VLAN tag that stands beside the packet; see [`Frame::tag_beside`](breakout_common::frame::Frame::tag_beside).
#[inline(always)]
pub(crate) fn tag(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (present, tci) = unsafe { ((*skb).vlan_present, (*skb).vlan_tci) };
    if present == 0 { 0 } else { TAG_PRESENT | tci }
}
