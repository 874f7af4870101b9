//! The header walk is total, and what it finds is inside the packet, whatever bytes come.

#![no_main]

use breakout_common::egress::{Egress, NextHop};
use breakout_common::forward::{plan, rewrite};
use breakout_common::fragment::key;
use breakout_common::network::network;
use breakout_common::packet::{Stop, plain_v4, plain_v6, walk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    for plain in [plain_v4(frame), plain_v6(frame)].into_iter().flatten() {
        assert_eq!(Ok(plain), walk(frame));
    }
    match walk(frame) {
        Ok(headers) => {
            let (ip, transport) = (headers.ip_offset as usize, headers.transport_offset as usize);
            let end = ip + headers.ip_len as usize;
            let shortest = if headers.key >> 16 == 0 { 20 } else { 8 };
            assert!(ip >= 14 && transport >= ip + 20, "{headers:?}");
            assert!(transport + shortest <= end && end <= frame.len(), "{headers:?}");
            let port = u16::from_be_bytes([frame[transport + 2], frame[transport + 3]]);
            assert_eq!(headers.key & 0xffff, u32::from(port));
            if let Some(first) = headers.first_fragment() {
                assert!(key(frame, &first).is_some(), "{first:?}");
            }
            let egress = Egress {
                redirect: true,
                mtu: 1500,
                v4: NextHop::Mac([2; 6]),
                v6: NextHop::Mac([4; 6]),
                ..Egress::default()
            };
            let ip = network(frame).expect("a packet with headers has one of IP");
            assert_eq!((ip.offset, ip.len, ip.destination), (headers.ip_offset, headers.ip_len, headers.halves));
            assert!(ip.transport().is_none_or(|transport| transport == headers.transport_offset));
            if let Some(header) = plan(frame, &headers, &egress.to_words(), |_| false) {
                let mut forwarded = frame.to_vec();
                assert!(rewrite(forwarded.as_mut_slice(), &headers, header).is_some());
                let again = walk(forwarded.as_slice()).expect("what is forwarded is as whole as it was");
                assert_eq!(again.ttl, headers.ttl - 1);
                assert_eq!((again.destination(), again.key), (headers.destination(), headers.key));
            }
        }
        Err(Stop::LaterFragment(later)) => {
            let _ = key(frame, &later);
        }
        Err(Stop::Reason(reason)) => assert!(!reason.is_steer()),
    }
});
