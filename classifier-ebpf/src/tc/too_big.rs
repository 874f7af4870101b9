//! Answers a packet that is longer than its egress takes, and turns it round.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_store_bytes,
};
use breakout_common::egress::mtu;
use breakout_common::network::network;
use breakout_common::too_big::{Patch, QUOTED, V4_LEN, V6_LEN, v4, v6};

use crate::globals;
use crate::maps::{egress, paths};
use crate::nat::address_of;
use crate::reader::Packet;

const ETHERNET_LEN: u32 = 14;

/// Makes the answer of the packet, and sends it back. Returns the action; a packet that cannot be answered is dropped, as it cannot be
/// sent either.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_answer(skb: *mut __sk_buff, index: u32) -> i32 {
    match turned(skb, index) {
        Some(action) => action,
        None => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn turned(skb: *mut __sk_buff, index: u32) -> Option<i32> {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end, len) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let packet = Packet::new(start, end, len).with_tag(super::tag(skb));
    let network = network(&packet)?;
    // A tag beside the frame stays there. Others are not steered.
    if network.offset != ETHERNET_LEN {
        return None;
    }
    let mtu = mtu(paths().and_then(|paths| egress(paths, (index & 0xff) as u8))?);
    let quote = network.header + QUOTED;
    if network.is_v6() {
        let (head, patch) = v6(&packet, &network, mtu, globals::lan_v6())?;
        turn::<V6_LEN>(skb, &head, patch, quote)
    } else {
        let (head, patch) = v4(&packet, &network, mtu, globals::lan_v4())?;
        turn::<V4_LEN>(skb, &head, patch, quote)
    }
}

/// The same for a reply of a translated flow that is longer than the way to its client takes, which is `mtu` bytes: answers its sender, from
/// the public address.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_too_long(skb: *mut __sk_buff, mtu: u32) -> i32 {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end, len) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let packet = Packet::new(start, end, len);
    let from = address_of(globals::lan()).to_ne_bytes();
    let answer = network(&packet)
        .filter(|network| network.offset == ETHERNET_LEN && !network.is_v6())
        .and_then(|network| Some((network.header, v4(&packet, &network, mtu, from)?)));
    let Some((header, (head, patch))) = answer else {
        return TC_ACT_SHOT;
    };
    turn::<V4_LEN>(skb, &head, patch, header + QUOTED).unwrap_or(TC_ACT_SHOT)
}

/// Cuts the packet off behind the quote, puts the headers before it, and sends it back to where it came from.
#[inline(always)]
fn turn<const N: usize>(
    skb: *mut __sk_buff,
    head: &[u8; N],
    patch: Option<Patch>,
    quote: u32,
) -> Option<i32> {
    #[expect(clippy::cast_possible_truncation, reason = "headers are short")]
    let len = const { N as u32 };
    let room = len - ETHERNET_LEN;
    // SAFETY: the helpers take the live socket buffer, and fail where they can do nothing; they read as many bytes as they are told
    // of arrays that have so many.
    unsafe {
        done(bpf_skb_change_tail(skb.cast(), ETHERNET_LEN + quote, 0))?;
        done(bpf_skb_change_head(skb.cast(), room, 0))?;
        done(bpf_skb_store_bytes(
            skb.cast(),
            0,
            head.as_ptr().cast(),
            len,
            0,
        ))?;
        if let Some(patch) = patch {
            let place = len + patch.offset;
            done(bpf_skb_store_bytes(
                skb.cast(),
                place,
                patch.bytes.as_ptr().cast(),
                2,
                0,
            ))?;
        }
        // Only the neighbour's helper knows where the IP header is now, which an interface without a link header needs.
        let action = if globals::bare() != 0 {
            bpf_redirect_neigh((*skb).ifindex, ptr::null_mut(), 0, 0)
        } else {
            bpf_redirect((*skb).ifindex, 0)
        };
        Some((action & 0xff) as i32)
    }
}

#[inline(always)]
fn done(result: i64) -> Option<()> {
    (result == 0).then_some(())
}
