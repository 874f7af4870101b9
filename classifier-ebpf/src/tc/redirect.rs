//! Redirect mode in TC: all that XDP leaves, and everything on interfaces that have no XDP.

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, TC_ACT_UNSPEC, bpf_redir_neigh};
use aya_ebpf::helpers::generated::{
    bpf_redirect_neigh, bpf_skb_change_tail, bpf_skb_store_bytes, bpf_skb_vlan_pop,
};
use breakout_common::egress::{EgressWords, gateway_v4, gateway_v6, link_header, mtu, nat};
use breakout_common::forward;
use breakout_common::frame::Frame;
use breakout_common::network::{JUMBO, Network, TCP, UDP, network};
use breakout_common::verdict::Reason;

use super::mss;
use super::port::NO_PORT;
use super::rewrite::Translation;
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

/// The outcome for a packet, as a word: the action in the lowest 8 bits, and above them the number of the reason.
#[inline(always)]
const fn outcome(action: u32, reason: Reason) -> u32 {
    (reason as u32) << 8 | action & 0xff
}

/// A packet that is left to the kernel, as it was.
#[inline(always)]
#[expect(clippy::cast_sign_loss, reason = "an action is cut to its bits")]
const fn left(reason: Reason) -> u32 {
    outcome(TC_ACT_UNSPEC as u32, reason)
}

/// The action of an outcome.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "an action had a sign before")]
pub(super) const fn action(outcome: u32) -> i32 {
    (outcome & 0xff) as u8 as i8 as i32
}

/// The number of the reason of an outcome.
#[inline(always)]
pub(super) const fn reason(outcome: u32) -> u32 {
    outcome >> 8 & 0x1f
}

/// Sends a packet to the next hop of an egress, whose link-layer address the kernel finds (`bpf_redirect_neigh`, Linux 5.10).
/// It gets the egress's address and a `port` as its source, unless that is [`NO_PORT`]. Returns the [outcome]: one that is too big has
/// yet to be answered.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_redirect(skb: *mut __sk_buff, index: u32, port: u32) -> u32 {
    // The kernel takes an interface that goes out of the map, also while nobody looks after the path table.
    let (Some(device), Some(egress)) = (
        TC_DEVICES.get_ifindex(index),
        paths().and_then(|paths| egress(paths, (index & 0xff) as u8)),
    ) else {
        return left(Reason::NoDevice);
    };
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end, len) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let packet = Packet::new(start, end, len).with_tag(super::tag(skb));
    // The kernel drops it.
    if !globals::is_to_lan(&packet) {
        return left(Reason::NotForGateway);
    }
    let Some(network) = network(&packet) else {
        return left(Reason::KernelDamaged);
    };
    let checked = longest(skb, &packet, &network)
        .ok_or(Reason::KernelDamaged)
        .and_then(|longest| forward::check(&packet, &network, longest, egress, is_own));
    let translated = checked.and_then(|()| translation(&packet, &network, egress, port));
    match translated.and_then(|to| send(skb, &packet, &network, egress, device, to)) {
        Ok(action) => outcome(action, named(&network, egress)),
        Err(reason) => left(reason),
    }
}

/// The reason under which a packet is counted that was sent.
#[inline(always)]
fn named(network: &Network, egress: &EgressWords) -> Reason {
    let kind = forward::kind(network);
    let is_for_xdp = matches!(kind, Reason::Steered) && globals::tc_counts() == 0;
    if is_for_xdp && link_header(egress, network.is_v6()).is_none() {
        Reason::TcNextHop
    } else {
        kind
    }
}

