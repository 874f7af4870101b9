//! Verdicts on packets, each with one reason.

use core::fmt;

/// Verdict on a packet.
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
        /// Reason for a packet's verdict. Each packet has exactly one reason and each reason one counter.
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
    TcNextHop = 1, "tc_next_hop", "steered; sent by TC, because XDP does not know the next hop's MAC address, or does not send to this egress";
    KernelTtl = 2, "kernel_ttl", "steered; left to the kernel, which answers, because the TTL or hop limit runs out here";
    TooBig = 3, "too_big", "steered; answered with ICMP instead of sent, because the packet is longer than the egress MTU";
    TcFragment = 4, "tc_fragment", "steered; sent by TC: a fragment";
    TcOptions = 5, "tc_options", "steered; sent by TC: IP options or extension headers";
    Tagged = 6, "tagged", "matched a steered endpoint set, but in a VLAN or PPPoE session, which redirect mode steers from as an interface of its own only";
    NoDevice = 7, "no_device", "matched a steered endpoint set, but the interface of its egress is gone";
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
    Shadow = 23, "shadow", "matched an endpoint set that the policy would steer, but only shows (shadow)";
    Bypass = 24, "bypass", "matched a steered endpoint set, but steering is switched off (breakout bypass)";
    Pinned = 25, "pinned", "matched a steered endpoint set, but its flow began on the ordinary path and stays there";
    KernelSource = 26, "kernel_source", "steered; left to the kernel, which drops it, because its source is no client's address";
    KernelDamaged = 27, "kernel_damaged", "steered; left to the kernel, which drops it, because its header checksum is wrong";
    NatFull = 28, "nat_full", "matched a steered endpoint set, but no public port is free for its remote address and port";
    NatUnknown = 29, "nat_unknown", "matched a steered endpoint set, but its TCP connection began without a translation, so the egress cannot carry it";
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

    /// Returns whether a packet with this reason leaves by an egress, rather than by the ordinary path.
    pub const fn is_steer(self) -> bool {
        (self as u8) < Reason::Tagged as u8
            || matches!(self, Reason::KernelSource | Reason::KernelDamaged)
    }
}

/// The outcome for one packet, as one word: the reason's number in the lowest 5 bits, the egress in 8 more, a bit that says
/// whether it is steered to that, a bit that says whether there is an endpoint set, and its slot.
///
/// It is not made of enums: what those have in one case only the compiler leaves undefined in the others, and moves about
/// all the same, which the kernel's verifier refuses; and the verifier would follow the rest of the program for each case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Decision(u32);

impl Decision {
    const REASON: u32 = 0x1f;
    const EGRESS: u32 = 0xff << 5;
    const STEER: u32 = 1 << 13;
    const SET: u32 = 1 << 14;

    /// The ordinary path, for a reason that involves no endpoint set.
    #[inline(always)]
    pub const fn pass(reason: Reason) -> Self {
        Decision(reason as u32)
    }

    /// The ordinary path, because of the endpoint set with this slot.
    #[inline(always)]
    pub const fn pass_set(reason: Reason, set: u16) -> Self {
        Decision((set as u32) << 15 | Self::SET | reason as u32)
    }

    /// Out by an egress, because of the endpoint set with this slot.
    #[inline(always)]
    pub const fn steer(egress: u8, set: u16) -> Self {
        let egress = (egress as u32) << 5;
        Decision((set as u32) << 15 | Self::SET | Self::STEER | egress | Reason::Steered as u32)
    }

    /// Returns where the packet goes.
    #[inline(always)]
    pub const fn verdict(&self) -> Verdict {
        match self.egress() {
            Some(egress) => Verdict::Steer(egress),
            None => Verdict::Pass,
        }
    }

    /// Returns why.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match Reason::from_number(self.reason_number()) {
            Some(reason) => reason,
            None => Reason::NoRuleset,
        }
    }

    /// The reason's number.
    #[inline(always)]
    pub const fn reason_number(&self) -> u32 {
        self.0 & Self::REASON
    }

    /// The index of the egress, if it is steered.
    #[inline(always)]
    pub const fn egress(&self) -> Option<u8> {
        if self.0 & Self::STEER == 0 {
            None
        } else {
            Some((self.0 >> 5 & 0xff) as u8)
        }
    }

    /// The slot of the endpoint set that decided, if one matched.
    #[inline(always)]
    pub const fn set(&self) -> Option<u16> {
        if self.0 & Self::SET == 0 {
            None
        } else {
            Some((self.0 >> 15 & 0xffff) as u16)
        }
    }

    /// The same for another reason.
    #[inline(always)]
    #[must_use]
    pub const fn because(self, reason: Reason) -> Self {
        Decision(self.0 & !Self::REASON | reason as u32)
    }

    /// The same for the reason with this number.
    #[inline(always)]
    #[must_use]
    pub const fn because_of(self, number: u32) -> Self {
        Decision(self.0 & !Self::REASON | number & Self::REASON)
    }

    /// The ordinary path all the same, for another reason.
    #[inline(always)]
    #[must_use]
    pub const fn but_pass(self, reason: Reason) -> Self {
        Decision(self.0 & !Self::STEER & !Self::EGRESS).because(reason)
    }

    /// The decision as a word.
    #[inline(always)]
    pub const fn to_word(&self) -> u32 {
        self.0
    }

    /// The decision that a word stands for, if its reason is one.
    pub const fn from_word(word: u32) -> Option<Self> {
        match Reason::from_number(word & Self::REASON) {
            Some(_) => Some(Decision(word)),
            None => None,
        }
    }

    /// The decision of a word that came from [`to_word`](Self::to_word).
    #[inline(always)]
    pub const fn from_known_word(word: u32) -> Self {
        Decision(word)
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verdict, reason, set) = (self.verdict(), self.reason(), self.set());
        write!(f, "Decision {{ {verdict:?}, {reason:?}, set {set:?} }}")
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
            for set in [0, 4095, u16::MAX] {
                for decision in [
                    Decision::pass(*reason),
                    Decision::pass_set(*reason, set),
                    Decision::steer(255, set).because(*reason),
                    Decision::steer(0, set).because(*reason),
                ] {
                    assert_eq!(Decision::from_word(decision.to_word()), Some(decision));
                }
            }
        }
        assert_eq!(Decision::from_word(0x1f), None);
        let passed = Decision::steer(3, 7).but_pass(Reason::EgressDown);
        assert_eq!(passed, Decision::pass_set(Reason::EgressDown, 7));
    }

    #[test]
    fn steer_reasons_are_told_from_the_others() {
        assert!(!Reason::NoDevice.is_steer() && !Reason::Tagged.is_steer());
        assert!(Reason::KernelSource.is_steer());
        assert!(!Reason::Pinned.is_steer());
        assert!(!Reason::NoPrefix.is_steer());
        assert!(!Reason::EgressDown.is_steer());
    }
}
