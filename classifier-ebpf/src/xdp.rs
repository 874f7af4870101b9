//! XDP on a LAN interface: forwards steered packets to egresses in redirect mode.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use breakout_common::egress::{EgressWords, redirects};
use breakout_common::forward;
use breakout_common::frame::FrameMut;
use breakout_common::packet::{Headers, PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};
use breakout_common::table::{Destination, OWN, may_be_own};
use breakout_common::verdict::{Decision, Reason};

use crate::count::count;
use crate::decide::{Decided, decide_frame, decide_plain};
use crate::globals;
use crate::maps::DEVICES;
use crate::reader::Packet;
use crate::ruleset::{LiveTable, V6, breakout_ask};

/// Entry point. Everything that is not redirected goes on to the kernel, where `breakout_tc` marks what is steered.
#[xdp]
pub(crate) fn breakout_xdp(ctx: XdpContext) -> u32 {
    let mut packet = packet(&ctx);
    let (decision, action) = match fast(&packet) {
        Some(done) => done,
        None => {
            let decided = decide_frame(&packet);
            finish(&mut packet, decided)
        }
    };
    if globals::trace() != 0 {
        info!(&ctx, "xdp: {}", decision.reason().name());
    }
    action
}

#[inline(always)]
fn packet(ctx: &XdpContext) -> Packet {
    let (start, end) = (ctx.data(), ctx.data_end());
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both pointers are into one packet"
    )]
    let len = end.wrapping_sub(start) as u32;
    Packet::new(start, end, len)
}

/// Handles what nearly all packets are.
#[inline(always)]
fn fast(packet: &Packet) -> Option<(Decision, u32)> {
    let mut window = packet.window::<PLAIN_V4_LEN>()?;
    if let Some(headers) = plain_v4(&window) {
        let decided = decide_plain(&window, &headers)?;
        return Some(finish(&mut window, decided));
    }
    let mut window = packet.window::<PLAIN_V6_LEN>()?;
    let headers = plain_v6(&window)?;
    let decided = decide_plain(&window, &headers)?;
    Some(finish(&mut window, decided))
}

/// Carries a decision out and counts it.
#[inline(always)]
fn finish<F: FrameMut>(frame: &mut F, decided: Decided) -> (Decision, u32) {
    let len = frame.len();
    let (decision, action) = act(frame, decided);
    count(&decision, 1, u64::from(len));
    (decision, action)
}

/// Carries a decision out. What is not redirected is returned with the reason why.
#[inline(always)]
fn act<F: FrameMut>(frame: &mut F, decided: Decided) -> (Decision, u32) {
    let decision = decided.decision;
    let (Some(index), Some(egress)) = (decision.egress(), decided.egress) else {
        return (decision, XDP_PASS);
    };
    if !globals::is_to_lan(frame) {
        return (Decision::pass(Reason::NotForGateway), XDP_PASS);
    }
    if !redirects(egress) {
        return (decision, XDP_PASS);
    }
    let redirected = match &decided.headers {
        Some(headers) => redirect(frame, headers, egress, index),
        None => Err(Reason::KernelFragment),
    };
    match redirected {
        Ok(action) => (decision, action),
        Err(reason) => (decision.because(reason), XDP_PASS),
    }
}

/// The target is looked up before the packet is changed, so that a missing device leaves it whole.
#[inline(always)]
fn redirect<F: FrameMut>(
    frame: &mut F,
    headers: &Headers,
    egress: &EgressWords,
    index: u8,
) -> Result<u32, Reason> {
    let link_header = forward::plan(frame, headers, egress, is_own)?;
    DEVICES
        .redirect(u32::from(index), u64::from(XDP_PASS))
        .map_err(|_| Reason::KernelDevice)?;
    match forward::rewrite(frame, headers, link_header) {
        Some(()) => Ok(XDP_REDIRECT),
        None => Ok(XDP_DROP),
    }
}

/// Whether an address is one of the gateway's own.
#[inline(always)]
fn is_own(address: Destination) -> bool {
    let (high, low) = address.to_halves();
    match LiveTable::current() {
        Some(table) if may_be_own(&table, low) => {
            let family = if address.is_v6() { V6 } else { 0 };
            breakout_ask(high, low, family) == OWN
        }
        Some(_) => false,
        None => true,
    }
}
