//! Redirect mode in TC: for packets that XDP has left alone, and for interfaces that have no XDP.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC, bpf_redir_neigh};
use aya_ebpf::helpers::generated::{bpf_redirect_neigh, bpf_skb_store_bytes};
use breakout_common::egress::{EgressWords, gateway_v4, gateway_v6, interface};
use breakout_common::forward;
use breakout_common::frame::Frame;
use breakout_common::packet::{Headers, PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};

use crate::decide::is_own;
use crate::globals;
use crate::maps::{egress, paths};
use crate::reader::Packet;

/// Address families as the helper wants them.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The size of a next hop in bytes.
const NEXT_HOP_LEN: i32 = 20;
const _: () = assert!(size_of::<NextHop>() == 20 && size_of::<bpf_redir_neigh>() == 20);

/// Forwards a plain packet to the next hop of an egress, whose link-layer address the kernel finds (`bpf_redirect_neigh`, Linux 5.10).
/// Returns the action. What is left to the kernel is as it was.
#[inline(never)]
pub(super) fn redirect(skb: *mut __sk_buff, index: u32) -> i32 {
    let Some(egress) = paths().and_then(|paths| egress(paths, (index & 0xff) as u8)) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end, len, tagged) = unsafe {
        (
            (*skb).data as usize,
            (*skb).data_end as usize,
            (*skb).len,
            (*skb).vlan_present,
        )
    };
    let packet = Packet::new(start, end, len);
    if tagged != 0 || !globals::is_to_lan(&packet) {
        return TC_ACT_UNSPEC;
    }
    let sent = match plain(&packet) {
        Some(headers) => send(skb, &packet, &headers, egress),
        None => None,
    };
    sent.unwrap_or(TC_ACT_UNSPEC)
}

/// The headers of a plain packet.
#[inline(always)]
fn plain(packet: &Packet) -> Option<Headers> {
    let v4 = packet
        .window::<PLAIN_V4_LEN>()
        .and_then(|window| plain_v4(&window));
    v4.or_else(|| {
        packet
            .window::<PLAIN_V6_LEN>()
            .and_then(|window| plain_v6(&window))
    })
}

/// Sends it, unless that is left to the kernel.
#[inline(always)]
fn send(
    skb: *mut __sk_buff,
    packet: &Packet,
    headers: &Headers,
    egress: &EgressWords,
) -> Option<i32> {
    let longest = longest(skb, packet, headers)?;
    forward::check(packet, headers, longest, egress, is_own).ok()?;
    let (offset, bytes) = forward::aged(packet, headers)?;
    let bytes = u32::from_ne_bytes(bytes);
    let mut next_hop = next_hop(headers, egress);
    // SAFETY: the context is the live socket buffer's, and the helper reads those bytes. No part of the packet is used behind it.
    let stored =
        unsafe { bpf_skb_store_bytes(skb.cast(), offset, (&raw const bytes).cast(), 4, 0) };
    if stored != 0 {
        return None;
    }
    // SAFETY: the helper reads that many bytes of the next hop, which is laid out as it expects.
    let action = unsafe {
        bpf_redirect_neigh(
            interface(egress),
            (&raw mut next_hop).cast(),
            NEXT_HOP_LEN,
            0,
        )
    };
    Some((action & 0xff) as i32)
}

/// The length of the longest IP packet that leaves, in bytes: the kernel takes apart again what it has merged.
#[inline(always)]
fn longest(skb: *mut __sk_buff, packet: &Packet, headers: &Headers) -> Option<u32> {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
    let payload = unsafe { (*skb).gso_size };
    if payload == 0 {
        return Some(headers.ip_len);
    }
    let transport = if headers.key >> 16 == 0 {
        let [offset] = packet.read::<1>(headers.transport_offset + 12)?;
        u32::from(offset >> 4) * 4
    } else {
        8
    };
    Some(headers.transport_offset - headers.ip_offset + transport + payload)
}

/// A next hop as `bpf_redirect_neigh` takes it (`struct bpf_redir_neigh`).
#[repr(C)]
struct NextHop {
    family: u32,
    /// In network byte order; of IPv4 the first word.
    address: [u32; 4],
}

/// The gateway, or without one the destination itself.
#[inline(always)]
fn next_hop(headers: &Headers, egress: &EgressWords) -> NextHop {
    let (high, low) = headers.halves;
    if headers.is_v6() {
        let gateway = gateway_v6(egress);
        let destination = [high >> 32, high, low >> 32, low];
        NextHop {
            family: AF_INET6,
            address: match gateway {
                [0, 0, 0, 0] => destination.map(|word| ((word & 0xffff_ffff) as u32).to_be()),
                gateway => gateway,
            },
        }
    } else {
        let address = match gateway_v4(egress) {
            0 => ((low & 0xffff_ffff) as u32).to_be(),
            gateway => gateway,
        };
        NextHop {
            family: AF_INET,
            address: [address, 0, 0, 0],
        }
    }
}
