//! What the data path has to know of each way out. All of them stand in one [`PathTable`](crate::path::PathTable).

/// The most egresses one controller can have.
pub const MAX_EGRESSES: usize = 16;
/// 32-bit words of one egress in the egress table.
pub const EGRESS_WORDS: usize = 9;

/// How the packets of one address family get to an egress's next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextHop {
    /// The egress has no way out for this family: packets pass.
    #[default]
    None,
    /// There is a route, but no MAC address that XDP could write: the kernel forwards.
    Kernel,
    /// The next hop's MAC address.
    Mac([u8; 6]),
}

/// One egress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// Whether XDP redirects to it; otherwise its packets are marked and routed by the kernel.
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
}

const REDIRECT: u32 = 1;
const V4_UP: u32 = 1 << 1;
const V6_UP: u32 = 1 << 2;
const V4_MAC: u32 = 1 << 3;
const V6_MAC: u32 = 1 << 4;

impl Egress {
    /// The way to the next hop for IPv6, or else IPv4, packets.
    #[inline(always)]
    pub const fn next_hop(&self, v6: bool) -> NextHop {
        if v6 { self.v6 } else { self.v4 }
    }

    /// The egress as words of the egress table.
    pub fn to_words(self) -> [u32; EGRESS_WORDS] {
        let mut flags = if self.redirect { REDIRECT } else { 0 };
        let mut encode = |hop: NextHop, up: u32, known: u32| match hop {
            NextHop::None => [0; 6],
            NextHop::Kernel => {
                flags |= up;
                [0; 6]
            }
            NextHop::Mac(mac) => {
                flags |= up | known;
                mac
            }
        };
        let (s, a, b) = (
            self.source_mac,
            encode(self.v4, V4_UP, V4_MAC),
            encode(self.v6, V6_UP, V6_MAC),
        );
        [
            flags,
            self.mark,
            self.mark_mask,
            u32::from_ne_bytes([s[0], s[1], s[2], s[3]]),
            u32::from_ne_bytes([s[4], s[5], a[0], a[1]]),
            u32::from_ne_bytes([a[2], a[3], a[4], a[5]]),
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], 0, 0]),
            u32::from(self.mtu),
        ]
    }

    /// The egress that the words of the egress table stand for.
    #[inline(always)]
    pub fn from_words(words: &[u32; EGRESS_WORDS]) -> Self {
        let flags = words[0];
        let [s0, s1, s2, s3] = words[3].to_ne_bytes();
        let [s4, s5, a0, a1] = words[4].to_ne_bytes();
        let [a2, a3, a4, a5] = words[5].to_ne_bytes();
        let [b0, b1, b2, b3] = words[6].to_ne_bytes();
        let [b4, b5, _, _] = words[7].to_ne_bytes();
        let next_hop = |up: u32, known: u32, mac: [u8; 6]| {
            if flags & up == 0 {
                NextHop::None
            } else if flags & known == 0 {
                NextHop::Kernel
            } else {
                NextHop::Mac(mac)
            }
        };
        Egress {
            redirect: flags & REDIRECT != 0,
            mark: words[1],
            mark_mask: words[2],
            mtu: (words[8] & 0xffff) as u16,
            source_mac: [s0, s1, s2, s3, s4, s5],
            v4: next_hop(V4_UP, V4_MAC, [a0, a1, a2, a3, a4, a5]),
            v6: next_hop(V6_UP, V6_MAC, [b0, b1, b2, b3, b4, b5]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_everything() {
        let hops = [
            NextHop::None,
            NextHop::Kernel,
            NextHop::Mac([1, 2, 3, 4, 5, 6]),
        ];
        for v4 in hops {
            for v6 in hops {
                for redirect in [false, true] {
                    let egress = Egress {
                        redirect,
                        mark: 0x0001_0000,
                        mark_mask: 0x1f00_0000,
                        mtu: 1492,
                        source_mac: [9, 8, 7, 6, 5, 4],
                        v4,
                        v6,
                    };
                    assert_eq!(Egress::from_words(&egress.to_words()), egress);
                }
            }
        }
    }
}
