//! XDP on a LAN interface: forwards steered packets to egresses in redirect mode.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use breakout_common::egress::{EgressWords, nat as public_address, redirects};
use breakout_common::forward;
use breakout_common::frame::FrameMut;
use breakout_common::nat::translate;
use breakout_common::packet::{Headers, PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};
use breakout_common::verdict::{Decision, Reason};

use crate::count::count;
use crate::decide::{Decided, Walked, decide_frame, decide_plain, is_own};
use crate::decided;
use crate::globals;
use crate::maps::DEVICES;
use crate::nat;
use crate::reader::Packet;

/// Entry point. Everything that is not redirected goes on to the kernel, where `breakout_tc` sends or marks what is steered.
#[xdp]
#[inline(always)]
pub(crate) fn breakout_xdp(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    // Functions of their own, whose stacks are not needed at once.
    let mut done = fast_v4(start, end);
    if done == UNDONE {
        done = fast_v6(start, end);
    }
    if done == UNDONE {
        done = slow(start, end);
    }
    let decision = Decision::from_known_word((done >> 32) as u32);
    if globals::trace() != 0 {
        trace(&ctx, decision.to_word());
    }
    if decision.egress().is_none() {
        decided::note(&ctx);
    }
    (done & 0xffff_ffff) as u32
}

/// Logs a decision. A function of its own, whose stack is not needed beside that of others.
#[inline(never)]
fn trace(ctx: &XdpContext, decision: u32) {
    let decision = Decision::from_known_word(decision);
    info!(ctx, "xdp: {}", decision.reason().name());
}

/// The packet is not handled yet.
const UNDONE: u64 = u64::MAX;

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "both pointers are into one packet"
)]
fn packet(start: usize, end: usize) -> Packet {
    Packet::new(start, end, end.wrapping_sub(start) as u32)
}

/// Handles plain packets over IPv4: nearly all there are. Returns the action, and above it the decision.
#[inline(never)]
fn fast_v4(start: usize, end: usize) -> u64 {
    let Some(mut window) = packet(start, end).window::<PLAIN_V4_LEN>() else {
        return UNDONE;
    };
    let headers = plain_v4(&window);
    headers.map_or(UNDONE, |headers| fast(&mut window, &headers))
}

/// The same for IPv6.
#[inline(never)]
fn fast_v6(start: usize, end: usize) -> u64 {
    let Some(mut window) = packet(start, end).window::<PLAIN_V6_LEN>() else {
        return UNDONE;
    };
    let headers = plain_v6(&window);
    headers.map_or(UNDONE, |headers| fast(&mut window, &headers))
}

#[inline(always)]
fn fast<F: FrameMut>(frame: &mut F, headers: &Headers) -> u64 {
    let decided = decide_plain(frame, headers);
    finish(frame, decided, |frame, egress, index| {
        redirect(frame, headers, egress, index)
    })
}

/// Handles all else. Nothing of that is redirected.
#[inline(never)]
fn slow(start: usize, end: usize) -> u64 {
    let mut packet = packet(start, end);
    let mut walked = Walked::NONE;
    let decided = decide_frame(&packet, &mut walked);
    finish(&mut packet, decided, |_, _, _| None)
}

/// Carries a decision out and counts it, unless it is left to TC. Returns the action, and above it the decision.
#[inline(always)]
fn finish<F: FrameMut>(
    frame: &mut F,
    (mut decision, egress): Decided,
    redirect: impl FnOnce(&mut F, &EgressWords, u8) -> Option<u32>,
) -> u64 {
    let len = frame.len();
    let mut action = XDP_PASS;
    if let (Some(index), Some(egress)) = (decision.egress(), egress) {
        if !globals::is_to_lan(frame) {
            decision = Decision::pass(Reason::NotForGateway);
        } else if redirects(egress) {
            match redirect(frame, egress, index) {
                Some(redirected) => action = redirected,
                None => return done(decision, XDP_PASS),
            }
        }
    }
    count(&decision, 1, u64::from(len));
    done(decision, action)
}

#[inline(always)]
fn done(decision: Decision, action: u32) -> u64 {
    u64::from(decision.to_word()) << 32 | u64::from(action)
}

/// The target is looked up before the packet is changed, so that a missing device leaves it whole.
#[inline(always)]
fn redirect<F: FrameMut>(
    frame: &mut F,
    headers: &Headers,
    egress: &EgressWords,
    index: u8,
) -> Option<u32> {
    let link_header = forward::plan(frame, headers, egress, is_own)?;
    let port = nat::port(frame, headers, egress, index)?;
    let target = DEVICES.redirect(u32::from(index), u64::from(XDP_PASS));
    target.ok()?;
    let mut rewritten = forward::rewrite(frame, headers, link_header);
    if port != 0 && rewritten.is_some() {
        let port = ((port & 0xffff) as u16).to_be();
        rewritten = translate(frame, headers, false, public_address(egress), port);
    }
    match rewritten {
        Some(()) => Some(XDP_REDIRECT),
        None => Some(XDP_DROP),
    }
}
