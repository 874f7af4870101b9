//! Link events: what the kernel tells of interfaces, neighbours, addresses, routes and rules (linux/rtnetlink.h).
//!
//! Two sockets, so that a routing table that changes thousands of times a second cannot delay the news that a link is
//! down: [`Facts`] tells what fail-over goes by, [`Changes`] that routes or rules have changed that matter here.

use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::watch;
use tokio::time::sleep;

use super::attributes::{all, find};
use super::conntrack::{HEADER, next};
use super::neighbour::Neighbour;

/// Time for which further changes are gathered before the first one is told of. A link that comes up brings dozens.
const GATHER: Duration = Duration::from_millis(20);
/// Room for messages that wait, in bytes: what `ip -batch` makes in a fraction of a second.
const RECEIVE_BUFFER: usize = 4 << 20;

const LINK: u32 = 1;
const NEIGHBOUR: u32 = 3;
const ADDRESSES: [u32; 2] = [5, 9];
const ROUTES: [u32; 2] = [7, 11];
const RULES: [u32; 2] = [8, 19];

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;

/// Lengths of `struct ifinfomsg`, `struct ndmsg` and `struct rtmsg`.
const IFINFO: usize = 16;
const NDMSG: usize = 12;
const RTMSG: usize = 12;
/// `AF_UNSPEC`.
const UNSPEC: u8 = 0;
/// `IFF_UP` and `IFF_LOWER_UP`: set up, with a carrier.
const RUNNING: u32 = 1 | 1 << 16;
const IFLA_IFNAME: u16 = 3;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;

/// Something that the kernel says is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// An interface, with whether it is set up and has a carrier.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// True if packets can leave by it.
        running: bool,
    },
    /// A neighbour.
    Neighbour {
        /// The interface's index.
        index: u32,
        /// Its address.
        address: IpAddr,
        /// Its entry in the kernel now.
        neighbour: Neighbour,
    },
    /// An address has come or gone.
    Address,
    /// There was more than the kernel could tell: everything may have changed.
    Lost,
}

/// A subscription to the facts that fail-over goes by.
pub struct Facts {
    socket: TokioSocket,
}

impl Facts {
    /// Subscribes to those of the network namespace of this thread. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub fn watch() -> Result<Self> {
        let groups = [&[LINK, NEIGHBOUR], &ADDRESSES[..]].concat();
        Ok(Facts {
            socket: subscribe(&groups)?,
        })
    }

    /// Waits for the next facts, in their order. May be dropped at any time without losing one.
    ///
    /// # Errors
    ///
    /// When the kernel tells nothing any more.
    pub async fn next(&mut self) -> io::Result<Vec<Fact>> {
        loop {
            let Some(datagram) = receive(&mut self.socket).await? else {
                return Ok(vec![Fact::Lost]);
            };
            let mut facts = Vec::new();
            let mut rest = datagram.as_slice();
            while let Some((kind, message)) = next(&mut rest) {
                facts.extend(fact(kind, message));
            }
            if !facts.is_empty() {
                return Ok(facts);
            }
        }
    }
}

/// Part of the routing that concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Indices of the interfaces whose routes are looked at.
    pub interfaces: Vec<u32>,
    /// Our own tables.
    pub tables: Range<u32>,
}

/// Tells that routes or rules have changed that concern us.
pub struct Changes {
    receiver: watch::Receiver<()>,
    interest: Arc<Mutex<Interest>>,
}

impl Changes {
    /// Subscribes to changes in the network namespace of this thread. Until an [`Interest`] is set, none concerns us.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub fn watch() -> Result<Self> {
        let mut socket = subscribe(&[ROUTES, RULES].concat())?;
        let (sender, receiver) = watch::channel(());
        let interest = Arc::new(Mutex::new(Interest::default()));
        let shared = Arc::clone(&interest);
        tokio::spawn(async move {
            loop {
                let concerns = match receive(&mut socket).await {
                    Ok(Some(datagram)) => {
                        let interest = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        concerns(&datagram, &interest)
                    }
                    Ok(None) => true,
                    // The controller still looks at regular times.
                    Err(error) => {
                        tracing::warn!("changes of routes are seen late: {error}");
                        return;
                    }
                };
                if concerns {
                    sender.send_replace(());
                }
            }
        });
        Ok(Changes { receiver, interest })
    }

    /// Sets what concerns us from now on.
    pub fn set_interest(&self, interest: Interest) {
        *self.interest.lock().unwrap_or_else(PoisonError::into_inner) = interest;
    }

    /// Waits for the next change. May be dropped at any time without losing one.
    pub async fn wait(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gathers the changes that follow the first one, so that they are followed together.
    pub async fn gather(&mut self) {
        sleep(GATHER).await;
        self.receiver.borrow_and_update();
    }
}

