//! TC egress on a LAN interface: notes which flows their peers answer. It changes no packet, and stops none.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use breakout_common::classify::source;
use breakout_common::flows::answered_flow;
use breakout_common::frame::Frame;
use breakout_common::packet::{Headers, PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};
use breakout_common::table::{Destination, is_covered};

use crate::bare::Dressed;
use crate::flows::breakout_note_answer;
use crate::globals;
use crate::reader::Packet;
use crate::ruleset::LiveTable;

/// Bytes to make directly readable.
const WANTED: u32 = 62;
const _: () = assert!(WANTED as usize == PLAIN_V6_LEN);

/// Entry point. Answers `TC_ACT_UNSPEC` to all.
#[classifier]
pub(crate) fn breakout_note(ctx: TcContext) -> i32 {
    if globals::pins() == 0 {
        return TC_ACT_UNSPEC;
    }
    if globals::bare() != 0 {
        note_bare(ctx.skb.skb);
    } else {
        if ctx.data_end().wrapping_sub(ctx.data()) < PLAIN_V6_LEN {
            // If there is not so much, what follows sees what there is.
            let _ = ctx.pull_data(ctx.len().min(WANTED));
        }
        let packet = Packet::new(ctx.data(), ctx.data_end(), ctx.len());
        if let Some(window) = packet.window::<PLAIN_V4_LEN>()
            && let Some(headers) = plain_v4(&window)
        {
            note_answer(&window, &headers);
        } else if let Some(window) = packet.window::<PLAIN_V6_LEN>()
            && let Some(headers) = plain_v6(&window)
        {
            note_answer(&window, &headers);
        }
    }
    TC_ACT_UNSPEC
}

/// Looks at a packet without a link header.
#[inline(always)]
fn note_bare(skb: *mut __sk_buff) {
    if let Some(frame) = Dressed::<PLAIN_V6_LEN>::copy(skb)
        && let Some(headers) = plain_v6(&frame)
    {
        note_answer(&frame, &headers);
    } else if let Some(frame) = Dressed::<PLAIN_V4_LEN>::copy(skb)
        && let Some(headers) = plain_v4(&frame)
    {
        note_answer(&frame, &headers);
    }
}

/// Notes the answer that a packet is, if it comes from where packets are steered to.
#[inline(always)]
pub(crate) fn note_answer<F: Frame>(frame: &F, headers: &Headers) {
    let Some((high, low)) = source(frame, headers) else {
        return;
    };
    let from = Destination::from_halves(headers.is_v6(), high, low);
    if LiveTable::current().is_some_and(|table| is_covered(&table, from))
        && let Some([a, b, c, d, e]) = answered_flow(frame, headers, (high, low))
    {
        breakout_note_answer(a, b, c, d, e);
    }
}
