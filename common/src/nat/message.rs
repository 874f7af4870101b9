//! ICMP errors about translated packets (RFC 5508, section 4): they quote the packet as it was on the internet link.

use crate::frame::Frame;
use crate::network::{FRAGMENT, Network};

/// The protocol number of ICMP.
const ICMP: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Offset of the quoted IPv4 header, in bytes from the start of the frame.
    pub ip: u32,
    /// Offset of the quoted TCP or UDP header.
    pub transport: u32,
    /// True if it is TCP; UDP otherwise.
    pub is_tcp: bool,
    /// The quoted source port.
    pub port: u16,
    /// Destination of the quoted packet.
    pub remote: (u32, u16),
}

/// Reads what an ICMP error quotes. `None` if the packet is none (RFC 1122, section 3.2.2), or quotes no TCP or UDP.
#[inline(always)]
pub fn quoted<F: Frame + ?Sized>(frame: &F, network: &Network) -> Option<Quoted> {
    if network.is_v6() || network.protocol != ICMP || network.marks & FRAGMENT != 0 {
        return None;
    }
    let message = frame.blur(network.offset + network.header);
    let [kind] = frame.read::<1>(message)?;
    // Destination unreachable, source quench, time exceeded, parameter problem.
    if !matches!(kind, 3 | 4 | 11 | 12) {
        return None;
    }
    let ip = message + 8;
    let [version] = frame.read::<1>(ip)?;
    let header = u32::from(version & 0x0f) * 4;
    let [f0, f1] = frame.read::<2>(ip + 6)?;
    let [protocol] = frame.read::<1>(ip + 9)?;
    if version >> 4 != 4 || header < 20 || [f0 & 0x1f, f1] != [0, 0] {
        return None;
    }
    let is_tcp = match protocol {
        TCP => true,
        UDP => false,
        _ => return None,
    };
    let transport = frame.blur(ip + header);
    let [s0, s1, d0, d1] = frame.read::<4>(transport)?;
    Some(Quoted {
        ip,
        transport,
        is_tcp,
        port: u16::from_be_bytes([s0, s1]),
        remote: (
            u32::from_be_bytes(frame.read(ip + 16)?),
            u16::from_be_bytes([d0, d1]),
        ),
    })
}
