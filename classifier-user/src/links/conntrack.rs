//! The kernel's connection table, by ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::attributes::{find, put};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// IPv4 source and destination, then those of IPv6.
const IP: [u16; 4] = [1, 2, 3, 4];
const PROTO_NUM: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;
const PROTO_DESTINATION_PORT: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The bit of an attribute's type that says it holds others.
const NESTED: u16 = 1 << 15;
/// Lengths of `struct nlmsghdr` and `struct nfgenmsg`.
pub(super) const HEADER: usize = 16;
pub(super) const GENERIC: usize = 4;
/// No message of the kernel's dumps is longer (`NLMSG_GOODSIZE` and its sk_buff head room).
const RECEIVE: usize = 64 << 10;

/// True if any connection was in a zone when they were listed.
static ZONES_SEEN: AtomicBool = AtomicBool::new(false);

/// A TCP or UDP connection as its first packet had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The source address and port.
    pub source: (IpAddr, u16),
    /// The destination address and port.
    pub destination: (IpAddr, u16),
    /// The IP protocol's number: 6 or 17.
    pub protocol: u8,
    /// The source address that its packets leave with, if the kernel translates it.
    pub leaves_as: Option<IpAddr>,
    /// The zone of connection tracking that it is in; 0 without one.
    pub zone: u16,
}

impl Connection {
    /// The connection without what the kernel makes of it.
    pub fn untranslated(self) -> Self {
        Connection {
            leaves_as: None,
            zone: 0,
            ..self
        }
    }
}

/// All TCP and UDP connections that the kernel tracks in this network namespace; none if it tracks nothing.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn connections() -> Result<Vec<Connection>> {
    let mut found = Vec::new();
    for v6 in [false, true] {
        match dump(v6, &mut found) {
            // Nothing has asked for connection tracking since boot.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other.context("cannot list the tracked connections")?,
        }
    }
    Ok(found)
}

/// Looks connections up one by one, which is cheaper than listing all where there are few. Those that the kernel does not track
/// are left out.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn look_up(connections: impl IntoIterator<Item = Connection>) -> Result<Vec<Connection>> {
    let socket = open().context("cannot open a netfilter socket")?;
    let mut found = Vec::new();
    for wanted in connections {
        let v6 = wanted.source.0.is_ipv6();
        let request = message(GET, NLM_F_REQUEST, v6, &tuple(&wanted));
        let answer = socket
            .send(&request, 0)
            .and_then(|_| socket.recv_from_full())
            .context("cannot look up a tracked connection")?
            .0;
        let mut rest = answer.as_slice();
        while let Some((kind, one)) = next(&mut rest) {
            if kind != NLMSG_ERROR && kind != NLMSG_DONE {
                found.extend(one.get(HEADER + GENERIC..).and_then(connection));
            }
        }
    }
    Ok(found)
}

/// Has the kernel forget connections, so that their next packets are translated afresh. Those that are not there are fine. Those without
/// a zone are looked for in all zones if they are in none, once a connection in a zone was listed.
///
/// # Errors
///
/// When the kernel refuses.
pub fn forget(connections: &[Connection]) -> Result<()> {
    if connections.is_empty() {
        return Ok(());
    }
    let missing = forget_in_their_zones(connections)?;
    // To list all takes long where there are many.
    let elsewhere = match missing.is_empty() || !ZONES_SEEN.load(Ordering::Relaxed) {
        true => Vec::new(),
        false => self::connections()?,
    };
    let is_missing =
        |found: &Connection| found.zone != 0 && missing.contains(&found.untranslated());
    let elsewhere: Vec<_> = elsewhere.into_iter().filter(is_missing).collect();
    forget_in_their_zones(&elsewhere).map(drop)
}

/// Forgets connections. Returns those without a zone that were not there.
fn forget_in_their_zones(connections: &[Connection]) -> Result<HashSet<Connection>> {
    let socket = open().context("cannot open a netfilter socket")?;
    let mut missing = HashSet::new();
    let mut outcome = Ok(());
    for connection in connections {
        let v6 = connection.source.0.is_ipv6();
        let request = message(DELETE, NLM_F_REQUEST | NLM_F_ACK, v6, &tuple(connection));
        let answered = socket
            .send(&request, 0)
            .and_then(|_| socket.recv_from_full());
        let answer = answered.map(|(answer, _)| error_of(&answer));
        let error = answer.unwrap_or_else(Some);
        match error.filter(|error| error.raw_os_error() != Some(0)) {
            None => {}
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                missing.extend((connection.zone == 0).then(|| connection.untranslated()));
            }
            // The others are forgotten all the same.
            Some(error) => outcome = Err(error),
        }
    }
    outcome
        .map(|()| missing)
        .context("cannot forget a tracked connection")
}

