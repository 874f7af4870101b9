//! The decision: what the ruleset says about a packet whose headers have been walked, and which way it takes then.

use crate::condition::Client;
use crate::frame::Frame;
use crate::packet::Headers;
use crate::path::{Flow, NoPins, PathTable, settle, unsteered};
use crate::table::{Destination, Lookup, Outcome, Transport};
use crate::verdict::Decision;

/// Returns what the ruleset says about a packet, by its destination, protocol and destination port, and by its client where the
/// policy asks for that, as the word of an [`Answer`](crate::table::Answer). `lan` is the number of the LAN interface that it
/// came in by.
#[inline(always)]
pub fn rule<L: Lookup + ?Sized, F: Frame + ?Sized>(
    ruleset: &L,
    frame: &F,
    headers: &Headers,
    lan: u32,
) -> u32 {
    ruleset.lookup_word(headers.destination(), headers.key, || {
        client(frame, headers, lan)
    })
}

/// The flow of a packet that the ruleset has answered with a word. `None` if the frame is not what the walk saw.
#[inline(always)]
pub fn flow<F: Frame + ?Sized>(frame: &F, headers: &Headers, word: u32) -> Option<Flow> {
    let source = source(frame, headers)?;
    let ports = frame.read::<4>(headers.transport_offset)?;
    let ports = u64::from(u32::from_be_bytes(ports)) << 32;
    let mut facts = ports | u64::from(word & Outcome::ALL);
    facts |= if headers.is_v6() { Flow::V6 } else { 0 };
    if headers.key & Transport::Udp.key(0) == 0 {
        facts |= Flow::TCP;
        // RFC 9293, section 3.1: FIN is bit 0, SYN bit 1, RST bit 2, ACK bit 4 of the flags.
        // A capture may end before them.
        let flags = frame.read::<1>(headers.transport_offset.wrapping_add(13));
        let [flags] = flags.unwrap_or_default();
        facts |= if flags & 0x12 == 0x02 { Flow::OPENS } else { 0 };
        facts |= if flags & 0x05 != 0 { Flow::CLOSES } else { 0 };
    }
    Some(Flow {
        source,
        destination: headers.halves,
        facts,
    })
}

/// The decision on a packet that the ruleset has answered with a word, without pins.
#[inline(always)]
pub fn decide_unpinned<F: Frame + ?Sized>(
    frame: &F,
    headers: &Headers,
    word: u32,
    table: &PathTable,
) -> Decision {
    match flow(frame, headers, word) {
        Some(flow) => settle(&flow, table, &NoPins),
        None => unsteered(word),
    }
}

/// The decision that a word of the ruleset stands for, with the preference's index where an egress's would be.
pub const fn by_preference(word: u32) -> Decision {
    match Outcome::from_word(word) {
        Outcome {
            preference: Some(preference),
            hold: None,
            set,
            ..
        } if word & Outcome::PRESENT != 0 => Decision::steer(preference, set),
        _ => unsteered(word),
    }
}

/// Returns who sends the packet. `None` if the frame is not what the walk saw.
#[inline(always)]
fn client<F: Frame + ?Sized>(frame: &F, headers: &Headers, lan: u32) -> Option<Client> {
    let (high, low) = source(frame, headers)?;
    Some(Client {
        source: Destination::from_halves(headers.is_v6(), high, low),
        lan,
        vlan: headers.vlan,
    })
}

/// The source address as two halves, see [`Destination::from_halves`]. `None` if the frame is not what the walk saw.
#[inline(always)]
pub fn source<F: Frame + ?Sized>(frame: &F, headers: &Headers) -> Option<(u64, u64)> {
    if headers.is_v6() {
        let half = |octets| Some(u64::from_be_bytes(octets));
        Some((
            frame.read(headers.ip_offset + 8).and_then(half)?,
            frame.read(headers.ip_offset + 16).and_then(half)?,
        ))
    } else {
        let octets = frame.read::<4>(headers.ip_offset + 12)?;
        Some((0, u64::from(u32::from_be_bytes(octets))))
    }
}
