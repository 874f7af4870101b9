//! TC ingress on an egress interface: gives replies of translated flows their client back and sends them to the LAN. Only what answers a
//! live flow gets in; all else goes on to the kernel.

use core::mem;
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup};
use aya_ebpf::helpers::bpf_fib_lookup as fib_lookup;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{bpf_redirect_neigh, bpf_skb_store_bytes, bpf_skb_vlan_pop};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use breakout_common::flows::Key;
use breakout_common::forward::{aged, has_right_sum};
use breakout_common::fragment::{self, Fragment};
use breakout_common::frame::Frame;
use breakout_common::nat::quoted;
use breakout_common::network::{FRAGMENT, Network, TCP, UDP, bare_v4, network};
use breakout_common::packet::{OPTIONS, TAGGED};

use crate::bare::dress;
use crate::count::add;
use crate::globals;
use crate::maps::{FRAGMENTS, REPLIES, TC_LANS};
use crate::nat::{address_of, breakout_owner};
use crate::reader::Packet;
use crate::reply::REDIRECTED;
use crate::tc::redirect::longest;
use crate::tc::rewrite::Translation;
use crate::tc::too_big::breakout_too_long;
use crate::tc::{message, pull, tag};

const AF_INET: u8 = 2;
/// The size of what the helper is asked with.
const QUERY_LEN: i32 = 64;
/// Its answer where the packet is too long for its way (BPF_FIB_LKUP_RET_FRAG_NEEDED).
const TOO_LONG: i64 = 8;
/// Its answers where it names the interface: BPF_FIB_LKUP_RET_SUCCESS, and BPF_FIB_LKUP_RET_NO_NEIGH, whose link-layer address the kernel
/// finds later.
const FOUND: i64 = 0;
const NO_NEIGHBOUR: i64 = 7;

/// Entry point.
#[classifier]
#[inline(always)]
pub(crate) fn breakout_return(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let address = address_of(globals::lan());
    let tag = tag(skb);
    // A tag that stands beside the packet is of another network, unless it has only a priority.
    if address == 0 || tag & 0xfff != 0 {
        return TC_ACT_UNSPEC;
    }
    pull(&ctx);
    let client = breakout_client(skb, address);
    if client == 0 {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (len, segments) = unsafe { ((*skb).len, (*skb).gso_segs) };
    if globals::bare() != 0 && !dress(skb) {
        return TC_ACT_SHOT;
    }
    if tag != 0 {
        // SAFETY: the helper takes the live socket buffer, and fails where it can do nothing.
        unsafe { bpf_skb_vlan_pop(skb.cast()) };
    }
    let action = breakout_restore(skb, client);
    if action & ANSWERED != 0 {
        return action & !ANSWERED;
    }
    if action != TC_ACT_SHOT {
        add(
            REPLIES.get_ptr_mut(REDIRECTED),
            u64::from(segments.max(1)),
            u64::from(len),
        );
    }
    action
}

/// Above an action: the packet was not sent to the client, but turned into an answer to its sender.
const ANSWERED: i32 = 1 << 8;
/// Above a client's address and port: the packet is an error about one of its packets.
const MESSAGE: u64 = 1 << 48;
/// It is a fragment that has no port.
const LATER: u64 = 1 << 49;

#[inline(always)]
fn packet_of(skb: *mut __sk_buff) -> Packet {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end, len) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    Packet::new(start, end, len)
}

/// The address and port of the client to which a packet to the public address belongs, with the bits above; 0 if it is nobody's.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_client(skb: *mut __sk_buff, address: u32) -> u64 {
    client(skb, address).unwrap_or(0)
}

