//! Asks the walk and the ruleset about one packet a run, made from the next question.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use breakout_common::classify::decide;
use breakout_common::frame::FrameMut;
use breakout_common::packet::walk;
use breakout_common::question::Question;
use breakout_common::table::Destination;
use breakout_common::verdict::Decision;

use crate::questions::{advance, answer, question};
use crate::reader::Packet;
use crate::ruleset::LiveRuleset;

/// Length of the packet in bytes, with its Ethernet header: enough for IPv6 and TCP.
const LEN: u32 = 74;

/// Entry point. The frame must have [`LEN`] bytes or more.
#[xdp]
pub(crate) fn ask(ctx: XdpContext) -> u32 {
    let number = advance(1);
    let mut packet = Packet::new(ctx.data(), ctx.data_end(), LEN);
    if let Some(words) = question(number)
        && write(&mut packet, &Question::from_words(&words)).is_some()
    {
        let decision = match walk(&packet) {
            Ok(headers) => decide(&LiveRuleset, &headers),
            Err(stop) => Decision::pass(stop.reason()),
        };
        answer(number, decision.to_word());
    }
    XDP_PASS
}

/// Writes the shortest packet that the question stands for.
#[inline(always)]
fn write(packet: &mut Packet, question: &Question) -> Option<()> {
    let protocol = if question.key >> 16 == 0 { 6 } else { 17 };
    let [_, _, port_high, port_low] = question.key.to_be_bytes();
    let ports = [0, 0, port_high, port_low];
    packet.write(0, [0; 12])?;
    match question.destination {
        Destination::V4(address) => {
            let [a, b, c, d] = address.to_be_bytes();
            packet.write(12, [8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0])?;
            packet.write(26, [10, 0, 0, 1, a, b, c, d])?;
            packet.write(34, ports)
        }
        Destination::V6(high, low) => {
            packet.write(12, [0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64])?;
            packet.write(22, [0; 16])?;
            packet.write(38, high.to_be_bytes())?;
            packet.write(46, low.to_be_bytes())?;
            packet.write(54, ports)
        }
    }
}
