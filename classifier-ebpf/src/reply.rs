//! XDP on an egress interface: forwards the replies of steered flows to the LAN, past the kernel's stack.

use core::mem;

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::bpf_fib_lookup as fib_lookup;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use breakout_common::classify::source;
use breakout_common::condition::Client;
use breakout_common::egress::link_header_of;
use breakout_common::flows::{Key, answered_flow};
use breakout_common::forward;
use breakout_common::frame::Frame;
use breakout_common::nat::translate;
use breakout_common::packet::{FIRST_FRAGMENT, Headers, OPTIONS, TAGGED};
use breakout_common::table::{Destination, KEYS, Lookup, Outcome, is_covered};

use crate::answer::note_answer;
use crate::count::add;
use crate::decide::{Walked, walk_apart};
use crate::flows;
use crate::globals;
use crate::maps::{LANS, REPLIES};
use crate::nat::{address_of, breakout_owner};
use crate::reader::Packet;
use crate::ruleset::{LiveTable, LookupApart};

/// Address families as the helper wants them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The size of what it is asked with.
const QUERY_LEN: i32 = 64;
const _: () = assert!(size_of::<bpf_fib_lookup>() == 64);
/// The helper's answer if the packet can be forwarded as it says (BPF_FIB_LKUP_RET_SUCCESS).
const FOUND: i64 = 0;

/// The places of counters.
pub(crate) const REDIRECTED: u32 = 0;
const BY_KERNEL: u32 = 1;

/// Entry point. Whatever is no reply of a steered flow, or not plainly forwarded to a LAN, goes on to the kernel.
#[xdp]
pub(crate) fn breakout_reply(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both pointers are into one packet"
    )]
    let len = end.wrapping_sub(start) as u32;
    let mut packet = Packet::new(start, end, len);
    let mut walked = Walked::NONE;
    walk_apart(start, end, len, 0, &mut walked);
    if walked.stop != Walked::WHOLE {
        return XDP_PASS;
    }
    let mut headers = walked.headers;
    // In promiscuous mode there are frames for others.
    if !globals::is_to_lan(&packet) {
        return XDP_PASS;
    }
    let owner = owner(&packet, &headers);
    let port = if owner != 0 {
        headers.halves = (0, owner >> 16);
        Some(((owner & 0xffff) as u16).to_be())
    } else {
        let answered = if globals::returns() != 0 {
            answered_word(&packet, &headers)
        } else {
            0
        };
        if answered & Outcome::STEER == 0 {
            return XDP_PASS;
        }
        // Nothing is known of flows that go by the ruleset alone.
        if answered & Outcome::HARD == 0 && !is_of_live_flow(&packet, &headers) {
            add(REPLIES.get_ptr_mut(BY_KERNEL), 1, u64::from(len));
            return XDP_PASS;
        }
        None
    };
    let action = forward_reply(&ctx, &mut packet, &headers, port).unwrap_or(XDP_PASS);
    // What goes on to the kernel is noted where it leaves for the LAN.
    if action == XDP_REDIRECT && globals::pins() != 0 {
        note_answer(&packet, &headers);
    }
    // What belongs to a translated flow is counted by TC if that forwards it.
    if owner != 0 && action == XDP_PASS {
        return action;
    }
    let slot = if action == XDP_PASS {
        BY_KERNEL
    } else {
        REDIRECTED
    };
    add(REPLIES.get_ptr_mut(slot), 1, u64::from(len));
    action
}

/// The address and port of the client that a packet to the public address is for; 0 if there is none.
#[inline(always)]
fn owner(packet: &Packet, headers: &Headers) -> u64 {
    let address = address_of(globals::lan());
    let is_for_clients =
        address != 0 && !headers.is_v6() && headers.halves.1 == u64::from(u32::from_be(address));
    let (Some((_, from)), Some(ports), true) = (
        source(packet, headers),
        packet.read::<4>(headers.transport_offset),
        is_for_clients,
    ) else {
        return 0;
    };
    let protocol = if headers.key >> 16 == 0 { Key::TCP } else { 0 };
    breakout_owner(from << 32 | u64::from(u32::from_be_bytes(ports)), protocol)
}

