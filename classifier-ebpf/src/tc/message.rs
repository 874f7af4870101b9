//! Translates ICMP errors, in their headers and in the packets that they quote (RFC 5508, section 4): one from the internet gets its client
//! back, and one about what came to a client gets its public address and port.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use breakout_common::nat::{Change, Quoted, adjusted, difference};
use breakout_common::network::Network;

/// Offsets in headers.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const HEADER_SUM: u32 = 10;
const ICMP_SUM: u32 = 2;

/// The bit above the client that says that TCP is quoted; UDP otherwise.
pub(crate) const IS_TCP: u64 = 1 << 48;

/// The bit above that which says that the quote has the checksum of TCP or UDP.
pub(crate) const HAS_SUM: u64 = 1 << 49;

/// The bit above that which says that the message leaves: its source is translated, and the destination of what it quotes.
pub(crate) const LEAVES: u64 = 1 << 50;

/// The places in a message as [`breakout_message`] takes them, and the bits above the address.
#[inline(always)]
pub(crate) fn parts(network: &Network, quoted: &Quoted) -> (u64, u64) {
    let end = network.offset + network.len;
    let places = u64::from(network.offset & 0xffff)
        | u64::from((network.offset + network.header) & 0xffff) << 16
        | u64::from(quoted.ip & 0xffff) << 32
        | u64::from(quoted.transport & 0xffff) << 48;
    let (kind, sum) = if quoted.is_tcp { (IS_TCP, 16) } else { (0, 6) };
    let has_sum = quoted.transport + sum + 2 <= end;
    (places, kind | if has_sum { HAS_SUM } else { 0 })
}

/// Writes an address and port into a message: the client's, or the public ones. `places` are those of the IP header, of the message, and
/// of the quoted headers, 16 bits each; `to` has the port, above it the address, both as they stand in packets, and above those
/// [`IS_TCP`], [`HAS_SUM`] and [`LEAVES`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_message(skb: *mut __sk_buff, places: u64, to: u64) -> u32 {
    u32::from(translate(skb, places, to).is_some())
}

#[inline(always)]
fn translate(skb: *mut __sk_buff, places: u64, to: u64) -> Option<()> {
    let place = |at: u32| (places >> at & 0xffff) as u32;
    let (ip, message, quoted_ip, transport) = (place(0), place(16), place(32), place(48));
    let (address, port) = ((to >> 16 & 0xffff_ffff) as u32, (to & 0xffff) as u16);
    let is_tcp = to & IS_TCP != 0;
    let (address_at, quoted_at, port_at) = if to & LEAVES != 0 {
        (ip + SOURCE, quoted_ip + DESTINATION, transport + 2)
    } else {
        (ip + DESTINATION, quoted_ip + SOURCE, transport)
    };
    let sum = message + ICMP_SUM;
    let before = load::<4>(skb, address_at).map(u32::from_ne_bytes)?;
    // SAFETY: the helper takes the live socket buffer, and checks its offset.
    unsafe {
        let (from, to) = (u64::from(before), u64::from(address));
        bpf_l3_csum_replace(skb.cast(), ip + HEADER_SUM, from, to, 4);
    }
    store(skb, address_at, address.to_ne_bytes());

    let change = Change {
        address: (load::<4>(skb, quoted_at).map(u32::from_ne_bytes)?, address),
        port: (load::<2>(skb, port_at).map(u16::from_ne_bytes)?, port),
    };
    let (of_header, of_both) = difference(&change);
    let header_sum = load::<2>(skb, quoted_ip + HEADER_SUM).map(u16::from_ne_bytes)?;
    replace(
        skb,
        sum,
        quoted_ip + HEADER_SUM,
        header_sum,
        adjusted(header_sum, of_header),
    );
    // SAFETY: as above.
    unsafe {
        let (from, to) = (u64::from(change.address.0), u64::from(address));
        bpf_l4_csum_replace(skb.cast(), sum, from, to, 4);
    }
    store(skb, quoted_at, address.to_ne_bytes());
    replace(skb, sum, port_at, change.port.0, port);
    // Of TCP the quote often ends before its checksum.
    let at = transport + if is_tcp { 16 } else { 6 };
    if to & HAS_SUM != 0
        && let Some(quoted_sum) = load::<2>(skb, at).map(u16::from_ne_bytes)
        && (is_tcp || quoted_sum != 0)
    {
        replace(skb, sum, at, quoted_sum, adjusted(quoted_sum, of_both));
    }
    Some(())
}

/// Replaces two bytes of the message, and sets its checksum right.
#[inline(always)]
fn replace(skb: *mut __sk_buff, sum: u32, at: u32, from: u16, to: u16) {
    // SAFETY: the helper takes the live socket buffer, and checks its offset.
    unsafe { bpf_l4_csum_replace(skb.cast(), sum, u64::from(from), u64::from(to), 2) };
    store(skb, at, to.to_ne_bytes());
}

#[inline(always)]
fn store<const N: usize>(skb: *mut __sk_buff, at: u32, bytes: [u8; N]) {
    #[expect(clippy::cast_possible_truncation, reason = "two bytes, or four")]
    let len = const { N as u32 };
    // SAFETY: the helper takes the live socket buffer, checks its offset, and reads N bytes.
    unsafe { bpf_skb_store_bytes(skb.cast(), at, bytes.as_ptr().cast(), len, 0) };
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, at: u32) -> Option<[u8; N]> {
    #[expect(clippy::cast_possible_truncation, reason = "two bytes, or four")]
    let len = const { N as u32 };
    let mut bytes = [0; N];
    // SAFETY: the helper writes N bytes, or fails.
    let loaded = unsafe { bpf_skb_load_bytes(skb.cast(), at, bytes.as_mut_ptr().cast(), len) };
    (loaded == 0).then_some(bytes)
}
