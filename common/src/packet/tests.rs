//! Frames by hand, and the walk against etherparse.

extern crate std;

use std::vec;
use std::vec::Vec;

use etherparse::PacketBuilder;
use proptest::collection::vec as bytes;
use proptest::prelude::*;

use super::*;

const MACS: [u8; 12] = [0; 12];

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn vlan(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut tag = vec![0, 5];
    tag.extend(ethertype.to_be_bytes());
    tag.extend(payload);
    tag
}

/// An IPv4 packet to 52.113.0.1 with `options` bytes of options around a UDP header for port 3478.
fn ipv4_udp(options: usize, fragment: u16) -> Vec<u8> {
    let header = 20 + options;
    let total = u8::try_from(header + 8).unwrap();
    let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0, 0, total, 0, 0];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, 17, 0, 0, 10, 1, 0, 2, 52, 113, 0, 1]);
    packet.extend(vec![1; options]);
    packet.extend([0x30, 0x39, 0x0d, 0x96, 0, 8, 0, 0]);
    packet
}

/// An IPv6 packet to 2603:1063::1 with these extension headers in front of a TCP header for port 443.
fn ipv6_tcp(extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut chain = Vec::new();
    for (index, (_, content)) in extensions.iter().enumerate() {
        chain.push(extensions.get(index + 1).map_or(6, |next| next.0));
        chain.extend(content);
    }
    chain.extend([
        0x30, 0x39, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0,
    ]);
    let first = extensions.first().map_or(6, |extension| extension.0);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(chain.len()).unwrap().to_be_bytes());
    packet.extend([first, 64]);
    packet.extend([0; 16]);
    packet.extend([0x26, 0x03, 0x10, 0x63, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(chain);
    packet
}

/// An extension header of `units * 8` bytes without its first byte, which the chain fills in.
fn extension(units: u8) -> Vec<u8> {
    let mut content = vec![units - 1];
    content.extend(vec![0; usize::from(units) * 8 - 2]);
    content
}

fn reason(frame: &[u8]) -> Reason {
    walk(frame)
        .expect_err("the frame is not decidable")
        .reason()
}

#[test]
fn plain_packets() {
    let v4 = walk(ethernet(0x0800, &ipv4_udp(0, 0x4000)).as_slice()).unwrap();
    assert_eq!(v4.destination(), Destination::V4(0x3471_0001));
    assert_eq!(v4.key, Transport::Udp.key(3478));
    assert_eq!((v4.ip_offset, v4.ip_len, v4.ttl), (14, 28, 64));
    assert_eq!(v4.marks, 0);
    let v6 = walk(ethernet(0x86dd, &ipv6_tcp(&[])).as_slice()).unwrap();
    assert_eq!(v6.destination(), Destination::V6(0x2603_1063_0000_0000, 1));
    assert_eq!(v6.key, Transport::Tcp.key(443));
    assert_eq!((v6.ip_len, v6.ttl), (60, 64));
}

#[test]
fn tags_and_pppoe_are_walked_through() {
    let ip = ipv4_udp(0, 0);
    for frame in [
        ethernet(0x8100, &vlan(0x0800, &ip)),
        ethernet(0x88a8, &vlan(0x8100, &vlan(0x0800, &ip))),
        ethernet(
            0x8864,
            &[&[0x11, 0, 0, 1, 0, 30, 0, 0x21], &ip[..]].concat(),
        ),
        ethernet(
            0x8100,
            &vlan(
                0x8864,
                &[&[0x11, 0, 0, 1, 0, 30, 0, 0x21], &ip[..]].concat(),
            ),
        ),
    ] {
        let headers = walk(frame.as_slice()).unwrap();
        assert_eq!(headers.marks, TAGGED);
        assert_eq!(headers.key, Transport::Udp.key(3478));
    }
    let three = vlan(0x8100, &vlan(0x8100, &vlan(0x0800, &ip)));
    assert_eq!(reason(&ethernet(0x8100, &three)), Reason::VlanDepth);
    let discovery = ethernet(0x8863, &[0; 40]);
    assert_eq!(reason(&discovery), Reason::NotIp);
    let lcp = ethernet(0x8864, &[0x11, 0, 0, 1, 0, 4, 0xc0, 0x21]);
    assert_eq!(reason(&lcp), Reason::NotIp);
    let bad = ethernet(
        0x8864,
        &[&[0x21, 0, 0, 1, 0, 30, 0, 0x21], &ip[..]].concat(),
    );
    assert_eq!(reason(&bad), Reason::Malformed);
}

#[test]
fn ipv4_options_and_fragments() {
    for options in [4, 8, 40] {
        let headers = walk(ethernet(0x0800, &ipv4_udp(options, 0)).as_slice()).unwrap();
        assert_ne!(headers.marks & OPTIONS, 0);
        assert_eq!(headers.key, Transport::Udp.key(3478));
    }
    let first = walk(ethernet(0x0800, &ipv4_udp(0, 0x2000)).as_slice()).unwrap();
    assert!(first.first_fragment().is_some());
    let later = ethernet(0x0800, &ipv4_udp(0, 0x2001));
    assert_eq!(reason(&later), Reason::LaterFragment);
    let last = ethernet(0x0800, &ipv4_udp(0, 0x0001));
    assert_eq!(reason(&last), Reason::LaterFragment);
}

#[test]
fn ipv6_extension_headers_in_any_number_up_to_the_bound() {
    let fragment = |field: u16| {
        let [high, low] = field.to_be_bytes();
        (44, vec![0, high, low, 0, 0, 0, 7])
    };
    for (extensions, first_fragment) in [
        (vec![(0, extension(1))], false),
        (
            vec![(0, extension(2)), (60, extension(1)), (43, extension(3))],
            false,
        ),
        (vec![fragment(0x0001)], true),
        (vec![fragment(0x0000)], false),
        (
            vec![(0, extension(1)), fragment(0x0001), (60, extension(1))],
            true,
        ),
        // Authentication header: 4-byte units minus two.
        (vec![(51, vec![4; 23])], false),
        (vec![(60, extension(1)); 8], false),
    ] {
        let frame = ethernet(0x86dd, &ipv6_tcp(&extensions));
        let headers = walk(frame.as_slice()).unwrap_or_else(|r| panic!("{extensions:?}: {r:?}"));
        assert_eq!(headers.key, Transport::Tcp.key(443), "{extensions:?}");
        assert_eq!(
            headers.first_fragment().is_some(),
            first_fragment,
            "{extensions:?}"
        );
        assert_ne!(headers.marks & OPTIONS, 0);
    }
    let refused = |extensions: &[(u8, Vec<u8>)]| reason(&ethernet(0x86dd, &ipv6_tcp(extensions)));
    assert_eq!(
        refused(&vec![(60, extension(1)); 9]),
        Reason::ExtensionHeaders
    );
    assert_eq!(refused(&[fragment(0x0008)]), Reason::LaterFragment);
    assert_eq!(
        refused(&[(60, extension(1)), (0, extension(1))]),
        Reason::Malformed
    );
    assert_eq!(refused(&[(60, extension(130))]), Reason::ExtensionHeaders);
}

#[test]
fn what_is_not_for_the_table() {
    assert_eq!(reason(&ethernet(0x0806, &[0; 28])), Reason::NotIp);
    let mut icmp = ipv4_udp(0, 0);
    icmp[9] = 1;
    assert_eq!(reason(&ethernet(0x0800, &icmp)), Reason::OtherProtocol);
    for group in [224, 239, 240, 255] {
        let mut packet = ipv4_udp(0, 0);
        packet[16] = group;
        assert_eq!(reason(&ethernet(0x0800, &packet)), Reason::GroupAddress);
    }
    let mut multicast = ipv6_tcp(&[]);
    multicast[24] = 0xff;
    assert_eq!(reason(&ethernet(0x86dd, &multicast)), Reason::GroupAddress);
    let mut broadcast = ethernet(0x0800, &ipv4_udp(0, 0));
    broadcast[..6].fill(0xff);
    assert_eq!(reason(&broadcast), Reason::GroupAddress);
}

#[test]
fn contradictions_and_short_frames() {
    for (at, value) in [(0, 0x55), (0, 0x44), (3, 19)] {
        let mut packet = ipv4_udp(0, 0);
        packet[at] = value;
        assert_eq!(
            reason(&ethernet(0x0800, &packet)),
            Reason::Malformed,
            "{at} {value}"
        );
    }
    let mut version = ipv6_tcp(&[]);
    version[0] = 0x40;
    assert_eq!(reason(&ethernet(0x86dd, &version)), Reason::Malformed);
    let mut no_room = ipv4_udp(0, 0);
    no_room[3] = 27;
    assert_eq!(reason(&ethernet(0x0800, &no_room)), Reason::Truncated);
    for frame in [
        ethernet(0x0800, &ipv4_udp(8, 0)),
        ethernet(0x86dd, &ipv6_tcp(&[(0, extension(1)), (60, extension(1))])),
        ethernet(0x8100, &vlan(0x86dd, &ipv6_tcp(&[]))),
    ] {
        for length in 0..frame.len() {
            assert_eq!(reason(&frame[..length]), Reason::Truncated, "{length}");
        }
        assert!(walk(frame.as_slice()).is_ok());
        // Ethernet pads short frames.
        assert!(walk([&frame[..], &[0; 9]].concat().as_slice()).is_ok());
    }
}

/// Packets that etherparse builds, in all layers that both know.
fn built() -> impl Strategy<Value = (Vec<u8>, Destination, Transport, u16)> {
    let layers = (0u8..3, any::<bool>(), any::<bool>(), any::<u16>());
    let content = (
        any::<u32>(),
        any::<u128>(),
        any::<u8>(),
        bytes(any::<u8>(), 0..64),
    );
    (layers, content).prop_map(|((tags, v6, tcp, port), (v4_to, v6_to, ttl, payload))| {
        // Group addresses are refused before the ports are looked at.
        let (v4_to, v6_to) = (v4_to >> 1, v6_to >> 1);
        let builder = PacketBuilder::ethernet2([0; 6], [2; 6]);
        let mut frame = Vec::new();
        macro_rules! finish {
            ($builder:expr) => {{
                let builder = $builder;
                if tcp {
                    builder
                        .tcp(1, port, 0, 9)
                        .write(&mut frame, &payload)
                        .unwrap();
                } else {
                    builder.udp(1, port).write(&mut frame, &payload).unwrap();
                }
            }};
        }
        macro_rules! network {
            ($builder:expr) => {
                if v6 {
                    finish!($builder.ipv6([1; 16], v6_to.to_be_bytes(), ttl))
                } else {
                    finish!($builder.ipv4([10, 1, 0, 2], v4_to.to_be_bytes(), ttl))
                }
            };
        }
        let vid = |id| etherparse::VlanId::try_new(id).unwrap();
        match tags {
            0 => network!(builder),
            1 => network!(builder.single_vlan(vid(7))),
            _ => network!(builder.double_vlan(vid(7), vid(8))),
        }
        let destination = if v6 {
            let [high, low] = [(v6_to >> 64), v6_to & u128::from(u64::MAX)];
            Destination::V6(high.try_into().unwrap(), low.try_into().unwrap())
        } else {
            Destination::V4(v4_to)
        };
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        (frame, destination, transport, port)
    })
}

/// Returns what etherparse reads from a frame: destination and port, if it is TCP or UDP that it can follow to the ports.
fn by_etherparse(frame: &[u8]) -> Option<(Destination, u16)> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let destination = match packet.net? {
        etherparse::NetSlice::Ipv4(ip) => {
            Destination::V4(u32::from_be_bytes(ip.header().destination()))
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let bits = u128::from_be_bytes(ip.header().destination());
            let [high, low] = [bits >> 64, bits & u128::from(u64::MAX)];
            Destination::V6(high.try_into().unwrap(), low.try_into().unwrap())
        }
        _ => return None,
    };
    let port = match packet.transport? {
        etherparse::TransportSlice::Tcp(tcp) => tcp.destination_port(),
        etherparse::TransportSlice::Udp(udp) => udp.destination_port(),
        _ => return None,
    };
    Some((destination, port))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_etherparse_builds_is_understood((frame, destination, transport, port) in built()) {
        let headers = walk(frame.as_slice()).unwrap();
        prop_assert_eq!(headers.destination(), destination);
        prop_assert_eq!(headers.key, transport.key(port));
    }

    #[test]
    fn damaged_frames_are_read_as_etherparse_reads_them(
        (mut frame, ..) in built(),
        damage in bytes((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
    ) {
        for (at, value) in damage {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if shorten {
            frame.truncate(cut.index(frame.len() + 1));
        }
        // Where both follow a packet to its ports, they agree. etherparse refuses more (it checks whole
        // headers) and follows other layers.
        if let (Ok(headers), Some((destination, port))) =
            (walk(frame.as_slice()), by_etherparse(&frame))
        {
            prop_assert_eq!(headers.destination(), destination);
            prop_assert_eq!(headers.key & 0xffff, u32::from(port));
        }
    }

    #[test]
    fn no_bytes_make_the_walk_fail(frame in bytes(any::<u8>(), 0..256)) {
        let _ = walk(frame.as_slice());
    }
}

/// A plain packet: IPv6 or IPv4, UDP or TCP, with so many bytes of payload.
fn plain(is_v6: bool, is_udp: bool, payload: u8) -> Vec<u8> {
    let (protocol, shortest) = if is_udp { (17, 8) } else { (6, 20) };
    let length = shortest + payload;
    let mut packet = if is_v6 {
        let mut header = vec![0x60, 0, 0, 0, 0, length, protocol, 64];
        header.extend([0x26; 32]);
        header
    } else {
        let mut header = vec![0x45, 0, 0, 20 + length, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        header.extend([52; 8]);
        header
    };
    packet.resize(packet.len() + usize::from(length), 1);
    ethernet(if is_v6 { 0x86dd } else { 0x0800 }, &packet)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// What the few steps for plain packets find is what the walk finds, also for damaged ones.
    #[test]
    fn plain_headers_are_those_of_the_walk(
        (is_v6, is_udp, payload) in (any::<bool>(), any::<bool>(), 0..40u8),
        // Mostly where it matters.
        damage in bytes((prop_oneof![0..26usize, 0..80usize], any::<u8>()), 0..4),
        (tail, cut) in (0..20usize, prop_oneof![Just(usize::MAX), 0..80usize]),
    ) {
        let mut frame = plain(is_v6, is_udp, payload);
        let shortest = if is_v6 { PLAIN_V6_LEN } else { PLAIN_V4_LEN };
        let is_whole = damage.is_empty() && cut >= frame.len();
        prop_assert!(frame.len() >= shortest);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.resize(frame.len() + tail, 0);
        frame.truncate(cut);
        let frame = frame.as_slice();
        let plain = [plain_v4(frame), plain_v6(frame)];
        for found in plain.into_iter().flatten() {
            prop_assert_eq!(Ok(found), walk(frame));
        }
        prop_assert!(!is_whole || plain != [None; 2]);
    }
}
