//! Packets of other link types as the Ethernet frames that the header walk reads.

use anyhow::{Result, bail};
use pcap_parser::Linktype;

use super::Captured;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERNET_LEN: u32 = 14;

/// Turns a packet of `len` bytes, of which `bytes` were captured, into an Ethernet frame.
///
/// The link types are those of <https://www.tcpdump.org/linktypes.html>: Ethernet, Linux "cooked" (1 and 2) and raw IP.
///
/// # Errors
///
/// When the link type is another one.
pub(super) fn to_ethernet(link: Linktype, bytes: &[u8], len: u32) -> Result<Captured> {
    let len = len.max(u32::try_from(bytes.len())?);
    match link {
        Linktype::ETHERNET => Ok(Captured {
            bytes: bytes.to_vec(),
            len,
        }),
        // LINKTYPE_LINUX_SLL: the packet's type in the first two of 16 bytes, its protocol in the last two.
        Linktype::LINUX_SLL => Ok(cooked(bytes, len, 16, 0, 14)),
        // LINKTYPE_LINUX_SLL2: the protocol in the first two of 20 bytes, the type in the eleventh.
        LINUX_SLL2 => Ok(cooked(bytes, len, 20, 9, 0)),
        Linktype::RAW | Linktype(12 | 14) => {
            let is_v6 = bytes.first().is_some_and(|first| first >> 4 == 6);
            let ethertype = if is_v6 {
                ETHERTYPE_IPV6
            } else {
                ETHERTYPE_IPV4
            };
            Ok(framed(false, ethertype, bytes, len))
        }
        Linktype::IPV4 => Ok(framed(false, ETHERTYPE_IPV4, bytes, len)),
        Linktype::IPV6 => Ok(framed(false, ETHERTYPE_IPV6, bytes, len)),
        Linktype(other) => bail!(
            "link type {other} is not known here: capture on one interface, with an Ethernet, Linux cooked or raw IP link type"
        ),
    }
}

const LINUX_SLL2: Linktype = Linktype(276);

/// A packet behind a cooked header of `header` bytes with these fields. The type's byte is 0 for packets to this host, 1 for
/// broadcast, 2 for multicast.
fn cooked(bytes: &[u8], len: u32, header: usize, packet_type: usize, protocol: usize) -> Captured {
    let Some(packet) = bytes.get(header..) else {
        // Cut off in its header, and an empty frame is that too.
        return Captured {
            bytes: Vec::new(),
            len,
        };
    };
    let kind = bytes[packet_type + 1];
    let ethertype = [bytes[protocol], bytes[protocol + 1]];
    let len = len.saturating_sub(u32::try_from(header).unwrap_or(0));
    framed(kind == 1 || kind == 2, ethertype, packet, len)
}

/// A packet with an Ethernet header before it.
fn framed(is_group: bool, ethertype: [u8; 2], packet: &[u8], len: u32) -> Captured {
    let mut bytes = vec![0; 12];
    bytes[0] = u8::from(is_group);
    bytes.extend(ethertype);
    bytes.extend(packet);
    Captured {
        bytes,
        len: len.saturating_add(ETHERNET_LEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_type_becomes_the_same_frame() {
        let ip = [&[0x45, 0, 0, 28][..], &[7; 24]].concat();
        let expected = [&[0; 12][..], &[8, 0], &ip].concat();
        let cooked = [&[0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 8, 0][..], &ip].concat();
        let cooked2 = [
            &[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0][..],
            &ip,
        ]
        .concat();
        for (link, bytes) in [
            (Linktype::ETHERNET, &expected),
            (Linktype::LINUX_SLL, &cooked),
            (LINUX_SLL2, &cooked2),
            (Linktype::RAW, &ip),
            (Linktype::IPV4, &ip),
        ] {
            let length = u32::try_from(bytes.len()).unwrap();
            let captured = to_ethernet(link, bytes, length + 100).unwrap();
            assert_eq!(captured.bytes, expected, "{link:?}");
            assert_eq!(captured.len, 142, "{link:?}");
        }
        assert!(to_ethernet(Linktype(105), &ip, 28).is_err());
        assert!(
            to_ethernet(Linktype::LINUX_SLL, &[0; 9], 40)
                .unwrap()
                .bytes
                .is_empty()
        );
    }

    #[test]
    fn cooked_broadcasts_stay_broadcasts() {
        let mut cooked = vec![0; 44];
        cooked[1] = 1;
        assert_eq!(
            to_ethernet(Linktype::LINUX_SLL, &cooked, 44).unwrap().bytes[0],
            1
        );
        let mut cooked2 = vec![0; 48];
        cooked2[10] = 2;
        assert_eq!(to_ethernet(LINUX_SLL2, &cooked2, 48).unwrap().bytes[0], 1);
    }
}
