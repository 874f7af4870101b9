//! Questions to a table: a destination, a protocol and a port.

use core::net::IpAddr;

/// The transport protocols that endpoint sets list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl Transport {
    /// The transport with this IP protocol number, if it is one of the two.
    pub const fn from_protocol(number: u8) -> Option<Self> {
        match number {
            6 => Some(Transport::Tcp),
            17 => Some(Transport::Udp),
            _ => None,
        }
    }

    /// Protocol and port as one number: TCP's ports, then UDP's.
    pub const fn key(self, port: u16) -> u32 {
        match self {
            Transport::Tcp => port as u32,
            Transport::Udp => 0x1_0000 | port as u32,
        }
    }
}

/// A destination address. IPv6 addresses are two halves because eBPF has 64-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An IPv4 address as a number, first octet highest.
    V4(u32),
    /// An IPv6 address: its first and last eight bytes as numbers, first byte highest.
    V6(u64, u64),
}

impl From<IpAddr> for Destination {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Destination::V4(address.to_bits()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h] = address.segments().map(u64::from);
                let half = |a, b, c, d| a << 48 | b << 32 | c << 16 | d;
                Destination::V6(half(a, b, c, d), half(e, f, g, h))
            }
        }
    }
}

impl From<Destination> for IpAddr {
    fn from(address: Destination) -> Self {
        match address {
            Destination::V4(bits) => IpAddr::V4(bits.into()),
            Destination::V6(high, low) => {
                IpAddr::V6((u128::from(high) << 64 | u128::from(low)).into())
            }
        }
    }
}

impl Destination {
    /// The address of a family as two numbers, an IPv4 address in the second one.
    #[inline(always)]
    pub const fn from_halves(is_v6: bool, high: u64, low: u64) -> Self {
        if is_v6 {
            Destination::V6(high, low)
        } else {
            Destination::V4((low & 0xffff_ffff) as u32)
        }
    }

    /// The address as [`from_halves`](Self::from_halves) takes it.
    #[inline(always)]
    pub const fn to_halves(self) -> (u64, u64) {
        match self {
            Destination::V4(address) => (0, address as u64),
            Destination::V6(high, low) => (high, low),
        }
    }

    /// Returns whether it is an IPv6 address.
    #[inline(always)]
    pub const fn is_v6(self) -> bool {
        matches!(self, Destination::V6(..))
    }
}