#[inline(always)]
fn client(skb: *mut __sk_buff, address: u32) -> Option<u64> {
    let packet = packet_of(skb);
    let is_bare = globals::bare() != 0;
    let network = if is_bare {
        bare_v4(&packet)?
    } else {
        network(&packet)?
    };
    let is_ours = !network.is_v6()
        && network.marks & TAGGED == 0
        && network.destination.1 == u64::from(u32::from_be(address))
        && (is_bare || globals::is_to_lan(&packet));
    let is_right =
        network.marks & OPTIONS != 0 || has_right_sum(&packet, network.offset, network.is_v6());
    if !is_ours || !is_right {
        return None;
    }
    if let Some(quoted) = quoted(&packet, &network) {
        // What is quoted left by this egress, so it has its address.
        let from = u32::from_ne_bytes(packet.read(quoted.ip + 12)?);
        let owner = owner(quoted.remote, quoted.is_tcp, quoted.port);
        return (owner != 0 && from == address).then_some(owner | MESSAGE);
    }
    if !matches!(network.protocol, TCP | UDP) {
        return None;
    }
    let fragment = Fragment {
        ip_offset: network.offset,
        v6_header: None,
    };
    if network.marks & FRAGMENT != 0 {
        let [f0, f1] = packet.read::<2>(network.offset + 6)?;
        if [f0 & 0x1f, f1] != [0, 0] {
            let client = recall(packet.start(), packet.end(), fragment.to_word());
            return (client != 0).then_some(client | LATER);
        }
    }
    let [s0, s1, d0, d1] = packet.read::<4>(network.offset + network.header)?;
    let remote = (
        (network.source.1 & 0xffff_ffff) as u32,
        u16::from_be_bytes([s0, s1]),
    );
    let owner = owner(
        remote,
        network.protocol == TCP,
        u16::from_be_bytes([d0, d1]),
    );
    if owner != 0 && network.marks & FRAGMENT != 0 {
        remember(packet.start(), packet.end(), fragment.to_word(), owner);
    }
    (owner != 0).then_some(owner)
}

#[inline(always)]
fn owner((address, remote_port): (u32, u16), is_tcp: bool, port: u16) -> u64 {
    let remote = u64::from(address) << 32 | u64::from(remote_port) << 16 | u64::from(port);
    breakout_owner(remote, if is_tcp { Key::TCP } else { 0 })
}

/// Notes whose first fragment it was, so that the later ones find their client.
#[inline(never)]
fn remember(start: usize, end: usize, first: u64, client: u64) {
    let key = fragment::key(&Packet::new(start, end, 0), &Fragment::from_word(first));
    if let Some(key) = key {
        let _ = FRAGMENTS.insert(key, [fragment::REPLY | client, ktime()], 0);
    }
}

/// The client of a later fragment; 0 if that is not known.
#[inline(never)]
fn recall(start: usize, end: usize, later: u64) -> u64 {
    let key = fragment::key(&Packet::new(start, end, 0), &Fragment::from_word(later));
    // SAFETY: the memory is plain integers and is copied at once; if the kernel reuses the entry meanwhile, the bit of replies or the
    // time says so, or it is the copy of another reply's, which then has a fragment of a stranger, as with any reused identification.
    let memory = key.and_then(|key| unsafe { FRAGMENTS.get(key) }.copied());
    memory.map_or(0, |memory| fragment::client(&memory, ktime()))
}

