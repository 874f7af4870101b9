//! What is done with a packet, and the one reason why.

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The ordinary path: the packet is not touched.
    Pass,
    /// Out by the egress with this index in the egress table.
    Steer(u8),
}

impl Verdict {
    /// The stable name used in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Steer(_) => "steer",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident = $value:literal, $name:literal, $text:literal;)*) => {
        /// Why a packet got its verdict. Each packet has exactly one reason and each reason one counter.
        ///
        /// The numbers are the indices of the counters. They are part of the layout that an upgraded
        /// controller finds in the kernel, so a number is never given a new meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $text] $variant = $value,)*
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The stable name used in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// One sentence for people.
            pub const fn description(self) -> &'static str {
                match self { $(Reason::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    Steered = 0, "steered", "matched a steered endpoint set and left by its egress";
    KernelNextHop = 1, "kernel_next_hop", "steered; forwarded by the kernel because the next hop's MAC address is not known, or the egress takes no redirected frames";
    KernelTtl = 2, "kernel_ttl", "steered; forwarded by the kernel because the TTL or hop limit runs out here";
    KernelMtu = 3, "kernel_mtu", "steered; forwarded by the kernel because the packet is longer than the egress MTU";
    KernelFragment = 4, "kernel_fragment", "steered; forwarded by the kernel because it is a fragment";
    KernelOptions = 5, "kernel_options", "steered; forwarded by the kernel because of IP options or extension headers";
    KernelTagged = 6, "kernel_tagged", "steered; forwarded by the kernel because the frame is VLAN-tagged or PPPoE";
    KernelDevice = 7, "kernel_device", "steered; forwarded by the kernel because the egress interface is gone";
    NoPrefix = 8, "no_prefix", "no endpoint set covers the destination address";
    NoPort = 9, "no_port", "an endpoint set covers the destination, but none of them lists the protocol and port";
    Policy = 10, "policy", "matched an endpoint set that the policy leaves on the ordinary path";
    EgressDown = 11, "egress_down", "matched a steered endpoint set, but its egress has no way out for this address family";
    NotIp = 12, "not_ip", "neither IPv4 nor IPv6";
    OtherProtocol = 13, "other_protocol", "neither TCP nor UDP";
    GroupAddress = 14, "group_address", "multicast, broadcast or reserved destination";
    LaterFragment = 15, "later_fragment", "a fragment after the first one has no ports";
    Truncated = 16, "truncated", "ends before its headers do";
    Malformed = 17, "malformed", "header fields contradict each other";
    ExtensionHeaders = 18, "extension_headers", "more or longer IPv6 extension headers than are followed";
    VlanDepth = 19, "vlan_depth", "more than two VLAN tags";
    NotForGateway = 20, "not_for_gateway", "addressed to another station's MAC address";
    NoRuleset = 21, "no_ruleset", "no ruleset is loaded, or it could not be read";
    OwnAddress = 22, "own_address", "addressed to the gateway itself, or the broadcast address of one of its networks";
}

impl Reason {
    /// The reason with this number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        if (number as usize) < Self::ALL.len() {
            Some(Self::ALL[number as usize])
        } else {
            None
        }
    }

    /// Whether a packet with this reason leaves by an egress, rather than by the ordinary path.
    pub const fn is_steer(self) -> bool {
        (self as u8) < Reason::NoPrefix as u8
    }
}

/// The outcome for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where the packet goes.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The slot of the endpoint set that decided, if one matched.
    pub set: Option<u16>,
}

impl Decision {
    /// The ordinary path, for a reason that involves no endpoint set.
    pub const fn pass(reason: Reason) -> Self {
        Decision {
            verdict: Verdict::Pass,
            reason,
            set: None,
        }
    }

    const STEER: u32 = 1 << 13;
    const SET: u32 = 1 << 14;

    /// The decision as a word: the reason's number in the lowest 5 bits, the egress in 8 more, a bit that says whether it is
    /// steered to that, a bit that says whether there is an endpoint set, and its slot.
    #[inline(always)]
    pub const fn to_word(&self) -> u32 {
        let verdict = match self.verdict {
            Verdict::Pass => 0,
            Verdict::Steer(egress) => Self::STEER | (egress as u32) << 5,
        };
        let set = match self.set {
            Some(set) => Self::SET | (set as u32) << 15,
            None => 0,
        };
        verdict | set | self.reason as u32
    }

    /// The decision that a word stands for, if any.
    pub const fn from_word(word: u32) -> Option<Self> {
        let Some(reason) = Reason::from_number(word & 0x1f) else {
            return None;
        };
        Some(Decision {
            verdict: if word & Self::STEER == 0 {
                Verdict::Pass
            } else {
                Verdict::Steer((word >> 5 & 0xff) as u8)
            },
            reason,
            set: if word & Self::SET == 0 {
                None
            } else {
                Some((word >> 15 & 0xffff) as u16)
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_fit_the_counters() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{}", reason.name());
        }
        assert!(Reason::ALL.len() <= crate::counters::REASON_SLOTS);
    }

    #[test]
    fn decisions_survive_the_word() {
        for reason in Reason::ALL {
            for verdict in [Verdict::Pass, Verdict::Steer(0), Verdict::Steer(255)] {
                for set in [None, Some(0), Some(4095), Some(u16::MAX)] {
                    let decision = Decision {
                        verdict,
                        reason: *reason,
                        set,
                    };
                    assert_eq!(Decision::from_word(decision.to_word()), Some(decision));
                }
            }
        }
        assert_eq!(Decision::from_word(0x1f), None);
    }

    #[test]
    fn steer_reasons_come_first() {
        assert!(Reason::KernelDevice.is_steer());
        assert!(!Reason::NoPrefix.is_steer());
        assert!(!Reason::EgressDown.is_steer());
    }
}
