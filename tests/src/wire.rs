//! Frames exactly as a test wants them, sent from an interface.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::netns::Namespace;

/// The address family in the type that an address has it in.
const AF_PACKET: libc::sa_family_t = 17;
const _: () = assert!(libc::AF_PACKET == 17);
/// The size of a link-layer address in the type that the calls want.
const SOCKADDR_LEN: libc::socklen_t = 20;
const _: () = assert!(size_of::<libc::sockaddr_ll>() == 20);

/// `ETH_P_ALL`: a socket gets frames of every protocol.
const ALL: u16 = 3;
/// How long a frame is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// A raw socket on an interface.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// Opens a raw socket on an interface of a namespace.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or without root.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let interface = interface.to_owned();
        namespace.enter(move || {
            let index = nix::net::if_::if_nametoindex(interface.as_str())?;
            let socket =
                raw_socket(index, 0).with_context(|| format!("a raw socket on {interface}"))?;
            Ok(Wire { socket })
        })
    }

    /// Opens a raw socket that gets every frame that comes in by an interface of a namespace.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn listen(namespace: &Namespace, interface: &str) -> Result<Self> {
        let interface = interface.to_owned();
        namespace.enter(move || {
            let index = nix::net::if_::if_nametoindex(interface.as_str())?;
            let socket = raw_socket(index, ALL)?;
            socket2::SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
            Ok(Wire { socket })
        })
    }

    /// The next frame that comes in; none if there is none for a while.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 64 << 10];
        let length = nix::unistd::read(&self.socket, &mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }

    /// Sends one frame, from its Ethernet header on.
    ///
    /// # Errors
    ///
    /// When the interface refuses it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: `frame` is valid for reads of its length for the call.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error()).context("cannot send a frame");
        }
        Ok(())
    }
}

fn raw_socket(index: u32, protocol: u16) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol.to_be().into(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_ll is integers and an array of bytes, for which all-zero bytes are valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = AF_PACKET;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: `address` is a valid sockaddr_ll of the given length for the call.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), SOCKADDR_LEN) };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

impl Lab {
    /// The Ethernet header of a frame from the client to the gateway.
    ///
    /// # Errors
    ///
    /// When an interface is gone.
    pub fn ethernet(&self, ethertype: u16) -> Result<Vec<u8>> {
        let mut header = self.gateway.mac("lan")?.to_vec();
        header.extend(self.client.mac("eth0")?);
        header.extend(ethertype.to_be_bytes());
        Ok(header)
    }
}

/// A UDP datagram over IPv4, from the client, with a right header checksum.
pub struct Ipv4Udp {
    /// Destination address.
    pub destination: [u8; 4],
    /// Destination port.
    pub port: u16,
    /// TTL.
    pub ttl: u8,
    /// IP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Flags and fragment offset, as the header holds them.
    pub fragment: u16,
    /// What follows the UDP header.
    pub payload: usize,
}

impl Ipv4Udp {
    /// A datagram without peculiarities.
    pub fn new(destination: [u8; 4], port: u16) -> Self {
        Ipv4Udp {
            destination,
            port,
            ttl: 64,
            options: Vec::new(),
            fragment: 0,
            payload: 1,
        }
    }

    /// The packet's bytes, from the IP header on.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let total = header_len + 8 + self.payload;
        let mut packet = vec![0x40 | byte(header_len / 4), 0];
        packet.extend(word(total));
        packet.extend([0, 9]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, 17, 0, 0, 10, 1, 0, 2]);
        packet.extend(self.destination);
        packet.extend(&self.options);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum);
        packet.extend([0x30, 0x39]);
        packet.extend(self.port.to_be_bytes());
        packet.extend(word(8 + self.payload));
        // A UDP checksum of zero means none (RFC 768).
        packet.extend([0, 0]);
        packet.resize(total, b'x');
        packet
    }
}

fn byte(value: usize) -> u8 {
    u8::try_from(value).expect("small by construction")
}

fn word(value: usize) -> [u8; 2] {
    u16::try_from(value)
        .expect("a packet is shorter than 64 KiB")
        .to_be_bytes()
}

/// The IPv4 header checksum of a header whose own checksum is zero.
pub fn checksum(header: &[u8]) -> [u8; 2] {
    let words = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap_or(0)).to_be_bytes()
}
