//! Translates addresses and ports in a socket buffer, whatever the kernel and the card have done about its checksums.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};
use breakout_common::frame::Frame;
use breakout_common::nat::{quoted, rewritten};
use breakout_common::network::Network;

use super::message::{LEAVES, breakout_message, parts};
use crate::reader::Packet;

/// A change of an address and a port, in words of the machine's byte order, and where; see
/// [`Rewritten`](breakout_common::nat::Rewritten).
#[derive(Clone, Copy)]
pub(crate) struct Translation {
    /// The places of the address, of the header's checksum, of the port and of the checksum, 16 bits each. Of a message those that
    /// [`parts`] has.
    places: u64,
    /// The address before, above that of now.
    address: u64,
    /// The port before, above that of now; and above them whether it is UDP. Of a message the port of now, and the bits that go with it.
    port: u64,
}

const UDP: u64 = 1 << 32;

impl Translation {
    /// The translation of a packet's source, or with `of_destination` its destination, to an address. `None` if the packet is not what
    /// `network` was read from.
    #[inline(always)]
    pub(crate) fn of(
        packet: &Packet,
        network: &Network,
        of_destination: bool,
        address: u32,
    ) -> Option<Self> {
        let places = rewritten(packet, network, of_destination)?;
        let before = u32::from_ne_bytes(packet.read(places.address)?);
        let mut port = if places.is_udp { UDP } else { 0 };
        if places.port != 0 {
            port |= u64::from(u16::from_ne_bytes(packet.read(places.port)?)) << 16;
        }
        let packed = u64::from(places.address & 0xffff)
            | u64::from(places.header_sum & 0xffff) << 16
            | u64::from(places.port & 0xffff) << 32
            | u64::from(places.sum & 0xffff) << 48;
        Some(Translation {
            places: packed,
            address: u64::from(before) << 32 | u64::from(address),
            port,
        })
    }

    /// The translation of an ICMP error that leaves, to an address. `None` if the packet is none.
    #[inline(always)]
    pub(crate) fn of_message(packet: &Packet, network: &Network, address: u32) -> Option<Self> {
        let (places, kind) = parts(network, &quoted(packet, network)?);
        Some(Translation {
            places,
            address: u64::from(address),
            port: kind | LEAVES,
        })
    }

    /// Tells whether there is a port, as in all but later fragments.
    #[inline(always)]
    pub(crate) fn has_port(&self) -> bool {
        self.places >> 32 & 0xffff != 0
    }

    /// Sets the port of now, which stands in the packet so.
    #[inline(always)]
    pub(crate) fn set_port(&mut self, port: u16) {
        self.port |= u64::from(port);
    }

    /// Carries it out. Nothing of the packet that was read before may be used after this.
    #[inline(always)]
    pub(crate) fn apply(self, skb: *mut __sk_buff) {
        if self.port & LEAVES == 0 {
            breakout_rewrite(skb, self.places, self.address, self.port);
        } else {
            breakout_message(skb, self.places, self.address << 16 | self.port);
        }
    }
}

/// Carries a translation out.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_rewrite(
    skb: *mut __sk_buff,
    places: u64,
    addresses: u64,
    ports: u64,
) -> u32 {
    let place = |at: u32| (places >> at & 0xffff) as u32;
    let (address_at, header_sum_at, port_at, sum_at) = (place(0), place(16), place(32), place(48));
    let (before, now) = (addresses >> 32, addresses & 0xffff_ffff);
    let (port_before, port_now) = (ports >> 16 & 0xffff, ports & 0xffff);
    // A UDP checksum of 0 stays, and one that becomes 0 is written with ones.
    let flags = if ports & UDP != 0 {
        u64::from(BPF_F_MARK_MANGLED_0)
    } else {
        0
    };
    let (address, port) = ((now & 0xffff_ffff) as u32, (port_now & 0xffff) as u16);
    // SAFETY: the helpers take the live socket buffer, check their offsets, and read as many bytes as they are told of variables that
    // have so many.
    unsafe {
        bpf_l3_csum_replace(skb.cast(), header_sum_at, before, now, 4);
        if port_at != 0 {
            let of_address = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
            bpf_l4_csum_replace(skb.cast(), sum_at, before, now, of_address);
            bpf_l4_csum_replace(skb.cast(), sum_at, port_before, port_now, flags | 2);
            bpf_skb_store_bytes(skb.cast(), port_at, (&raw const port).cast(), 2, 0);
        }
        bpf_skb_store_bytes(skb.cast(), address_at, (&raw const address).cast(), 4, 0);
    }
    0
}
