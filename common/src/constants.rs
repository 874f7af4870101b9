//! Constants that the controller sets in the programs when it loads them.

use crate::flows::{Secret, SetSecret};

/// The constants of one loaded program, in the layout that the loader writes into its read-only data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Constants {
    /// Keeps the compiler from storing other constants, such as a zero key, in the same place: it merges what has equal
    /// initial values, and would so give them the values that the loader writes here.
    pub guard: [u8; 8],
    /// Words of one ruleset table. Every access to a table is checked against this.
    pub table_words: u32,
    /// The LAN interface's MAC address: only frames addressed to it are the gateway's to forward.
    pub lan_mac: [u8; 6],
    /// Not zero if each decision is logged (`breakout run --trace`).
    pub trace: u8,
    /// Not zero if the TC program counts. It does not where the XDP program runs before it and has counted already.
    pub tc_counts: u8,
    /// Not zero if the TC program leaves its decision in the control block of the packet, for whoever makes a test run.
    pub report: u8,
    /// The number of the LAN interface, by which the policy tells it from others; of an egress its index.
    pub lan: u8,
    /// Not zero if flows are pinned.
    pub pins: u8,
    /// By how many bits jiffies are shifted down to the ticks of pins' times.
    pub clock_shift: u8,
    /// The secret of the table of flows.
    pub flow_secret: Secret,
    /// The number of its sets, less one.
    pub flow_mask: u32,
    /// The LAN interface's IPv4 address, by which the programs answer clients; zeros if it has none.
    pub lan_v4: [u8; 4],
    /// The same for IPv6.
    pub lan_v6: [u8; 16],
    /// The number of sets of the table of mappings, less one; 0 if no egress translates.
    pub nat_mask: u32,
    /// For how many ticks of silence a mapping of TCP lives.
    pub nat_tcp_idle: u16,
    /// The same for UDP.
    pub nat_udp_idle: u16,
    /// The secret of their places.
    pub nat_secret: SetSecret,
    /// Not zero on an egress where XDP forwards replies of flows that are not translated.
    pub returns: u8,
    /// Not zero if the interface has no link header: its packets begin with the IP header.
    pub bare: u8,
    /// The MTU of the LAN interface in bytes: longer segments are not announced to the other side.
    pub lan_mtu: u16,
    /// Fills the last word.
    pub filler: [u8; 4],
}

/// The size of [`Constants`] in bytes.
pub const CONSTANTS_LEN: usize = 144;

const _: () = assert!(size_of::<Constants>() == CONSTANTS_LEN);

impl Constants {
    /// Constants of the object file before the loader sets them: with no table, everything passes.
    pub const UNSET: Constants = Constants {
        guard: *b"breakout",
        table_words: 0,
        lan_mac: [0; 6],
        trace: 0,
        tc_counts: 0,
        report: 0,
        lan: 0,
        pins: 0,
        clock_shift: 0,
        flow_secret: Secret::NONE,
        flow_mask: 0,
        lan_v4: [0; 4],
        lan_v6: [0; 16],
        nat_mask: 0,
        nat_tcp_idle: 0,
        nat_udp_idle: 0,
        nat_secret: [0; 2],
        returns: 0,
        bare: 0,
        lan_mtu: u16::MAX,
        filler: [0; 4],
    };

    /// The bytes as the program reads them, in the machine's byte order.
    pub fn to_bytes(&self) -> [u8; CONSTANTS_LEN] {
        let small = [
            self.trace,
            self.tc_counts,
            self.report,
            self.lan,
            self.pins,
            self.clock_shift,
        ];
        let Secret { sets, keys } = self.flow_secret;
        let (sets, keys) = (sets.map(u64::to_ne_bytes), keys.map(u64::to_ne_bytes));
        let (words, mask) = (self.table_words.to_ne_bytes(), self.flow_mask.to_ne_bytes());
        let (nat_mask, nat_secret) = (
            self.nat_mask.to_ne_bytes(),
            self.nat_secret.map(u64::to_ne_bytes),
        );
        let idle = [self.nat_tcp_idle, self.nat_udp_idle].map(u16::to_ne_bytes);
        let parts: [&[u8]; 14] = [
            &self.guard,
            &words,
            &self.lan_mac,
            &small,
            sets.as_flattened(),
            keys.as_flattened(),
            &mask,
            &self.lan_v4,
            &self.lan_v6,
            &nat_mask,
            idle.as_flattened(),
            nat_secret.as_flattened(),
            &[self.returns, self.bare],
            &self.lan_mtu.to_ne_bytes(),
        ];
        let mut bytes = [0; CONSTANTS_LEN];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}
