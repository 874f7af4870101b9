//! The routers of a path, by packets whose hop limit runs out there, as traceroute(8) does.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use socket2::{Socket, Type};
use tokio::time::sleep;

use crate::health::Bound;

/// The hops that are asked for.
const HOPS: u32 = 20;
/// The first port that traceroute sends to: nobody listens there.
const PORT: u16 = 33_434;
/// The time that answers have.
const PATIENCE: Duration = Duration::from_secs(1);

/// Finds the routers on the way to an address: one for each hop, or none if it did not answer.
pub(super) async fn trace(bound: &Bound, address: IpAddr) -> io::Result<Vec<Option<IpAddr>>> {
    let sockets = (1..=HOPS).map(|hop| send(bound, address, hop));
    let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
    sleep(PATIENCE).await;
    let mut hops: Vec<_> = sockets.iter().map(answerer).collect();
    // Behind the destination there is nothing.
    let end = hops.iter().position(|hop| *hop == Some(address));
    let end = end.or_else(|| hops.iter().rposition(Option::is_some));
    hops.truncate(end.map_or(0, |end| end + 1));
    Ok(hops)
}

/// Sends a packet that so many routers pass on.
fn send(bound: &Bound, address: IpAddr, hop: u32) -> io::Result<Socket> {
    let socket = bound.socket(address, Type::DGRAM, None)?;
    match address {
        IpAddr::V4(_) => {
            socket.set_ttl_v4(hop)?;
            setsockopt(&socket, Ipv4RecvErr, &true)?;
        }
        IpAddr::V6(_) => {
            socket.set_unicast_hops_v6(hop)?;
            setsockopt(&socket, Ipv6RecvErr, &true)?;
        }
    }
    let port = PORT + u16::try_from(hop).unwrap_or(0);
    socket.connect(&SocketAddr::new(address, port).into())?;
    // An error of an earlier packet may be told here.
    let _ = socket.send(&[0; 32]);
    Ok(socket)
}

/// Returns who has answered by an ICMP error (ip(7), `IP_RECVERR`).
fn answerer(socket: &Socket) -> Option<IpAddr> {
    let mut payload = [0; 64];
    let mut parts = [IoSliceMut::new(&mut payload)];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
    let message = message.ok()?;
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(_, Some(from)) => {
            Some(IpAddr::V4(u32::from_be(from.sin_addr.s_addr).into()))
        }
        ControlMessageOwned::Ipv6RecvErr(_, Some(from)) => {
            Some(IpAddr::V6(from.sin6_addr.s6_addr.into()))
        }
        _ => None,
    })
}

/// Finds a router of the private WAN on the path of an egress: a hop with a private address that the ordinary path has too.
pub(super) fn hairpin(egress: &[Option<IpAddr>], ordinary: &[Option<IpAddr>]) -> Option<IpAddr> {
    let is_private = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    };
    let mut hops = egress.iter().flatten().copied();
    hops.find(|hop| is_private(hop) && ordinary.contains(&Some(*hop)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hairpin_is_a_private_router_of_both_paths() {
        let hop = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let wan = [hop("10.2.0.2"), None, hop("10.250.0.1"), hop("104.44.0.1")];
        let clean = [hop("10.3.0.2"), hop("198.51.100.1"), hop("104.44.0.1")];
        assert_eq!(
            hairpin(&clean, &wan),
            None,
            "Microsoft's own routers are on each path"
        );
        let bent = [hop("10.3.0.2"), hop("10.250.0.1"), hop("104.44.0.1")];
        assert_eq!(hairpin(&bent, &wan), hop("10.250.0.1"));
    }
}
