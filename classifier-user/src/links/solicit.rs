//! Questions for the MAC address of a next hop. The kernel asks the address that it knows first, for some seconds, so it finds one that
//! has changed without an announcement late; an answer to these questions updates its entry all the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};

use etherparse::{ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Sender of a solicitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The index of the interface.
    pub interface: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IPv4 address, for questions about IPv4 addresses.
    pub v4: Ipv4Addr,
}

/// Asks. It keeps its packet socket open: to close one takes the kernel milliseconds, for which fail-over would wait.
#[derive(Debug, Default)]
pub struct Solicitor {
    packets: Option<Socket>,
}

impl Solicitor {
    /// Asks all stations of the link for the MAC address of a neighbour, by ARP (RFC 826) or neighbour discovery (RFC 4861). Does not
    /// wait for the answer, which the kernel takes.
    ///
    /// # Errors
    ///
    /// When the kernel does not send.
    pub fn solicit(&mut self, asker: &Asker, neighbour: IpAddr) -> io::Result<()> {
        match neighbour {
            IpAddr::V4(address) => {
                let socket = match self.packets.take() {
                    Some(socket) => socket,
                    // Without a protocol it receives nothing.
                    None => Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?,
                };
                let sent = socket.send_to(&arp_request(asker, address), &asker.broadcast());
                self.packets = Some(socket);
                sent
            }
            IpAddr::V6(address) => {
                let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
                // RFC 4861, section 7.1.1: others are ignored.
                socket.set_multicast_hops_v6(255)?;
                socket.set_multicast_loop_v6(false)?;
                let to = SocketAddrV6::new(solicited_node(address), 0, 0, asker.interface);
                socket.send_to(&solicitation(asker.mac, address), &to.into())
            }
        }?;
        Ok(())
    }
}

impl Asker {
    /// All stations of the link, for a packet socket.
    fn broadcast(&self) -> SockAddr {
        const FAMILY: libc::sa_family_t = 17;
        const LENGTH: libc::socklen_t = 20;
        const _: () = assert!(libc::AF_PACKET == 17 && size_of::<libc::sockaddr_ll>() == 20);
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: sockaddr_ll is a socket address of Linux, so the storage is large enough and aligned for it.
        let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        address.sll_family = FAMILY;
        address.sll_protocol = EtherType::ARP.0.to_be();
        address.sll_ifindex = self.interface.cast_signed();
        // SAFETY: the storage has a sockaddr_ll, whose length this is.
        unsafe { SockAddr::new(storage, LENGTH) }
    }
}

/// The frame with the question who has an IPv4 address.
fn arp_request(asker: &Asker, address: Ipv4Addr) -> Vec<u8> {
    let header = Ethernet2Header {
        destination: [0xff; 6],
        source: asker.mac,
        ether_type: EtherType::ARP,
    };
    let question = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: asker.mac,
        sender_ipv4: asker.v4.octets(),
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    [&header.to_bytes()[..], &question.to_bytes()[..]].concat()
}

/// The group of all nodes that may have an address (RFC 4291, section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

/// The neighbour solicitation for an IPv6 address, with the asker's MAC address (RFC 4861, section 4.3). The kernel fills in the checksum.
fn solicitation(mac: [u8; 6], address: Ipv6Addr) -> [u8; 32] {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const SOURCE_LINK_LAYER_ADDRESS: [u8; 2] = [1, 1];
    let mut message = [0; 32];
    message[0] = NEIGHBOUR_SOLICITATION;
    message[8..24].copy_from_slice(&address.octets());
    message[24..26].copy_from_slice(&SOURCE_LINK_LAYER_ADDRESS);
    message[26..].copy_from_slice(&mac);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_services_may_open_packet_sockets() {
        for service in [
            include_str!("../../../dist/breakout.service"),
            include_str!("../../../dist/breakout-datapath.service"),
        ] {
            let families = service
                .lines()
                .find_map(|line| line.strip_prefix("RestrictAddressFamilies="));
            assert!(
                families
                    .unwrap()
                    .split(' ')
                    .any(|family| family == "AF_PACKET")
            );
        }
    }

    #[test]
    fn questions_are_as_the_standards_have_them() {
        let asker = Asker {
            interface: 2,
            mac: [2, 0, 0, 0, 0, 1],
            v4: Ipv4Addr::new(10, 3, 0, 1),
        };
        let frame = arp_request(&asker, Ipv4Addr::new(10, 3, 0, 2));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..32], [2, 0, 0, 0, 0, 1, 10, 3, 0, 1]);
        assert_eq!(frame[32..], [0, 0, 0, 0, 0, 0, 10, 3, 0, 2]);
        let group = solicited_node("2001:db8::12:3456".parse().unwrap());
        assert_eq!(group, "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        let message = solicitation(asker.mac, "fe80::1".parse().unwrap());
        assert_eq!((message[0], message[9], message[23]), (135, 0x80, 1));
        assert_eq!(message[24..], [1, 1, 2, 0, 0, 0, 0, 1]);
    }
}
