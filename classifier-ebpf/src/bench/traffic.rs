//! Traffic for the forwarding benchmarks: one program makes packets, one counts and drops them.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use breakout_common::frame::{Frame, FrameMut};

use crate::questions::{address, advance};
use crate::reader::Packet;

/// Values that the loader fills in for all packets.
#[repr(C)]
struct Traffic {
    /// Keeps the compiler from merging this with other constants; see `breakout_common::constants`.
    guard: [u8; 8],
    /// Destination and source addresses of the generator.
    macs: [u8; 12],
    /// Destination and source addresses of a forwarder.
    forwarded: [u8; 12],
    /// The interface that a forwarder sends by.
    egress: u32,
    /// The bits of the source port in which packets to one destination differ. There are 2^16 destinations.
    ports: u32,
}

#[unsafe(no_mangle)]
static TRAFFIC: Traffic = Traffic {
    guard: *b"traffic!",
    macs: [0; 12],
    forwarded: [0; 12],
    egress: 0,
    ports: 0,
};

/// The MAC addresses that a forwarder writes.
#[inline(always)]
pub(crate) fn forwarded() -> [u8; 12] {
    // SAFETY: a field of an initialised static is valid to read; volatile, because the loader changes it.
    unsafe { core::ptr::read_volatile(&raw const TRAFFIC.forwarded) }
}

/// The interface that a forwarder sends by.
#[inline(always)]
pub(crate) fn egress() -> u32 {
    // SAFETY: as in `forwarded`.
    unsafe { core::ptr::read_volatile(&raw const TRAFFIC.egress) }
}

/// Packets that the sink has dropped.
#[btf_map]
static SUNK: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Makes the next packet: UDP to port 443 of the next destination. All that a path may change is written anew, since the
/// kernel uses the frames of a test run again and again. The frame that comes in says how long it is, and by its
/// ethertype whether it is IPv4.
#[xdp]
#[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
pub(crate) fn generate(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    let len = (end.wrapping_sub(start) & 0xffff) as u32;
    let mut packet = Packet::new(start, end, len);
    let number = advance(1);
    match make(&mut packet, number, len) {
        Some(()) => XDP_TX,
        None => XDP_DROP,
    }
}

#[inline(always)]
fn make(packet: &mut Packet, number: u32, len: u32) -> Option<()> {
    // SAFETY: as in `forwarded`.
    let (macs, ports) = unsafe {
        (
            core::ptr::read_volatile(&raw const TRAFFIC.macs),
            core::ptr::read_volatile(&raw const TRAFFIC.ports),
        )
    };
    packet.write(0, macs)?;
    let [_, _, _, port] = ((number >> 16) & ports).to_be_bytes();
    let [p0, p1, p2, p3] = [0xc0, port, 0x01, 0xbb];
    if packet.read::<1>(12)? == [0x08] {
        let [destination] = address::<1>(number)?;
        let length = (len - 14) & 0xffff;
        // The words of the header below, but for the checksum itself.
        let sum = 0x4500
            + length
            + 0x4011
            + 0x0a01
            + 0x0002
            + (destination >> 16)
            + (destination & 0xffff);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) & 0xffff;
        let [_, _, l0, l1] = length.to_be_bytes();
        let [_, _, c0, c1] = sum.to_be_bytes();
        packet.write(14, [0x45, 0, l0, l1, 0, 0, 0, 0, 64, 17, c0, c1])?;
        let [a, b, c, d] = destination.to_be_bytes();
        packet.write(26, [10, 1, 0, 2, a, b, c, d])?;
        // Connection tracking wants the length to be right; without a checksum (RFC 768).
        let [_, _, l0, l1] = (length - 20).to_be_bytes();
        packet.write(34, [p0, p1, p2, p3, l0, l1, 0, 0])
    } else {
        let [a, b, c, d] = address::<4>(number)?;
        let [_, _, l0, l1] = (len - 54).to_be_bytes();
        packet.write(14, [0x60, 0, 0, 0, l0, l1, 17, 64])?;
        packet.write(22, [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2])?;
        packet.write(38, a.to_be_bytes())?;
        packet.write(42, b.to_be_bytes())?;
        packet.write(46, c.to_be_bytes())?;
        packet.write(50, d.to_be_bytes())?;
        packet.write(54, [p0, p1, p2, p3, l0, l1])
    }
}

/// Counts and drops UDP, and lets the rest pass, which the far end needs to be found.
#[xdp]
pub(crate) fn sink(ctx: XdpContext) -> u32 {
    let packet = Packet::new(ctx.data(), ctx.data_end(), 0);
    let protocol = match packet.read::<2>(12) {
        Some([0x08, 0x00]) => packet.read::<1>(23),
        Some([0x86, 0xdd]) => packet.read::<1>(20),
        _ => None,
    };
    if protocol != Some([17]) {
        return XDP_PASS;
    }
    if let Some(count) = SUNK.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's slot, which only the program on this CPU writes.
        unsafe { *count += 1 };
    }
    XDP_DROP
}
