//! Other ways to forward by XDP: without a lookup, and by the kernel's routing table.

use core::mem::{size_of, zeroed};

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::bindings::{TC_ACT_UNSPEC, bpf_fib_lookup as FibLookup};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use breakout_common::egress::link_header_of;
use breakout_common::forward::rewrite;
use breakout_common::frame::Frame;
use breakout_common::packet::{Headers, walk};
use breakout_common::table::Destination;

use crate::reader::Packet;
use crate::traffic::{egress, forwarded};

/// Length of the query in bytes, in the type that the helper wants.
const QUERY_LEN: i32 = 64;
const _: () = assert!(size_of::<FibLookup>() == 64);
/// `AF_INET` and `AF_INET6` of Linux.
const FAMILIES: [u8; 2] = [2, 10];

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
fn packet(ctx: &XdpContext) -> Packet {
    let (start, end) = (ctx.data(), ctx.data_end());
    Packet::new(start, end, (end.wrapping_sub(start) & 0xffff) as u32)
}

#[inline(always)]
fn send(packet: &mut Packet, headers: &Headers, macs: [u8; 12], interface: u32) -> u32 {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
    let link_header = link_header_of([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]);
    if rewrite(packet, headers, link_header).is_none() {
        return XDP_PASS;
    }
    // SAFETY: the helper takes numbers only.
    let action = unsafe { bpf_redirect(interface, 0) };
    u32::try_from(action).unwrap_or(XDP_PASS)
}

/// Walks the headers and redirects whatever has any.
#[xdp]
pub(crate) fn forward_plain(ctx: XdpContext) -> u32 {
    let mut packet = packet(&ctx);
    match walk(&packet) {
        Ok(headers) => send(&mut packet, &headers, forwarded(), egress()),
        Err(_) => XDP_PASS,
    }
}

/// As many bytes as the flow table of the default size has.
#[btf_map]
static LINES: Array<[u64; 8], 32_768> = Array::new();

/// Does the same, and reads the cache line of the packet's flow in a table of the default size: what memory alone costs, where
/// nothing waits for what is read.
#[xdp]
pub(crate) fn forward_one_line(ctx: XdpContext) -> u32 {
    let mut packet = packet(&ctx);
    let Ok(headers) = walk(&packet) else {
        return XDP_PASS;
    };
    let (high, low) = headers.destination().to_halves();
    let mixed = (high ^ low ^ u64::from(headers.key)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let line = LINES.get((mixed >> 49) as u32);
    // Nothing is ever written there.
    if line.is_none_or(|line| line[0] | line[2] | line[4] | line[6] != 0) {
        return XDP_PASS;
    }
    send(&mut packet, &headers, forwarded(), egress())
}

/// Walks the headers and redirects by the routing table, as the kernel's own example does.
#[xdp]
pub(crate) fn forward_fib(ctx: XdpContext) -> u32 {
    let mut packet = packet(&ctx);
    let Ok(headers) = walk(&packet) else {
        return XDP_PASS;
    };
    // SAFETY: the struct is integers and unions of integers, for which all-zero bytes are valid.
    let mut query: FibLookup = unsafe { zeroed() };
    query.family = FAMILIES[usize::from(headers.is_v6())];
    query.l4_protocol = 17;
    // SAFETY: the context is the running program's.
    query.ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    match headers.destination() {
        Destination::V4(address) => {
            let Some(source) = packet.read::<4>(headers.ip_offset + 12) else {
                return XDP_PASS;
            };
            query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
            query.__bindgen_anon_4.ipv4_dst = address.to_be();
        }
        Destination::V6(high, low) => {
            let words = |half: u64| [(half >> 32) as u32, (half & 0xffff_ffff) as u32];
            let ([a, b], [c, d]) = (words(high), words(low));
            query.__bindgen_anon_4.ipv6_dst = [a.to_be(), b.to_be(), c.to_be(), d.to_be()];
        }
    }
    // SAFETY: the context is the running program's, and the query is valid for the size that is given.
    let found = unsafe { bpf_fib_lookup(ctx.ctx.cast(), (&raw mut query).cast(), QUERY_LEN, 0) };
    if found != 0 {
        return XDP_PASS;
    }
    let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (query.dmac, query.smac);
    let macs = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5];
    send(&mut packet, &headers, macs, query.ifindex)
}

/// Does nothing: what is measured of it is the test run itself.
#[xdp]
pub(crate) fn pass_all(_: XdpContext) -> u32 {
    XDP_PASS
}

/// The same at TC.
#[classifier]
pub(crate) fn pass_all_tc(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Walks the headers and does nothing with them.
#[xdp]
pub(crate) fn parse_only(ctx: XdpContext) -> u32 {
    match walk(&packet(&ctx)) {
        // Uses all that was found.
        Ok(headers) => match headers.destination() {
            Destination::V4(address) if address == headers.key => 0,
            Destination::V6(high, low) if high == low => 0,
            _ => XDP_PASS,
        },
        Err(_) => XDP_PASS,
    }
}
