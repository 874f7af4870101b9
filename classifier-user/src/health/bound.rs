//! Sockets that cannot leave by another interface than the one that is asked about.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::links::{PROBE_TOS, ProbeWay};

/// The path that a socket's packets take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The interface; without one the kernel's routes decide.
    pub(crate) interface: Option<String>,
    /// The firewall mark that leads to the egress's routing table.
    pub(crate) mark: u32,
    /// The way that they have routes along, where the mark leads nowhere.
    pub(crate) way: Option<ProbeWay>,
}

impl Bound {
    /// Makes a socket, which does not block.
    pub(crate) fn socket(
        &self,
        address: IpAddr,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> io::Result<Socket> {
        let domain = if address.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, kind, protocol)?;
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        match (&self.way, address) {
            (Some(_), IpAddr::V4(_)) => socket.set_tos_v4(PROBE_TOS.into())?,
            (Some(way), IpAddr::V6(_)) => {
                socket.bind(&SocketAddr::new(way.from.into(), 0).into())?;
            }
            (None, _) => {}
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Makes a socket that sends datagrams to one address and takes those from it.
    pub(crate) fn datagrams(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        connected(self.socket(address.ip(), Type::DGRAM, None)?, address)
    }

    /// Connects by TCP.
    pub(crate) async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(address.ip(), Type::STREAM, None)?;
        TcpSocket::from_std_stream(socket.into())
            .connect(address)
            .await
    }
}

/// Binds a datagram socket to its one peer.
pub(super) fn connected(socket: Socket, address: SocketAddr) -> io::Result<UdpSocket> {
    socket.connect(&address.into())?;
    UdpSocket::from_std(socket.into())
}
