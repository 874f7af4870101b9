//! Plan of an installation.

use std::net::{Ipv4Addr, Ipv6Addr};

use breakout_common::path::{PATH_WORDS, PathTable, Pin, PinKey};

use super::{Side, program};
use crate::config::XdpAttach;
use crate::ruleset::Image;

/// A LAN interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanPlan {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address; zeros if it has none.
    pub mac: [u8; 6],
    /// True if it has no link header, so that its packets begin with the IP header.
    pub is_bare: bool,
    /// Its MTU in bytes, up to the longest IP packet.
    pub mtu: u16,
    /// The addresses by which the programs answer clients; unspecified where it has none.
    pub addresses: (Ipv4Addr, Ipv6Addr),
    /// Mode of the XDP program, if one is needed.
    pub xdp: Option<XdpAttach>,
    /// Inode of the network namespace, which together with the index identifies the interface.
    pub namespace: u64,
    /// The number by which conditions tell it from other LAN interfaces; of an egress its index.
    pub number: u8,
    /// True if it is an egress instead, whose replies XDP forwards.
    pub is_egress: bool,
    /// True if it is an egress whose flows the programs translate, so that TC gives replies their clients back.
    pub translates: bool,
    /// True if it is an egress where XDP forwards replies of flows that are not translated.
    pub returns: bool,
    /// True if XDP may send replies to it.
    pub takes_replies: bool,
}

impl LanPlan {
    /// The sides on which it has TC programs.
    pub(super) fn sides(&self) -> &'static [Side] {
        match (self.is_egress, self.translates) {
            (false, _) => &[Side::Ingress, Side::Egress],
            (true, true) => &[Side::Replies],
            (true, false) => &[],
        }
    }

    /// The pin of the TC program on one side.
    pub(super) fn pin_at(&self, side: Side) -> String {
        let what = match side {
            Side::Ingress => "tc",
            Side::Egress => "tc-answer",
            Side::Replies => "tc-replies",
        };
        format!("{what}-{}-{}", self.namespace, self.index)
    }

    /// The XDP program that belongs on it.
    pub(super) fn xdp_program(&self) -> &'static str {
        if self.is_egress {
            program::REPLY
        } else {
            program::XDP
        }
    }

    /// An XDP link keeps its mode when its program is replaced, so the mode is part of the name.
    pub(super) fn xdp_pin(&self) -> String {
        let mode = match self.xdp {
            Some(XdpAttach::Generic) => "generic",
            _ => "native",
        };
        format!("xdp-{mode}-{}-{}", self.namespace, self.index)
    }

    /// The pin of an XDP link in the other mode, which must go before one in this mode can be made.
    pub(super) fn other_xdp_pin(&self) -> String {
        let other = match self.xdp {
            Some(XdpAttach::Generic) => XdpAttach::Native,
            _ => XdpAttach::Generic,
        };
        LanPlan {
            xdp: Some(other),
            ..self.clone()
        }
        .xdp_pin()
    }
}

/// The path table with the interface that each redirect goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The table as the programs read it.
    pub table: PathTable,
    /// Interface index for each egress in redirect mode.
    pub devices: Vec<(u8, u32)>,
}

impl Default for Paths {
    fn default() -> Self {
        Paths {
            table: PathTable::EMPTY,
            devices: Vec::new(),
        }
    }
}

impl Paths {
    /// The words of the table in the order in which the programs have them.
    pub fn words(&self) -> Vec<u32> {
        let PathTable {
            epoch,
            pins_beyond_ruleset,
            spread,
            media_hold,
            tcp_idle,
            udp_idle,
            tcp_established,
            udp_established,
            by_flow,
            reserved,
            working,
            egresses,
            preferences,
        } = &self.table;
        let mut words = Vec::with_capacity(PATH_WORDS);
        words.extend([
            *epoch,
            *pins_beyond_ruleset,
            *spread,
            *media_hold,
            *tcp_idle,
            *udp_idle,
            *tcp_established,
            *udp_established,
            *by_flow,
        ]);
        words.extend(reserved);
        words.extend(working);
        words.extend(egresses.as_flattened());
        words.extend(preferences.as_flattened());
        words
    }
}

/// Everything an installation consists of.
pub struct Plan<'a> {
    /// The LAN interfaces.
    pub lans: &'a [LanPlan],
    /// The compiled ruleset.
    pub image: &'a Image,
    /// The ways of steered packets.
    pub paths: &'a Paths,
    /// Number of flows that can be pinned; none if that is switched off.
    pub pins: Option<u32>,
    /// For how many flows there are mappings at least; none if no egress translates.
    pub mappings: Option<u32>,
    /// Asked for flows that are pinned from the start, once everything else is ready.
    pub pinned: &'a dyn Fn() -> Vec<(PinKey, Pin)>,
    /// True if each decision is logged.
    pub trace: bool,
}
