//! XDP on a LAN interface: forwards steered packets to egresses in redirect mode.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use breakout_common::egress::Egress;
use breakout_common::forward;
use breakout_common::frame::Frame;
use breakout_common::packet::Headers;
use breakout_common::table::{Destination, OWN, may_be_own};
use breakout_common::verdict::{Decision, Reason};

use crate::count::count;
use crate::decide::{Decided, decide_frame};
use crate::globals;
use crate::maps::DEVICES;
use crate::reader::Packet;
use crate::ruleset::{LiveTable, V6, breakout_ask};

/// Entry point. Everything that is not redirected goes on to the kernel, where `breakout_tc` marks what is steered.
#[xdp]
pub(crate) fn breakout_xdp(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    let end = ctx.data_end();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both pointers are into one packet"
    )]
    let len = end.wrapping_sub(start) as u32;
    let mut packet = Packet::new(start, end, len);
    let (decision, action) = match decide_frame(&packet) {
        Ok(decided) => act(&mut packet, decided),
        Err(stop) => (Decision::pass(stop.reason()), XDP_PASS),
    };
    count(&decision, 1, u64::from(len));
    if globals::trace() != 0 {
        info!(&ctx, "xdp: {}", decision.reason().name());
    }
    action
}

/// Carries a decision out. What is not redirected is returned with the reason why.
#[inline(always)]
fn act(packet: &mut Packet, decided: Decided) -> (Decision, u32) {
    let decision = decided.decision;
    let (Some(index), Some(words)) = (decision.egress(), decided.egress) else {
        return (decision, XDP_PASS);
    };
    let egress = Egress::from_words(words);
    if packet.read::<6>(0) != Some(globals::lan_mac()) {
        return (Decision::pass(Reason::NotForGateway), XDP_PASS);
    }
    if !egress.redirect {
        return (decision, XDP_PASS);
    }
    let redirected = match &decided.headers {
        Some(headers) => redirect(packet, headers, &egress, index),
        None => Err(Reason::KernelFragment),
    };
    match redirected {
        Ok(action) => (decision, action),
        Err(reason) => (decision.because(reason), XDP_PASS),
    }
}

/// The target is looked up before the packet is changed, so that a missing device leaves it whole.
#[inline(always)]
fn redirect(
    packet: &mut Packet,
    headers: &Headers,
    egress: &Egress,
    index: u8,
) -> Result<u32, Reason> {
    let destination_mac = forward::plan(packet, headers, egress, is_own)?;
    DEVICES
        .redirect(u32::from(index), u64::from(XDP_PASS))
        .map_err(|_| Reason::KernelDevice)?;
    match forward::rewrite(packet, headers, destination_mac, egress.source_mac) {
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
