//! The public port of a packet that TC sends.

use aya_ebpf::bindings::__sk_buff;
use breakout_common::frame::Frame;
use breakout_common::nat::{quoted, rewritten};
use breakout_common::network::{Network, TCP, network};

use crate::globals;
use crate::nat::{UNKNOWN, known_port, port_for};
use crate::reader::Packet;

/// Stands for the port of what is not translated.
pub(crate) const NO_PORT: u32 = u32::MAX;
/// The packet is a fragment after the first, and has no port.
const OF_FIRST: u32 = 1 << 16;

/// The public port of a packet that leaves by an egress that translates: [`NO_PORT`] of IPv6, and of what is not sent; else as
/// [`port_for`]. A flow that has none gets one. An ICMP error has the port of the flow that it is about.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn breakout_port(skb: *mut __sk_buff, index: u32) -> u32 {
    // SAFETY: the context is the live socket buffer's; the verifier rewrites the accesses to its fields.
    let (start, end, len) = unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).len) };
    let packet = Packet::new(start, end, len).with_tag(super::tag(skb));
    match network(&packet) {
        Some(network) if !network.is_v6() && network.ttl > 1 && globals::is_to_lan(&packet) => {
            // What cannot be read does not leave as it is.
            port(&packet, &network, index).unwrap_or(UNKNOWN)
        }
        _ => NO_PORT,
    }
}

#[inline(always)]
fn port(packet: &Packet, network: &Network, index: u32) -> Option<u32> {
    if let Some(quoted) = quoted(packet, network) {
        let (client, client_port) = quoted.remote;
        let ports = u32::from(client_port) << 16 | u32::from(quoted.port);
        let (from, to) = (u64::from(client), network.destination.1);
        return Some(known_port(from, to, ports, quoted.is_tcp));
    }
    if rewritten(packet, network, false)?.port == 0 {
        return Some(OF_FIRST);
    }
    let transport = network.offset + network.header;
    let ports = u32::from_be_bytes(packet.read(transport)?);
    let is_tcp = network.protocol == TCP;
    let [flags] = if is_tcp {
        packet.read::<1>(transport + 13)?
    } else {
        [0]
    };
    let (from, to) = (network.source.1, network.destination.1);
    let way = ((index & 0xff) as u8, flags);
    Some(port_for(from, to, ports, is_tcp, way))
}
