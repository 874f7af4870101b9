//! Check whether an interface takes frames that XDP redirects to it, from the kernel's netdev family of generic netlink
//! (Linux 6.3, Documentation/netlink/specs/netdev.yaml).

use std::io;

use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

use super::attributes::{find, put};

/// The family that tells the families' numbers, and what it is asked with (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Of the netdev family (linux/netdev.h).
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 1 << 2;

const NLM_F_REQUEST: u16 = 1;
/// Lengths of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 16 + 4;

/// Returns whether the interface takes redirected frames now. `None` if the kernel does not tell, as before Linux 6.3.
///
/// A network card may take them only while it has an XDP program of its own; a veth only while its peer has GRO or
/// an XDP program.
pub(super) fn takes_redirects(index: u32) -> Option<bool> {
    features(index).map(|features| features & NETDEV_XDP_ACT_NDO_XMIT != 0)
}

/// Returns whether its driver runs XDP programs. `None` as above.
pub(super) fn has_native_xdp(index: u32) -> Option<bool> {
    features(index).map(|features| features & NETDEV_XDP_ACT_BASIC != 0)
}

fn features(index: u32) -> Option<u64> {
    let family = ask(
        GENL_ID_CTRL,
        CTRL_CMD_GETFAMILY,
        CTRL_ATTR_FAMILY_NAME,
        b"netdev\0",
    )
    .ok()?;
    let family = find(&family, CTRL_ATTR_FAMILY_ID)?;
    let family = u16::from_ne_bytes(family.try_into().ok()?);
    let index = index.to_ne_bytes();
    let device = ask(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index).ok()?;
    let features = find(&device, NETDEV_A_DEV_XDP_FEATURES)?;
    Some(u64::from_ne_bytes(features.try_into().ok()?))
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
    let mut attributes = Vec::new();
    put(&mut attributes, kind, value);
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: there is one request, and the kernel fills in the port.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_aligned() {
        let message = request(0x10, 3, 2, b"netdev\0");
        assert_eq!(message.len(), 32);
        assert_eq!(message[..4], 32u32.to_ne_bytes());
        assert_eq!(message[20..24], [11, 0, 2, 0]);
    }
}
