//! Answers to flows: finds the flow of a packet that goes to a client, and notes the tick beside its entry.

use crate::frame::Frame;
use crate::packet::Headers;
use crate::path::{Flow, PinKey};
use crate::table::Transport;

/// Bit position of the tick in the note beside an entry, of which it is the last field.
const ANSWERED_AT: u32 = 48;
/// Those bits.
pub const ANSWERED: u64 = !0 << ANSWERED_AT;

/// The tick of the last answer as a note has it; 0 if there has been none.
#[inline(always)]
pub const fn answered(note: u64) -> u16 {
    (note >> ANSWERED_AT) as u16
}

/// A note with an answer in this tick.
#[inline(always)]
pub const fn with_answer(note: u64, now: u32) -> u64 {
    let tick = (now & 0xffff) as u64;
    note & !ANSWERED | (if tick == 0 { 1 } else { tick }) << ANSWERED_AT
}

/// The key of the flow that a packet answers: addresses and ports the other way round. `None` if the frame is not what
/// the walk saw.
#[inline(always)]
pub fn answered_flow<F: Frame + ?Sized>(
    frame: &F,
    headers: &Headers,
    (source_high, source_low): (u64, u64),
) -> Option<PinKey> {
    let [s0, s1, d0, d1] = frame.read(headers.transport_offset)?;
    let ports = Flow::ports(u16::from_be_bytes([d0, d1]), u16::from_be_bytes([s0, s1]));
    let v6 = if headers.is_v6() { Flow::V6 } else { 0 };
    let tcp = if headers.key & Transport::Udp.key(0) == 0 {
        Flow::TCP
    } else {
        0
    };
    let (high, low) = headers.halves;
    Some([high, low, source_high, source_low, ports | v6 | tcp])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::{flow, source};
    use crate::packet::plain_v4;

    #[test]
    fn an_answer_says_in_which_tick_and_nothing_else() {
        let note = 0x0000_1234_89ab_cdef;
        assert_eq!(answered(note), 0);
        for (now, tick) in [(5, 5), (0x1_0007, 7), (0, 1), (0x7_0000, 1)] {
            let noted = with_answer(with_answer(note, 99), now);
            assert_eq!((answered(noted), noted & !ANSWERED), (tick, note));
        }
    }

    #[test]
    fn the_answered_flow_has_the_key_that_its_own_packets_give() {
        let mut frame = [0; 60];
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[16..18].copy_from_slice(&46u16.to_be_bytes());
        frame[23] = 17;
        let (client, server) = ([10, 1, 0, 2], [52, 112, 0, 2]);
        let (from, to) = (50004u16.to_be_bytes(), 3478u16.to_be_bytes());
        frame[26..30].copy_from_slice(&client);
        frame[30..34].copy_from_slice(&server);
        frame[34..36].copy_from_slice(&from);
        frame[36..38].copy_from_slice(&to);
        for protocol in [6, 17] {
            frame[23] = protocol;
            let asks = plain_v4(&frame[..]).unwrap();
            let asked = flow(&frame[..], &asks, 0).unwrap();
            let mut back = frame;
            back[26..30].copy_from_slice(&server);
            back[30..34].copy_from_slice(&client);
            back[34..36].copy_from_slice(&to);
            back[36..38].copy_from_slice(&from);
            let headers = plain_v4(&back[..]).unwrap();
            let source = source(&back[..], &headers).unwrap();
            assert_eq!(
                answered_flow(&back[..], &headers, source),
                Some(asked.key())
            );
        }
    }
}
