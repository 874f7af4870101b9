//! Asks the walk and the ruleset about one packet a run, made from the next question.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use breakout_common::classify::{by_preference, rule};
use breakout_common::condition::Client;
use breakout_common::frame::FrameMut;
use breakout_common::packet::walk;
use breakout_common::question::QuestionWords;
use breakout_common::table::{Destination, Lookup, NO_PREFIX, is_covered};
use breakout_common::verdict::Decision;

use crate::questions::{advance, answer, question};
use crate::reader::Packet;
use crate::ruleset::LiveTable;

/// Length of the packet in bytes, with its Ethernet header: enough for IPv6 and TCP.
const LEN: u32 = 74;

/// Entry point. The frame must have [`LEN`] bytes or more.
#[xdp]
pub(crate) fn ask(ctx: XdpContext) -> u32 {
    let number = advance(1);
    let mut packet = Packet::new(ctx.data(), ctx.data_end(), LEN);
    if let Some(words) = question(number)
        && write(&mut packet, &words).is_some()
    {
        let [.., lan, vlan] = words;
        let decision = match walk(&packet) {
            Ok(mut headers) => {
                headers.vlan = vlan;
                by_preference(rule(&LiveRuleset, &packet, &headers, lan))
            }
            Err(stop) => Decision::pass(stop.reason()),
        };
        answer(number, decision.to_word());
    }
    XDP_PASS
}

/// Writes the shortest packet that the question stands for. Goes by its words: of an address of either family the
/// compiler leaves a part undefined, and the verifier does not let that be moved about.
#[inline(always)]
fn write(packet: &mut Packet, words: &QuestionWords) -> Option<()> {
    let [family, key, addresses @ .., _, _] = *words;
    let protocol = if key >> 16 == 0 { 6 } else { 17 };
    let [_, _, port_high, port_low] = key.to_be_bytes();
    let ports = [0, 0, port_high, port_low];
    let [d0, d1, d2, d3, s0, s1, s2, s3] = addresses.map(u32::to_be_bytes);
    packet.write(0, [0; 12])?;
    if family == 4 {
        packet.write(12, [8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0])?;
        packet.write(26, s0)?;
        packet.write(30, d0)?;
        packet.write(34, ports)
    } else {
        packet.write(12, [0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64])?;
        packet.write(22, s0)?;
        packet.write(26, s1)?;
        packet.write(30, s2)?;
        packet.write(34, s3)?;
        packet.write(38, d0)?;
        packet.write(42, d1)?;
        packet.write(46, d2)?;
        packet.write(50, d3)?;
        packet.write(54, ports)
    }
}

/// The ruleset in force at the time of each question.
struct LiveRuleset;

impl Lookup for LiveRuleset {
    #[inline(always)]
    fn lookup_word(
        &self,
        destination: Destination,
        key: u32,
        client: impl FnOnce() -> Option<Client>,
    ) -> u32 {
        match LiveTable::current() {
            Some(table) if is_covered(&table, destination) => {
                table.lookup_word(destination, key, client)
            }
            Some(_) => NO_PREFIX,
            None => 0,
        }
    }
}
