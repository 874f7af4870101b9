//! Captures made by hand, and frames to put into them.

use fastrand::Rng;

/// Writes a pcap file. Of each frame at most `snaplen` bytes are kept.
pub fn pcap(link: u32, snaplen: usize, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 0x4_0000, link] {
        file.extend(u32::to_le_bytes(word));
    }
    for frame in frames {
        let kept = &frame[..frame.len().min(snaplen)];
        for word in [0, 0, length(kept), length(frame)] {
            file.extend(u32::to_le_bytes(word));
        }
        file.extend(kept);
    }
    file
}

/// Writes a pcapng file with two interfaces of the same link type, whose packets alternate.
pub fn pcapng(link: u16, snaplen: usize, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    block(
        &mut file,
        0x0a0d_0d0a,
        &[
            &0x1a2b_3c4d_u32.to_le_bytes()[..],
            &[1, 0, 0, 0],
            &[0xff; 8],
        ]
        .concat(),
    );
    let interface = [
        &link.to_le_bytes()[..],
        &[0, 0],
        &0x4_0000_u32.to_le_bytes(),
    ]
    .concat();
    block(&mut file, 1, &interface);
    block(&mut file, 1, &interface);
    // An interface's statistics: not a packet.
    block(&mut file, 5, &[0; 12]);
    for (number, frame) in (0u32..).zip(frames) {
        let kept = &frame[..frame.len().min(snaplen)];
        let mut body = Vec::new();
        for word in [number % 2, 0, 0, length(kept), length(frame)] {
            body.extend(u32::to_le_bytes(word));
        }
        body.extend(kept);
        body.resize(body.len().next_multiple_of(4), 0);
        block(&mut file, 6, &body);
    }
    file
}

fn block(file: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let total = u32::try_from(body.len() + 12).expect("blocks are short");
    file.extend(kind.to_le_bytes());
    file.extend(total.to_le_bytes());
    file.extend(body);
    file.extend(total.to_le_bytes());
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("frames are short")
}

/// A frame with whatever a LAN may send: tags, options, extension headers, fragments, and damage.
pub fn any_frame(rng: &mut Rng) -> Vec<u8> {
    let mut frame = vec![0; 12];
    if rng.u8(..) < 8 {
        frame[0] = 1;
    }
    for _ in 0..[0, 0, 0, 0, 1, 2, 3][rng.usize(..7)] {
        frame.extend([0x81, 0x00, 0, rng.u8(..)]);
    }
    let is_v6 = rng.bool();
    if rng.u8(..) < 16 {
        let protocol = if is_v6 { 0x57 } else { 0x21 };
        frame.extend([0x88, 0x64, 0x11, 0, 0, 1, 0, 0, 0, protocol]);
    } else {
        frame.extend(if is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    }
    let transport = if rng.bool() { 6 } else { 17 };
    let ports = *rng.choice(&[80, 443, 25, 3478, 3481, 993]).unwrap_or(&80);
    let payload_len = *rng.choice(&[20, 60, 1400, 3000]).unwrap_or(&20);
    let mut payload = vec![0; payload_len];
    payload[2..4].copy_from_slice(&u16::to_be_bytes(ports));
    if is_v6 {
        ipv6(rng, &mut frame, transport, &payload);
    } else {
        ipv4(rng, &mut frame, transport, &payload);
    }
    if rng.u8(..) < 64 {
        let at = rng.usize(..frame.len().min(80));
        frame[at] = rng.u8(..);
    }
    if rng.u8(..) < 16 {
        frame.truncate(rng.usize(..frame.len().min(100)));
    }
    frame
}

fn ipv4(rng: &mut Rng, frame: &mut Vec<u8>, transport: u8, payload: &[u8]) {
    let options = if rng.u8(..) < 32 {
        rng.usize(1..=10)
    } else {
        0
    };
    let total = u16::try_from(20 + options * 4 + payload.len()).unwrap_or(u16::MAX);
    let [high, low] = total.to_be_bytes();
    let fragment = if rng.u8(..) < 64 {
        [0x20, 0, 0x20, 9, 0, 9][rng.usize(..3) * 2..][..2].to_vec()
    } else {
        vec![0, 0]
    };
    frame.extend([
        0x45 + u8::try_from(options).unwrap_or(0),
        0,
        high,
        low,
        0,
        rng.u8(..4),
    ]);
    frame.extend(fragment);
    frame.extend([64, transport, 0, 0, 10, 0, 0, rng.u8(..3)]);
    let destinations: [[u8; 4]; 5] = [
        [52, 96, 0, 1],
        [52, 112, 0, 1],
        [13, 107, 6, 152],
        [9, 9, 9, 9],
        [224, 0, 0, 1],
    ];
    frame.extend(*rng.choice(&destinations).unwrap_or(&[9; 4]));
    frame.resize(frame.len() + options * 4, 1);
    frame.extend(payload);
}

fn ipv6(rng: &mut Rng, frame: &mut Vec<u8>, transport: u8, payload: &[u8]) {
    let kinds = [0u8, 43, 60, 44, 51, 44];
    let headers: Vec<u8> = (0..rng.usize(..40).saturating_sub(30))
        .map(|_| kinds[rng.usize(..6)])
        .collect();
    let mut chain = Vec::new();
    for (index, kind) in headers.iter().enumerate() {
        let next = headers.get(index + 1).copied().unwrap_or(transport);
        match kind {
            44 => chain.extend([
                next,
                0,
                0,
                [0, 1, 1, 9][rng.usize(..4)],
                0,
                0,
                0,
                rng.u8(..4),
            ]),
            51 => chain.extend([next, 4].into_iter().chain([0; 22])),
            _ => {
                let units = rng.u8(..3);
                chain.extend([next, units]);
                chain.resize(chain.len() + 6 + usize::from(units) * 8, 0);
            }
        }
    }
    let first = headers.first().copied().unwrap_or(transport);
    let length = u16::try_from(chain.len() + payload.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    frame.extend([0x60, 0, 0, 0, length[0], length[1], first, 64]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, rng.u8(..3)]);
    let destinations: [[u8; 4]; 4] = [
        [0x26, 0x03, 0x10, 0x06],
        [0x26, 0x03, 0x10, 0x63],
        [0x2a, 1, 0, 0],
        [0xff, 2, 0, 0],
    ];
    frame.extend(*rng.choice(&destinations).unwrap_or(&[9; 4]));
    frame.extend([0; 12]);
    frame.extend(chain);
    frame.extend(payload);
}
