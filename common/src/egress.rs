//! Egresses as the data path knows them. All of them are in one [`PathTable`](crate::path::PathTable).

use core::net::{Ipv4Addr, Ipv6Addr};

/// The most egresses one controller can have.
pub const MAX_EGRESSES: usize = 16;
/// 32-bit words of one egress in the egress table.
pub const EGRESS_WORDS: usize = 16;

/// Next hop of an egress for one address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextHop {
    /// The egress has no way out for this family: packets pass.
    #[default]
    None,
    /// There is a route, but no MAC address that XDP could write: TC or the kernel forwards.
    Kernel,
    /// The next hop's MAC address.
    Mac([u8; 6]),
}

/// One egress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// True if the programs redirect to it; otherwise its packets are marked and routed by the kernel.
    pub redirect: bool,
    /// The firewall mark's value within [`mark_mask`](Self::mark_mask).
    pub mark: u32,
    /// The bits of the firewall mark that belong to Breakout.
    pub mark_mask: u32,
    /// The egress interface's MTU: the longest IP packet it takes, in bytes.
    pub mtu: u16,
    /// The egress interface's own MAC address.
    pub source_mac: [u8; 6],
    /// The way to the IPv4 next hop.
    pub v4: NextHop,
    /// The way to the IPv6 next hop.
    pub v6: NextHop,
    /// The gateways' addresses; unspecified where the interface has none because there is only one station at its other end.
    pub gateways: (Ipv4Addr, Ipv6Addr),
    /// The public address that IPv4 flows get there; unspecified where none is translated by the programs.
    pub nat: Ipv4Addr,
}

const REDIRECT: u32 = 1;
const V4_UP: u32 = 1 << 1;
const V6_UP: u32 = 1 << 2;
const V4_MAC: u32 = 1 << 3;
const V6_MAC: u32 = 1 << 4;

/// One egress in the path table: flags, mark, mark's mask and MTU; the [`LinkHeader`] for IPv4, and the gateway's IPv4 address; the
/// link header for IPv6, and the public IPv4 address of flows; the gateway's IPv6 address. Addresses are in network byte order.
pub type EgressWords = [u32; EGRESS_WORDS];

/// The next hop's and the egress's MAC addresses, as they stand in a frame, in words of the machine's byte order.
pub type LinkHeader = [u32; 3];

/// Words of the link headers for IPv4 and for IPv6.
const LINK_HEADERS: [usize; 2] = [4, 8];

/// Word of the gateways' addresses.
const GATEWAY_V4: usize = 7;
const GATEWAY_V6: usize = 12;
/// Word of the public address.
const NAT: usize = 11;

/// Returns whether the programs redirect to an egress.
#[inline(always)]
pub const fn redirects(words: &EgressWords) -> bool {
    words[0] & REDIRECT != 0
}

/// A packet's mark with the egress's value in it.
#[inline(always)]
pub const fn marked(words: &EgressWords, mark: u32) -> u32 {
    mark & !words[2] | words[1]
}

/// The longest IP packet that the egress takes, in bytes.
#[inline(always)]
pub const fn mtu(words: &EgressWords) -> u32 {
    words[3]
}

/// Returns whether an egress has a way out for an address family.
#[inline(always)]
pub const fn is_up(words: &EgressWords, v6: bool) -> bool {
    words[0] & if v6 { V6_UP } else { V4_UP } != 0
}

/// The gateway's IPv4 address in network byte order; 0 if there is none.
#[inline(always)]
pub const fn gateway_v4(words: &EgressWords) -> u32 {
    words[GATEWAY_V4]
}

/// The gateway's IPv6 address in network byte order; zeros if there is none.
#[inline(always)]
pub const fn gateway_v6(words: &EgressWords) -> [u32; 4] {
    [words[12], words[13], words[14], words[15]]
}

/// The public address that IPv4 flows get, in network byte order; 0 if none is translated.
#[inline(always)]
pub const fn nat(words: &EgressWords) -> u32 {
    words[NAT]
}

