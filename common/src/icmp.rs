//! ICMP errors of clients, and of routers behind the LAN, about what comes to clients (RFC 792, RFC 4443). They take the way of the flow
//! that they are about: of path MTU discovery (RFC 1191, RFC 8201) a server hears only what comes from the address that it knows.

use crate::ethernet::ethernet;
use crate::frame::Frame;
use crate::nat::quoted;
use crate::network::{FRAGMENT, Network, TCP, UDP};
use crate::packet::{Headers, V6};
use crate::path::Flow;
use crate::table::Transport;

/// The protocol number of ICMPv6.
const ICMPV6: u32 = 58;
/// The length of its header, and of that of ICMP, in bytes.
const MESSAGE_LEN: u32 = 8;
/// The length of an IPv6 header in bytes.
const IPV6_LEN: u32 = 40;

/// The flow that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The headers of the quoted packet, turned round as if its receiver had sent it: what they lead to is the sender, and
    /// [`source`](crate::classify::source) reads the receiver.
    pub headers: Headers,
    /// The ports, turned round as well, as [`Flow::ports`] has them.
    pub ports: u64,
}

/// Reads which flow a packet is an error about. `None` if it is none, or is not on its way to who sent the packet that it quotes.
#[inline(always)]
pub fn about<F: Frame + ?Sized>(frame: &F, network: &Network) -> Option<About> {
    let (ip, transport, is_tcp) = if network.is_v6() {
        quoted_v6(frame, network)?
    } else {
        let quoted = quoted(frame, network)?;
        (quoted.ip, quoted.transport, quoted.is_tcp)
    };
    let (sender, source_at) = if network.is_v6() {
        let half = |at: u32| frame.read(at).map(u64::from_be_bytes);
        // `source` looks 8 bytes behind, where the destination is.
        ((half(ip + 8)?, half(ip + 16)?), ip + 16)
    } else {
        let address = u32::from_be_bytes(frame.read(ip + 12)?);
        ((0, u64::from(address)), ip + 4)
    };
    if sender != network.destination {
        return None;
    }
    let [s0, s1, d0, d1] = frame.read(transport)?;
    let (from, to) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    let vlan = ethernet(frame).ok()?.vlan;
    let transport_kind = if is_tcp {
        Transport::Tcp
    } else {
        Transport::Udp
    };
    Some(About {
        headers: Headers {
            ip_offset: source_at,
            ip_len: 0,
            transport_offset: transport,
            ttl: 0,
            halves: sender,
            key: frame.blur(transport_kind.key(from)),
            marks: frame.blur(if network.is_v6() { V6 } else { 0 }),
            fragment_header: frame.blur(0),
            vlan: frame.blur(vlan),
        },
        ports: Flow::ports(to, from),
    })
}

/// Returns where an ICMPv6 error quotes an IPv6 header and the TCP or UDP header behind it, and whether that is TCP.
#[inline(always)]
fn quoted_v6<F: Frame + ?Sized>(frame: &F, network: &Network) -> Option<(u32, u32, bool)> {
    if network.protocol != ICMPV6 || network.marks & FRAGMENT != 0 {
        return None;
    }
    let message = frame.blur(network.offset + network.header);
    let [kind] = frame.read::<1>(message)?;
    let ip = message + MESSAGE_LEN;
    let [version] = frame.read::<1>(ip)?;
    let [protocol] = frame.read::<1>(ip + 6)?;
    // Destination unreachable, packet too big, time exceeded, parameter problem.
    if !matches!(kind, 1..=4) || version >> 4 != 6 {
        return None;
    }
    match u32::from(protocol) {
        TCP => Some((ip, ip + IPV6_LEN, true)),
        UDP => Some((ip, ip + IPV6_LEN, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::classify::source;
    use crate::network::network;

    /// A packet to a client, with the first bytes of UDP.
    fn quoted_packet(v6: bool) -> Vec<u8> {
        let mut packet = if v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
            header.extend([0x26, 0x03, 0x10, 0x63, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            header.extend([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            header
        } else {
            let mut header = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
            header.extend([52, 113, 0, 1, 10, 1, 0, 2]);
            header
        };
        packet.extend([0x0d, 0x96, 0xc3, 0x54, 0, 8, 0, 0]);
        packet
    }

    /// An error about it, by a router.
    fn error(v6: bool, kind: u8) -> Vec<u8> {
        let quoted = quoted_packet(v6);
        let payload = u8::try_from(quoted.len()).unwrap() + 8;
        let mut frame = vec![0; 12];
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, payload, 58, 64]);
            frame.extend([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
            frame.extend(&quoted[8..24]);
        } else {
            let len = 20 + payload;
            frame.extend([8, 0, 0x45, 0, 0, len, 0, 0, 0, 0, 64, 1, 0, 0, 10, 1, 0, 7]);
            frame.extend(&quoted[12..16]);
        }
        frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(quoted);
        frame
    }

    fn read(frame: &[u8]) -> Option<About> {
        about(frame, &network(frame).unwrap())
    }

    #[test]
    fn an_error_is_about_the_flow_of_the_client() {
        for (v6, kinds, client) in [
            (false, [3, 11, 12], (0, 0x0a01_0002)),
            (true, [1, 2, 3], (0xfd00_0001_0000_0000, 2)),
        ] {
            for kind in kinds {
                let frame = error(v6, kind);
                let about = read(&frame).unwrap();
                assert_eq!(source(frame.as_slice(), &about.headers), Some(client));
                assert_eq!(
                    about.headers.halves,
                    network(frame.as_slice()).unwrap().destination
                );
                assert_eq!(about.headers.key, Transport::Udp.key(3478));
                assert_eq!(about.headers.is_v6(), v6);
                assert_eq!(about.ports, Flow::ports(50004, 3478));
            }
        }
    }

    #[test]
    fn what_is_no_error_to_the_sender_is_about_nothing() {
        for v6 in [false, true] {
            let good = error(v6, 3);
            assert!(read(&good).is_some());
            for kind in [0, 8, 128, 129, 135] {
                assert_eq!(read(&error(v6, kind)), None, "{kind}");
            }
            let mut elsewhere = good.clone();
            elsewhere[if v6 { 53 } else { 33 }] ^= 1;
            assert_eq!(read(&elsewhere), None);
            for len in 34..good.len() {
                let cut = &good[..len];
                if let Some(network) = network(cut) {
                    assert!(about(cut, &network).is_none() || len >= good.len() - 4);
                }
            }
        }
    }
}
