//! Gives an ICMP error about a translated packet its client back: in its header, and in the packet that it quotes (RFC 5508, section 4.2).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use breakout_common::nat::{Change, adjusted, difference};

/// Where things are in headers.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const HEADER_SUM: u32 = 10;
const ICMP_SUM: u32 = 2;

/// The bit above the client that says that TCP is quoted; UDP otherwise.
pub(crate) const IS_TCP: u64 = 1 << 48;

/// The bit above that which says that the quote has the checksum of TCP or UDP.
pub(crate) const HAS_SUM: u64 = 1 << 49;

/// Writes the client into a message. `places` are those of the IP header, of the message, and of the quoted headers, 16 bits each;
/// `client` has the port, above it the address, both as they stand in packets, and above those [`IS_TCP`] and [`HAS_SUM`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_message(skb: *mut __sk_buff, places: u64, client: u64) -> u32 {
    u32::from(restore(skb, places, client).is_some())
}

#[inline(always)]
fn restore(skb: *mut __sk_buff, places: u64, client: u64) -> Option<()> {
    let place = |at: u32| (places >> at & 0xffff) as u32;
    let (ip, message, quoted_ip, transport) = (place(0), place(16), place(32), place(48));
    let (address, port) = (
        (client >> 16 & 0xffff_ffff) as u32,
        (client & 0xffff) as u16,
    );
    let is_tcp = client & IS_TCP != 0;
    let sum = message + ICMP_SUM;
    let before = load::<4>(skb, ip + DESTINATION).map(u32::from_ne_bytes)?;
    // SAFETY: the helper takes the live socket buffer, and checks its offset.
    unsafe {
        let (from, to) = (u64::from(before), u64::from(address));
        bpf_l3_csum_replace(skb.cast(), ip + HEADER_SUM, from, to, 4);
    }
    store(skb, ip + DESTINATION, address.to_ne_bytes());

    let change = Change {
        address: (
            load::<4>(skb, quoted_ip + SOURCE).map(u32::from_ne_bytes)?,
            address,
        ),
        port: (load::<2>(skb, transport).map(u16::from_ne_bytes)?, port),
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
    store(skb, quoted_ip + SOURCE, address.to_ne_bytes());
    replace(skb, sum, transport, change.port.0, port);
    // Of TCP the quote often ends before its checksum.
    let at = transport + if is_tcp { 16 } else { 6 };
    if client & HAS_SUM != 0
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