/// Returns what a frame to the next hop of an address family begins with, if its MAC address is known.
#[inline(always)]
pub const fn link_header(words: &EgressWords, v6: bool) -> Option<LinkHeader> {
    if words[0] & (if v6 { V6_MAC } else { V4_MAC }) == 0 {
        None
    } else if v6 {
        Some([words[8], words[9], words[10]])
    } else {
        Some([words[4], words[5], words[6]])
    }
}

/// The words of a link header.
pub const fn link_header_of(destination: [u8; 6], source: [u8; 6]) -> LinkHeader {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (destination, source);
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
    ]
}

impl Default for Egress {
    fn default() -> Self {
        Egress {
            redirect: false,
            mark: 0,
            mark_mask: 0,
            mtu: 0,
            source_mac: [0; 6],
            v4: NextHop::None,
            v6: NextHop::None,
            gateways: (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
            nat: Ipv4Addr::UNSPECIFIED,
        }
    }
}

impl Egress {
    /// The egress as words of the path table.
    pub fn to_words(self) -> EgressWords {
        let mut words = [0; EGRESS_WORDS];
        words[0] = if self.redirect { REDIRECT } else { 0 };
        (words[1], words[2]) = (self.mark, self.mark_mask);
        words[3] = u32::from(self.mtu);
        words[GATEWAY_V4] = u32::from_ne_bytes(self.gateways.0.octets());
        words[NAT] = u32::from_ne_bytes(self.nat.octets());
        let gateway = self.gateways.1.octets();
        for (word, bytes) in words[GATEWAY_V6..].iter_mut().zip(gateway.as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        let hops = [(self.v4, V4_UP, V4_MAC), (self.v6, V6_UP, V6_MAC)];
        for ((hop, up, known), at) in hops.into_iter().zip(LINK_HEADERS) {
            words[0] |= match hop {
                NextHop::None => 0,
                NextHop::Kernel => up,
                NextHop::Mac(mac) => {
                    words[at..at + 3].copy_from_slice(&link_header_of(mac, self.source_mac));
                    up | known
                }
            };
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_what_the_data_path_asks_for() {
        let hops = [
            NextHop::None,
            NextHop::Kernel,
            NextHop::Mac([1, 2, 3, 4, 5, 6]),
        ];
        for (v4, v6) in hops.iter().flat_map(|v4| hops.map(|v6| (*v4, v6))) {
            for redirect in [false, true] {
                let egress = Egress {
                    redirect,
                    mark: 0x0001_0000,
                    mark_mask: 0x1f00_0000,
                    mtu: 1492,
                    source_mac: [9, 8, 7, 6, 5, 4],
                    v4,
                    v6,
                    gateways: (
                        Ipv4Addr::new(10, 3, 0, 2),
                        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
                    ),
                    nat: Ipv4Addr::new(203, 0, 113, 5),
                };
                let words = egress.to_words();
                assert_eq!(nat(&words).to_ne_bytes(), [203, 0, 113, 5]);
                assert_eq!(gateway_v4(&words).to_ne_bytes(), [10, 3, 0, 2]);
                let gateway = gateway_v6(&words).map(u32::to_ne_bytes);
                assert_eq!(gateway, [[0xfe, 0x80, 0, 0], [0; 4], [0; 4], [0, 0, 0, 2]]);
                assert_eq!(redirects(&words), redirect);
                assert_eq!(marked(&words, 0xff00_0001), 0xe001_0001);
                assert_eq!(mtu(&words), 1492);
                for (is_v6, hop) in [(false, v4), (true, v6)] {
                    assert_eq!(is_up(&words, is_v6), hop != NextHop::None);
                    let header = link_header(&words, is_v6);
                    assert_eq!(header.is_some(), matches!(hop, NextHop::Mac(_)));
                    let bytes: [u8; 12] = [1, 2, 3, 4, 5, 6, 9, 8, 7, 6, 5, 4];
                    if let Some(header) = header {
                        assert_eq!(header.map(u32::to_ne_bytes).as_flattened(), bytes);
                    }
                }
            }
        }
    }
}