/// Sends it.
#[inline(always)]
fn send(
    skb: *mut __sk_buff,
    packet: &Packet,
    network: &Network,
    egress: &EgressWords,
    device: u32,
    translation: Option<Translation>,
) -> Result<u32, Reason> {
    let (offset, bytes) =
        forward::aged(packet, network.offset, network.is_v6()).ok_or(Reason::KernelDamaged)?;
    let bytes = u32::from_ne_bytes(bytes);
    let mut next_hop = next_hop(network, egress);
    let end = network.offset + network.len;
    let has_tail = network.marks & JUMBO == 0 && forward::has_tail(packet, end);
    let has_priority_tag = packet.tag_beside() != 0;
    let opens = opens(packet, network);
    // No part of the packet is used behind this: it may move.
    if let Some(transport) = opens {
        mss::breakout_clamp(skb, transport, largest(network, egress));
    }
    // The change of the TTL and that of its checksum make none in the packet's sum; that of the hop limit does.
    let flags = if network.is_v6() {
        BPF_F_RECOMPUTE_CSUM
    } else {
        0
    };
    // SAFETY: the context is the live socket buffer's, and the helper reads those bytes.
    let stored = unsafe {
        bpf_skb_store_bytes(
            skb.cast(),
            offset,
            (&raw const bytes).cast(),
            4,
            u64::from(flags),
        )
    };
    if stored != 0 {
        return Err(Reason::KernelDamaged);
    }
    if let Some(translation) = translation {
        translation.apply(skb);
    }
    // SAFETY: the helpers take the live socket buffer, and fail where they can do nothing. A tail that stays is cut off by the next
    // router. The tag is one of a priority, without a VLAN.
    unsafe {
        if has_tail {
            bpf_skb_change_tail(skb.cast(), end, 0);
        }
        if has_priority_tag {
            bpf_skb_vlan_pop(skb.cast());
        }
    }
    // SAFETY: the helper reads that many bytes of the next hop, which is laid out as it expects.
    let action = unsafe { bpf_redirect_neigh(device, (&raw mut next_hop).cast(), NEXT_HOP_LEN, 0) };
    Ok((action & 0xff) as u32)
}

/// The translation of a packet's source to an egress's address and this port; none without a port. Later fragments have no port.
#[inline(always)]
fn translation(
    packet: &Packet,
    network: &Network,
    egress: &EgressWords,
    port: u32,
) -> Result<Option<Translation>, Reason> {
    let address = if globals::nat_mask() == 0 || network.is_v6() {
        0
    } else {
        nat(egress)
    };
    if port == NO_PORT && address == 0 {
        return Ok(None);
    }
    // The path table has changed since the port was given.
    if port == NO_PORT || address == 0 {
        return Err(Reason::KernelDamaged);
    }
    let translation = if matches!(network.protocol, TCP | UDP) {
        Translation::of(packet, network, false, address)
    } else {
        Translation::of_message(packet, network, address)
    };
    let Some(mut translation) = translation else {
        return Err(Reason::KernelDamaged);
    };
    if translation.has_port() {
        translation.set_port(((port & 0xffff) as u16).to_be());
    }
    Ok(Some(translation))
}

/// Holds the segment size of a packet that opens a TCP connection to what fits through an egress in route mode: the kernel only does
/// so where a rule of the firewall says it, and the message that a packet is too long is often lost.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_hold_size(skb: *mut __sk_buff, index: u32) -> u32 {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end, len) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let packet = Packet::new(start, end, len).with_tag(super::tag(skb));
    let Some(egress) = paths().and_then(|paths| egress(paths, (index & 0xff) as u8)) else {
        return 0;
    };
    let Some(network) = network(&packet) else {
        return 0;
    };
    let Some(transport) = opens(&packet, &network) else {
        return 0;
    };
    mss::breakout_clamp(skb, transport, largest(&network, egress))
}

/// The largest segment that fits through both links.
#[inline(always)]
fn largest(network: &Network, egress: &EgressWords) -> u32 {
    let mtu = mtu(egress).min(u32::from(globals::lan_mtu()));
    breakout_common::mss::largest(mtu, network.is_v6())
}

/// Returns where the TCP header of a packet is that opens a connection.
#[inline(always)]
fn opens(packet: &Packet, network: &Network) -> Option<u32> {
    let transport = network.transport().filter(|_| network.protocol == TCP)?;
    let [flags] = packet.read::<1>(transport + 13)?;
    (flags & 0x02 != 0).then_some(transport)
}

/// The length of the longest IP packet that leaves, in bytes: the kernel takes apart again what it has merged.
#[inline(always)]
pub(crate) fn longest(skb: *mut __sk_buff, packet: &Packet, network: &Network) -> Option<u32> {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
    let payload = unsafe { (*skb).gso_size };
    if payload == 0 {
        return Some(network.len);
    }
    let transport = if network.protocol == TCP {
        let [offset] = packet.read::<1>(network.offset + network.header + 12)?;
        u32::from(offset >> 4) * 4
    } else {
        8
    };
    let header = if network.is_v6() { 40 } else { network.header };
    Some(header + transport + payload)
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
fn next_hop(network: &Network, egress: &EgressWords) -> NextHop {
    let (high, low) = network.destination;
    if network.is_v6() {
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
