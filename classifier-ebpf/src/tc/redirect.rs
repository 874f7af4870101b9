//! Redirect mode in TC: for packets that XDP has left alone, and for interfaces that have no XDP.

use aya_ebpf::bindings::{__sk_buff, bpf_redir_neigh};
use aya_ebpf::helpers::generated::{bpf_redirect_neigh, bpf_skb_store_bytes};
use breakout_common::egress::{EgressWords, gateway_v4, gateway_v6};
use breakout_common::forward;
use breakout_common::frame::Frame;
use breakout_common::packet::{Headers, PLAIN_V4_LEN, PLAIN_V6_LEN, plain_v4, plain_v6};
use breakout_common::verdict::Reason;

use crate::decide::is_own;
use crate::globals;
use crate::maps::{TC_DEVICES, egress, paths};
use crate::reader::Packet;

/// Address families as the helper wants them.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The size of a next hop in bytes.
const NEXT_HOP_LEN: i32 = 20;
const _: () = assert!(size_of::<NextHop>() == 20 && size_of::<bpf_redir_neigh>() == 20);

/// The bit of an answer that says that the packet is left to the kernel, above the number of the reason.
pub(super) const LEFT: u32 = 1 << 8;
/// The number of the reason for which a packet is not steered after all.
pub(super) const NOT_FOR_GATEWAY: u32 = Reason::NotForGateway as u32;

/// Forwards a plain packet to the next hop of an egress, whose link-layer address the kernel finds (`bpf_redirect_neigh`, Linux 5.10).
/// Returns the action, or why the packet is left to the kernel, as it was.
#[inline(never)]
pub(super) fn redirect(skb: *mut __sk_buff, index: u32) -> u32 {
    // The kernel takes an interface that goes out of the map, also while nobody looks after the path table.
    let (Some(device), Some(egress)) = (
        TC_DEVICES.get_ifindex(index),
        paths().and_then(|paths| egress(paths, (index & 0xff) as u8)),
    ) else {
        return left(Reason::KernelDevice);
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
    if tagged != 0 {
        return left(Reason::KernelTagged);
    }
    // The kernel drops it.
    if !globals::is_to_lan(&packet) {
        return left(Reason::NotForGateway);
    }
    let Some(headers) = plain(&packet) else {
        return left(forward::not_plain(&packet));
    };
    match send(skb, &packet, &headers, egress, device) {
        Ok(action) => action,
        Err(reason) => left(reason),
    }
}

#[inline(always)]
const fn left(reason: Reason) -> u32 {
    LEFT | reason as u32
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
    device: u32,
) -> Result<u32, Reason> {
    let longest = longest(skb, packet, headers).ok_or(Reason::KernelDamaged)?;
    forward::check(packet, headers, longest, egress, is_own)?;
    let (offset, bytes) = forward::aged(packet, headers).ok_or(Reason::KernelDamaged)?;
    let bytes = u32::from_ne_bytes(bytes);
    let mut next_hop = next_hop(headers, egress);
    // SAFETY: the context is the live socket buffer's, and the helper reads those bytes. No part of the packet is used behind it.
    let stored =
        unsafe { bpf_skb_store_bytes(skb.cast(), offset, (&raw const bytes).cast(), 4, 0) };
    if stored != 0 {
        return Err(Reason::KernelDamaged);
    }
    // SAFETY: the helper reads that many bytes of the next hop, which is laid out as it expects.
    let action = unsafe { bpf_redirect_neigh(device, (&raw mut next_hop).cast(), NEXT_HOP_LEN, 0) };
    Ok((action & 0xff) as u32)
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