/// The attribute that names a connection.
fn tuple(connection: &Connection) -> Vec<u8> {
    let mut addresses = Vec::new();
    for (address, kind) in [(connection.source.0, 0), (connection.destination.0, 1)] {
        match address {
            IpAddr::V4(address) => put(&mut addresses, IP[kind], &address.octets()),
            IpAddr::V6(address) => put(&mut addresses, IP[kind + 2], &address.octets()),
        }
    }
    let mut protocol = Vec::new();
    put(&mut protocol, PROTO_NUM, &[connection.protocol]);
    for (port, kind) in [
        (connection.source.1, PROTO_SOURCE_PORT),
        (connection.destination.1, PROTO_DESTINATION_PORT),
    ] {
        put(&mut protocol, kind, &port.to_be_bytes());
    }
    let mut tuple = Vec::new();
    put(&mut tuple, TUPLE_IP | NESTED, &addresses);
    put(&mut tuple, TUPLE_PROTO | NESTED, &protocol);
    let mut attributes = Vec::new();
    put(&mut attributes, TUPLE_ORIG | NESTED, &tuple);
    if connection.zone != 0 {
        put(&mut attributes, ZONE, &connection.zone.to_be_bytes());
    }
    attributes
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn dump(v6: bool, found: &mut Vec<Connection>) -> io::Result<()> {
    let socket = open()?;
    socket.send(&message(GET, NLM_F_REQUEST | NLM_F_DUMP, v6, &[]), 0)?;
    let mut buffer = Vec::with_capacity(RECEIVE);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some((kind, one)) = next(&mut rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return Err(error_of(one).unwrap_or(io::ErrorKind::InvalidData.into()));
                }
                _ => found.extend(one.get(HEADER + GENERIC..).and_then(connection)),
            }
        }
        if buffer.is_empty() {
            return Ok(());
        }
    }
}

/// Takes the next message off a datagram.
pub(super) fn next<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let one = rest.get(..length).filter(|one| one.len() >= HEADER)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, one))
}

/// The error that a message of the type `NLMSG_ERROR` tells of; number 0 for success.
fn error_of(message: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(message.get(HEADER..HEADER + 4)?.try_into().ok()?);
    Some(io::Error::from_raw_os_error(code.wrapping_neg()))
}

/// See [`read_any`](super::read_any).
pub(super) fn read_any(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((_, message)) = next(&mut rest) {
        let _ = error_of(message);
        let _ = message.get(HEADER + GENERIC..).and_then(connection);
    }
}

fn message(kind: u16, flags: u16, v6: bool, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERIC + attributes.len()).unwrap_or(u32::MAX);
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let mut message = Vec::with_capacity(HEADER + GENERIC + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: there is one request, and the kernel fills in the port.
    message.extend([0; 8]);
    message.extend([u8::try_from(family).unwrap_or(0), 0, 0, 0]);
    message.extend(attributes);
    message
}

/// The connection that an entry's attributes describe, if it is TCP or UDP.
fn connection(attributes: &[u8]) -> Option<Connection> {
    let tuple = find(attributes, TUPLE_ORIG)?;
    let (addresses, protocol) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTO)?);
    let port = |kind: u16| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
    let [number] = *find(protocol, PROTO_NUM)? else {
        return None;
    };
    if !matches!(number, 6 | 17) {
        return None;
    }
    let source = address(addresses, 0)?;
    let zone = find(attributes, ZONE).and_then(|zone| zone.try_into().ok());
    let zone = zone.map_or(0, u16::from_be_bytes);
    if zone != 0 {
        ZONES_SEEN.store(true, Ordering::Relaxed);
    }
    let reply = find(attributes, TUPLE_REPLY).and_then(|tuple| find(tuple, TUPLE_IP));
    let leaves_as = reply.and_then(|addresses| address(addresses, 1));
    Some(Connection {
        source: (source, port(PROTO_SOURCE_PORT)?),
        destination: (address(addresses, 1)?, port(PROTO_DESTINATION_PORT)?),
        protocol: number,
        leaves_as: leaves_as.filter(|address| *address != source),
        zone,
    })
}

/// The source (0) or destination (1) of a tuple's addresses.
fn address(addresses: &[u8], at: usize) -> Option<IpAddr> {
    if let Some(octets) = find(addresses, IP[at]) {
        return Some(<[u8; 4]>::try_from(octets).ok()?.into());
    }
    let octets = find(addresses, IP[at + 2])?;
    Some(<[u8; 16]>::try_from(octets).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_parse_is_no_connection() {
        assert_eq!(connection(&[]), None);
        let mut tuple = Vec::new();
        let mut protocol = Vec::new();
        put(&mut protocol, PROTO_NUM, &[47]);
        put(&mut tuple, TUPLE_IP | NESTED, &[]);
        put(&mut tuple, TUPLE_PROTO | NESTED, &protocol);
        let mut attributes = Vec::new();
        put(&mut attributes, TUPLE_ORIG | NESTED, &tuple);
        for length in 0..=attributes.len() {
            assert_eq!(connection(&attributes[..length]), None);
        }
        let mut rest: &[u8] = &[255, 0, 0, 0, 1, 2];
        assert_eq!(next(&mut rest), None);
    }
}
