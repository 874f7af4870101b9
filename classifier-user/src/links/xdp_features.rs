//! Whether an interface takes frames that XDP redirects to it, from the kernel's netdev family of generic netlink
//! (Linux 6.3, Documentation/netlink/specs/netdev.yaml).

use std::io;

use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

/// The family that tells the families' numbers, and what it is asked with (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Of the netdev family (linux/netdev.h).
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 1 << 2;

const NLM_F_REQUEST: u16 = 1;
/// Lengths of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 16 + 4;

/// Whether the interface takes redirected frames now. `None` if the kernel does not tell, as before Linux 6.3.
///
/// A network card may take them only while it has an XDP program of its own; a veth only while its peer has GRO or
/// an XDP program.
pub(super) fn takes_redirects(index: u32) -> Option<bool> {
    let family = ask(
        GENL_ID_CTRL,
        CTRL_CMD_GETFAMILY,
        CTRL_ATTR_FAMILY_NAME,
        b"netdev\0",
    )
    .ok()?;
    let family = attribute(&family, CTRL_ATTR_FAMILY_ID)?;
    let family = u16::from_ne_bytes(family.try_into().ok()?);
    let index = index.to_ne_bytes();
    let device = ask(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index).ok()?;
    let features = attribute(&device, NETDEV_A_DEV_XDP_FEATURES)?;
    let features = u64::from_ne_bytes(features.try_into().ok()?);
    Some(features & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

/// Sends a request with one attribute; returns the attributes of the answer.
fn ask(family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(family, command, kind, value), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // An error has the message type NLMSG_ERROR instead of the family's.
    let answered = answer
        .get(4..6)
        .map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    if answered != Some(family) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let attributes = answer.get(HEADERS..);
    attributes
        .map(<[u8]>::to_vec)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
    let padded = value.len().next_multiple_of(4);
    let mut message = Vec::with_capacity(HEADERS + 4 + padded);
    message.extend(u32::from(length(HEADERS + 4 + padded)).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: there is one request, and the kernel fills in the port.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(length(4 + value.len()).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(HEADERS + 4 + padded, 0);
    message
}

/// The value of the attribute of this kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while let [l0, l1, k0, k1, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_padded_ones() {
        let mut attributes = Vec::new();
        for (kind, value) in [(7u16, &b"abc"[..]), (3, &[1, 2, 3, 4, 5, 6, 7, 8])] {
            attributes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            attributes.extend(kind.to_ne_bytes());
            attributes.extend(value);
            attributes.resize(attributes.len().next_multiple_of(4), 0);
        }
        assert_eq!(attribute(&attributes, 7), Some(&b"abc"[..]));
        assert_eq!(
            attribute(&attributes, 3),
            Some(&[1, 2, 3, 4, 5, 6, 7, 8][..])
        );
        assert_eq!(attribute(&attributes, 4), None);
        // Lengths that lie lead nowhere.
        assert_eq!(attribute(&[2, 0, 9, 0], 1), None);
        assert_eq!(attribute(&[200, 0, 9, 0, 1], 9), None);
        assert_eq!(attribute(&[1], 1), None);
    }

    #[test]
    fn requests_are_aligned() {
        let message = request(0x10, 3, 2, b"netdev\0");
        assert_eq!(message.len(), 32);
        assert_eq!(message[..4], 32u32.to_ne_bytes());
        assert_eq!(message[20..24], [11, 0, 2, 0]);
    }
}