fn subscribe(groups: &[u32]) -> Result<TokioSocket> {
    let subscribed = || -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.socket_mut().add_membership(*group)?;
        }
        // Beyond the system's limit only with CAP_NET_ADMIN; with less room more is lost, which is told.
        let _ = setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
        Ok(socket)
    };
    subscribed().context("cannot open a netlink socket for link events")
}

/// The next datagram; none if messages were lost.
async fn receive(socket: &mut TokioSocket) -> io::Result<Option<Vec<u8>>> {
    match socket.recv_from_full().await {
        Ok((datagram, _)) => Ok(Some(datagram)),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns what a message of the kernel says, if it is one of those that are known here.
fn fact(kind: u16, message: &[u8]) -> Option<Fact> {
    let body = message.get(HEADER..)?;
    match kind {
        // Of another family it is about a bridge: that it has left one is not that it has gone.
        NEWLINK | DELLINK if body.first() != Some(&UNSPEC) => None,
        NEWLINK | DELLINK => {
            let attributes = body.get(IFINFO..)?;
            let name = find(attributes, IFLA_IFNAME)?.strip_suffix(&[0])?;
            let flags = word(body, 8)?;
            Some(Fact::Link {
                index: word(body, 4)?,
                name: String::from_utf8_lossy(name).into_owned(),
                running: kind == NEWLINK && flags & RUNNING == RUNNING,
            })
        }
        NEWNEIGH | DELNEIGH => {
            let attributes = body.get(NDMSG..)?;
            let octets = find(attributes, NDA_DST)?;
            let address = match octets.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
            };
            let mac = find(attributes, NDA_LLADDR).and_then(|mac| mac.try_into().ok());
            let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
            Some(Fact::Neighbour {
                index: word(body, 4)?,
                address,
                neighbour: match kind {
                    NEWNEIGH => Neighbour::of_state(state, mac),
                    _ => Neighbour::Unknown,
                },
            })
        }
        NEWADDR | DELADDR => Some(Fact::Address),
        _ => None,
    }
}

/// Returns whether a datagram tells of a rule, or of a route that is of interest.
fn concerns(datagram: &[u8], interest: &Interest) -> bool {
    let mut rest = datagram;
    while let Some((kind, message)) = next(&mut rest) {
        let concerns = match kind {
            NEWRULE | DELRULE => true,
            NEWROUTE | DELROUTE => route_concerns(message, interest).unwrap_or(true),
            _ => false,
        };
        if concerns {
            return true;
        }
    }
    false
}

fn route_concerns(message: &[u8], interest: &Interest) -> Option<bool> {
    let header = message.get(HEADER..HEADER + RTMSG)?;
    let attributes = message.get(HEADER + RTMSG..)?;
    let table = find(attributes, RTA_TABLE).and_then(|table| word(table, 0));
    if interest
        .tables
        .contains(&table.unwrap_or(u32::from(header[4])))
    {
        return Some(true);
    }
    let is_ours = |index: u32| interest.interfaces.contains(&index);
    if let Some(hops) = find(attributes, RTA_MULTIPATH) {
        // `struct rtnexthop`: length, flags, hops, interface.
        let mut rest = hops;
        while let Some(index) = word(rest, 4) {
            if is_ours(index) {
                return Some(true);
            }
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            rest = rest
                .get(length.next_multiple_of(4).max(8)..)
                .unwrap_or_default();
        }
    }
    let mut interfaces = all(attributes, RTA_OIF).filter_map(|index| word(index, 0));
    Some(interfaces.any(is_ours))
}

/// See [`read_any`](super::read_any).
pub(super) fn read_any(bytes: &[u8]) {
    let interest = Interest {
        interfaces: vec![1],
        tables: 0..1,
    };
    let _ = concerns(bytes, &interest);
    let mut rest = bytes;
    while let Some((kind, message)) = next(&mut rest) {
        let _ = fact(kind, message);
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::attributes::put;
    use super::*;

    /// A message with the header that the kernel puts before it.
    fn message(kind: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut tail = body.to_vec();
        for (number, value) in attributes {
            put(&mut tail, *number, value);
        }
        let length = u32::try_from(HEADER + tail.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(tail);
        message
    }

    fn link(kind: u16, flags: u32) -> Vec<u8> {
        let mut body = [0; IFINFO];
        body[4..8].copy_from_slice(&7u32.to_ne_bytes());
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        message(kind, &body, &[(IFLA_IFNAME, b"inet\0")])
    }

    #[test]
    fn a_link_without_carrier_does_not_run() {
        let running = |kind, flags| match fact(kind, &link(kind, flags)) {
            Some(Fact::Link { running, .. }) => running,
            other => panic!("{other:?}"),
        };
        assert!(running(NEWLINK, RUNNING));
        assert!(!running(NEWLINK, 1));
        assert!(!running(DELLINK, RUNNING));
        let mut of_bridge = link(DELLINK, RUNNING);
        of_bridge[HEADER] = 7;
        assert_eq!(fact(DELLINK, &of_bridge), None);
    }

    #[test]
    fn a_neighbour_is_what_its_state_says() {
        let neighbour = |kind, state: u16| {
            let mut body = [0; NDMSG];
            body[4..8].copy_from_slice(&7u32.to_ne_bytes());
            body[8..10].copy_from_slice(&state.to_ne_bytes());
            let attributes: [(u16, &[u8]); 2] =
                [(NDA_DST, &[10, 3, 0, 2]), (NDA_LLADDR, &[2, 0, 0, 0, 0, 9])];
            match fact(kind, &message(kind, &body, &attributes)) {
                Some(Fact::Neighbour { neighbour, .. }) => neighbour,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(neighbour(NEWNEIGH, 0x20), Neighbour::Failed);
        assert_eq!(neighbour(NEWNEIGH, 0x01), Neighbour::Unknown);
        let known = Neighbour::Known(Some([2, 0, 0, 0, 0, 9]));
        assert_eq!(neighbour(NEWNEIGH, 0x02), known);
        assert_eq!(neighbour(DELNEIGH, 0x02), Neighbour::Unknown);
    }

    #[test]
    fn only_routes_of_our_interfaces_and_tables_concern_us() {
        let interest = Interest {
            interfaces: vec![7],
            tables: 5000..5016,
        };
        let route = |table: u32, attributes: &[(u16, &[u8])]| {
            let table = table.to_ne_bytes();
            let all = [attributes, &[(RTA_TABLE, &table[..])]].concat();
            concerns(&message(NEWROUTE, &[0; RTMSG], &all), &interest)
        };
        let (ours, others) = (7u32.to_ne_bytes(), 8u32.to_ne_bytes());
        assert!(!route(254, &[(RTA_OIF, &others)]));
        assert!(route(254, &[(RTA_OIF, &ours)]));
        assert!(route(5003, &[]));
        let hop = |index: [u8; 4]| [&[8, 0, 0, 0], &index[..]].concat();
        let several = [hop(others), hop(ours)].concat();
        assert!(route(254, &[(RTA_MULTIPATH, &several)]));
        assert!(!route(254, &[(RTA_MULTIPATH, &hop(others))]));
        assert!(concerns(&message(NEWRULE, &[0; RTMSG], &[]), &interest));
    }

    #[test]
    fn messages_that_lie_about_their_length_say_nothing() {
        let whole = link(NEWLINK, RUNNING);
        for length in 0..whole.len() {
            let _ = fact(NEWLINK, &whole[..length]);
            let _ = concerns(&whole[..length], &Interest::default());
        }
        assert_eq!(fact(NEWLINK, &whole[..HEADER + 4]), None);
    }
}