/// Tells whether the flow that a packet answers is known, where flows are.
#[inline(always)]
fn is_of_live_flow(packet: &Packet, headers: &Headers) -> bool {
    if globals::pins() == 0 {
        return true;
    }
    let key = source(packet, headers).and_then(|from| answered_flow(packet, headers, from));
    key.is_some_and(flows::is_steered)
}

/// Asks the ruleset about a packet with the addresses and ports the other way round, from some client; 0 if it is not steered.
#[inline(always)]
fn answered_word(packet: &Packet, headers: &Headers) -> u32 {
    let (Some((high, low)), Some([p0, p1])) = (
        source(packet, headers),
        packet.read::<2>(headers.transport_offset),
    ) else {
        return 0;
    };
    let key = headers.key & (KEYS - 1) & !0xffff | u32::from(u16::from_be_bytes([p0, p1]));
    let destination = Destination::from_halves(headers.is_v6(), high, low);
    if !LiveTable::current().is_some_and(|table| is_covered(&table, destination)) {
        return 0;
    }
    let word = LookupApart.lookup_word(destination, key, || {
        Some(Client {
            source: headers.destination(),
            lan: 0,
            vlan: 0,
        })
    });
    if word & (Outcome::SHADOW | Outcome::BYPASS) == 0 {
        word
    } else {
        0
    }
}

/// Asks the kernel's own routes where the packet goes, and with a port gives it the destination of its headers. `None` leaves it to the
/// kernel, unchanged.
#[inline(always)]
fn forward_reply(
    ctx: &XdpContext,
    packet: &mut Packet,
    headers: &Headers,
    port: Option<u16>,
) -> Option<u32> {
    let is_plain = headers.marks & (TAGGED | FIRST_FRAGMENT | OPTIONS) == 0 && headers.ttl > 1;
    if !is_plain || !forward::is_whole(packet, headers) {
        return None;
    }
    // SAFETY: the struct is plain numbers and unions of them, for which zeros are valid.
    let mut query: bpf_fib_lookup = unsafe { mem::zeroed() };
    query.l4_protocol = if headers.key >> 16 == 0 { 6 } else { 17 };
    query.__bindgen_anon_1.tot_len = (headers.ip_len & 0xffff) as u16;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "interface indices have 32 bits"
    )]
    let ingress = ctx.ingress_ifindex() as u32;
    query.ifindex = ingress;
    if headers.is_v6() {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = words(packet.read(headers.ip_offset + 8)?);
        query.__bindgen_anon_4.ipv6_dst = words(packet.read(headers.ip_offset + 24)?);
    } else {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(packet.read(headers.ip_offset + 12)?);
        query.__bindgen_anon_4.ipv4_dst = client_of(headers);
    }
    // SAFETY: the context is the live packet's, the query is valid for reads and writes of its size.
    let answer = unsafe { fib_lookup(ctx.ctx.cast(), (&raw mut query).cast(), QUERY_LEN, 0) };
    if answer != FOUND {
        return None;
    }
    LANS.redirect(query.ifindex, u64::from(XDP_PASS)).ok()?;
    let mut rewritten = forward::rewrite(packet, headers, link_header_of(query.dmac, query.smac));
    if let (Some(port), Some(())) = (port, rewritten) {
        rewritten = translate(packet, headers, true, client_of(headers), port);
    }
    match rewritten {
        Some(()) => Some(XDP_REDIRECT),
        None => Some(XDP_DROP),
    }
}

/// The IPv4 address that a packet goes to, in network byte order.
#[inline(always)]
fn client_of(headers: &Headers) -> u32 {
    ((headers.halves.1 & 0xffff_ffff) as u32).to_be()
}

/// An IPv6 address as the helper has it: in network byte order.
#[inline(always)]
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
