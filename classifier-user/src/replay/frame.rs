//! A captured frame as the header walk and the kernel's test run get it.

use std::cell::Cell;
use std::net::IpAddr;

use breakout_common::ethernet::ip_offset;
use breakout_common::fragment::key;
use breakout_common::frame::Frame;
use breakout_common::packet::{Stop, walk};

use super::Captured;

/// The longest frame for a test run; Linux takes about a page less what it needs itself.
const LIMIT: usize = 2048;

impl Frame for Captured {
    fn len(&self) -> u32 {
        self.len
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.as_slice().read(offset)
    }
}

/// Notes whether bytes are asked for that the frame had and the capture has not.
struct Watched<'a> {
    captured: &'a Captured,
    missed: Cell<bool>,
}

impl Frame for Watched<'_> {
    fn len(&self) -> u32 {
        self.captured.len
    }

    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let read = self.captured.read(offset);
        let end = offset as usize + N;
        if read.is_none() && end > self.captured.bytes.len() && end <= self.captured.len as usize {
            self.missed.set(true);
        }
        read
    }
}

/// The frame to hand to the kernel, or `None` if that would not help: it is too short for the kernel to look at, or the
/// capture has not all of the headers that are looked at.
///
/// A capture may have only the start of a frame, and a frame may be longer than a test run takes. The payload decides
/// nothing, so it is filled up or cut, and the IP length made to fit.
pub(super) fn for_test_run(captured: &Captured) -> Option<Vec<u8>> {
    let watched = Watched {
        captured,
        missed: Cell::new(false),
    };
    if let Err(Stop::LaterFragment(later)) = walk(&watched) {
        let _ = key(&watched, &later);
    }
    if watched.missed.get() {
        return None;
    }
    let mut frame = captured.bytes.clone();
    frame.resize((captured.len as usize).min(LIMIT), 0);
    if captured.len as usize > LIMIT {
        fit_ip_length(&mut frame, captured.len as usize);
    }
    (frame.len() >= shortest(&frame)).then_some(frame)
}

/// The shortest frame that test runs take: with something behind the Ethernet header (Linux 6.1), and with a whole IP header
/// if it says that it has one (Linux 6.18).
fn shortest(frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    }
}

/// Makes the IP length of a frame that was `len` bytes long fit what is left of it, if it was right before.
fn fit_ip_length(frame: &mut [u8], len: usize) {
    let Some(ip) = ip_offset(&*frame) else {
        return;
    };
    let ip = ip as usize;
    // An IPv6 length is without the fixed header.
    let (field, fixed) = if frame[ip] >> 4 == 6 {
        (ip + 4, 40)
    } else {
        (ip + 2, 0)
    };
    let length = fixed + usize::from(u16::from_be_bytes([frame[field], frame[field + 1]]));
    let (available, left) = (len - ip, frame.len() - ip);
    // Zero stands for more than the field can say.
    let is_zero = length == fixed && available > fixed + 0xffff;
    if is_zero || (left < length && length <= available) {
        let length = u16::try_from(left - fixed).unwrap_or(u16::MAX);
        frame[field..field + 2].copy_from_slice(&length.to_be_bytes());
    }
}

/// Key of a packet's flow, as far as it is there: source, destination, protocol and destination port as one number,
/// and source port.
pub(super) type Flow = (IpAddr, IpAddr, u32, u16);

/// The flow of a packet that the walk follows to its ports. Later fragments have none, and count as one of their own.
pub(super) fn flow(captured: &Captured) -> Option<Flow> {
    let (ip, key, source_port) = match walk(captured) {
        Ok(headers) => {
            let source_port = captured.read::<2>(headers.transport_offset)?;
            (
                headers.ip_offset,
                headers.key,
                u16::from_be_bytes(source_port),
            )
        }
        Err(Stop::LaterFragment(fragment)) => (fragment.ip_offset, 0, 0),
        Err(Stop::Reason(_)) => return None,
    };
    let [first] = captured.read::<1>(ip)?;
    let (source, destination): (IpAddr, IpAddr) = if first >> 4 == 6 {
        (
            captured.read::<16>(ip + 8)?.into(),
            captured.read::<16>(ip + 24)?.into(),
        )
    } else {
        (
            captured.read::<4>(ip + 12)?.into(),
            captured.read::<4>(ip + 16)?.into(),
        )
    };
    Some((source, destination, key, source_port))
}