#[inline(always)]
fn ktime() -> u64 {
    // SAFETY: the helper takes no arguments and has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Gives a packet its client back, and sends it there. Returns the action.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_restore(skb: *mut __sk_buff, client: u64) -> i32 {
    // What cannot be forwarded is lost here, as it would be behind any router: the kernel would take it for its own.
    restore(skb, client).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn restore(skb: *mut __sk_buff, client: u64) -> Option<i32> {
    let packet = packet_of(skb);
    let network = network(&packet)?;
    if network.ttl <= 1 {
        return None;
    }
    let address = ((client >> 16 & 0xffff_ffff) as u32).to_be();
    let port = ((client & 0xffff) as u16).to_be();
    let device = match route(skb, &packet, &network, address)? {
        Route::To(device) => device,
        Route::Narrow(mtu) => {
            return may_not_fragment(&packet, &network)
                .then(|| breakout_too_long(skb, mtu) | ANSWERED);
        }
    };
    let (offset, bytes) = aged(&packet, network.offset, false)?;
    let bytes = u32::from_ne_bytes(bytes);
    let quoted = if client & MESSAGE != 0 {
        Some(quoted(&packet, &network)?)
    } else {
        None
    };
    // No part of the packet is used behind the first change.
    if let Some(quoted) = quoted {
        let (places, kind) = message::parts(&network, &quoted);
        store(skb, offset, bytes)?;
        let client = u64::from(address) << 16 | u64::from(port) | kind;
        message::breakout_message(skb, places, client);
    } else {
        let mut translation = Translation::of(&packet, &network, true, address)?;
        if client & LATER == 0 {
            translation.set_port(port);
        }
        store(skb, offset, bytes)?;
        translation.apply(skb);
    }
    // SAFETY: without parameters the helper asks the kernel's routes for the next hop.
    let action = unsafe { bpf_redirect_neigh(device, ptr::null_mut(), 0, 0) };
    i32::try_from(action).ok()
}

#[inline(always)]
fn store(skb: *mut __sk_buff, offset: u32, bytes: u32) -> Option<()> {
    // SAFETY: the helper takes the live socket buffer, and reads those bytes.
    let stored =
        unsafe { bpf_skb_store_bytes(skb.cast(), offset, (&raw const bytes).cast(), 4, 0) };
    (stored == 0).then_some(())
}

/// Verdict on a packet.
enum Route {
    /// Out by this interface.
    To(u32),
    /// Nowhere: it is longer than the way to its client takes, which is so many bytes.
    Narrow(u32),
}

/// Tells whether a packet's sender wants to hear that it is too long (RFC 1191).
#[inline(always)]
fn may_not_fragment(packet: &Packet, network: &Network) -> bool {
    let flags = packet.read::<1>(network.offset + 6);
    flags.is_some_and(|[flags]| flags & 0x40 != 0) && network.marks & FRAGMENT == 0
}

/// The way to a client, if that is by a LAN interface: a client may have claimed any address.
#[inline(always)]
fn route(skb: *mut __sk_buff, packet: &Packet, network: &Network, address: u32) -> Option<Route> {
    // SAFETY: the struct is plain numbers and unions of them, for which zeros are valid.
    let mut query: bpf_fib_lookup = unsafe { mem::zeroed() };
    query.family = AF_INET;
    query.l4_protocol = (network.protocol & 0xff) as u8;
    // Without a length the helper would count the link header, which not every LAN has.
    query.__bindgen_anon_1.tot_len = (longest(skb, packet, network)? & 0xffff) as u16;
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the access to its field.
    query.ifindex = unsafe { (*skb).ifindex };
    query.__bindgen_anon_3.ipv4_src = ((network.source.1 & 0xffff_ffff) as u32).to_be();
    query.__bindgen_anon_4.ipv4_dst = address;
    // SAFETY: the context is the live packet's, the query is valid for reads and writes of its size.
    let mut answer = unsafe { fib_lookup(skb.cast(), (&raw mut query).cast(), QUERY_LEN, 0) };
    let mut mtu = 0;
    if answer == TOO_LONG {
        // SAFETY: with this answer the helper has written the MTU into the place of the length (Linux 5.12), and not the interface, which
        // it tells of a packet that is not too long.
        unsafe {
            mtu = query.__bindgen_anon_1.mtu_result;
            query.__bindgen_anon_1.tot_len = 1;
            answer = fib_lookup(skb.cast(), (&raw mut query).cast(), QUERY_LEN, 0);
        }
    }
    // SAFETY: the value is a number that nobody changes while the programs run.
    let is_lan = unsafe { TC_LANS.get(query.ifindex) }.is_some();
    match answer {
        FOUND | NO_NEIGHBOUR if is_lan && mtu != 0 => Some(Route::Narrow(u32::from(mtu))),
        FOUND | NO_NEIGHBOUR if is_lan => Some(Route::To(query.ifindex)),
        _ => None,
    }
}
