//! Frames by hand through the loaded programs: reasons, fragments, and what XDP writes.

use anyhow::{Result, ensure};
use breakout::list::{Instance, embedded};
use breakout_common::egress::{Egress, NextHop};
use breakout_common::verdict::Reason;
use breakout_tests::testrun::TestBench;
use breakout_tests::wire::Ipv4Udp;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("the_programs_are_far_from_the_verifiers_limit", sizes),
    ("reasons_by_the_programs", reasons),
    ("later_fragments_follow_their_first_one", fragments),
    ("xdp_rewrites_what_it_redirects", rewritten),
];

/// `XDP_REDIRECT` of `enum xdp_action`.
const XDP_REDIRECT: u32 = 4;

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn media() -> Ipv4Udp {
    Ipv4Udp::new([52, 113, 0, 1], 3478)
}

/// The verifier gives up at a million instructions.
fn sizes() -> Result<()> {
    let mut bench = TestBench::new(Instance::Worldwide)?;
    for size in bench.sizes()? {
        println!("{size:?}");
        ensure!(size.verified < 400_000, "{size:?}");
    }
    Ok(())
}

fn reasons() -> Result<()> {
    let mut bench = TestBench::new(Instance::Worldwide)?;
    let plain = media().to_bytes();
    let mut other_protocol = plain.clone();
    other_protocol[9] = 1;
    let mut bad_length = plain.clone();
    bad_length[0] = 0x44;
    let tagged = [&[0, 7, 0x08, 0x00][..], &plain].concat();
    let three_tags = [
        &[0, 7, 0x81, 0, 0, 8, 0x81, 0, 0, 9, 0x08, 0x00][..],
        &plain,
    ]
    .concat();
    let mut for_another = frame(0x0800, &plain);
    for_another[5] = 9;
    let mut broadcast = frame(0x0800, &plain);
    broadcast[..6].fill(0xff);
    for (what, frame, reason) in [
        ("plain", frame(0x0800, &plain), Reason::Steered),
        ("one VLAN tag", frame(0x8100, &tagged), Reason::Steered),
        (
            "three VLAN tags",
            frame(0x8100, &three_tags),
            Reason::VlanDepth,
        ),
        ("ARP", frame(0x0806, &[0; 28]), Reason::NotIp),
        (
            "ICMP",
            frame(0x0800, &other_protocol),
            Reason::OtherProtocol,
        ),
        (
            "bad header length",
            frame(0x0800, &bad_length),
            Reason::Malformed,
        ),
        ("cut off", frame(0x0800, &plain[..24]), Reason::Truncated),
        ("another station's", for_another, Reason::NotForGateway),
        ("broadcast", broadcast, Reason::GroupAddress),
    ] {
        let (_, outcome) = bench.run_frame("xdp", &frame)?;
        ensure!(outcome.reason == reason, "{what}: {outcome:?}");
    }
    Ok(())
}

fn fragments() -> Result<()> {
    let mut bench = TestBench::new(Instance::Worldwide)?;
    let fragment = |port, field, identification: u8| {
        let mut datagram = Ipv4Udp {
            fragment: field,
            payload: 100,
            ..Ipv4Udp::new([52, 113, 0, 1], port)
        };
        datagram.ttl = 64;
        let mut packet = datagram.to_bytes();
        packet[5] = identification;
        frame(0x0800, &packet)
    };
    let mut run = |frame: &[u8]| -> Result<_> { Ok(bench.run_frame("tc", frame)?.1) };
    let orphan = run(&fragment(3478, 0x2001, 1))?;
    ensure!(
        orphan.reason == Reason::LaterFragment && !orphan.steered,
        "{orphan:?}"
    );
    let first = run(&fragment(3478, 0x2000, 1))?;
    ensure!(first.steered, "{first:?}");
    let later = run(&fragment(9, 0x2001, 1))?;
    ensure!(later.steered && later.set == Some(11), "{later:?}");
    let last = run(&fragment(9, 0x0002, 1))?;
    ensure!(last.steered, "{last:?}");
    let of_another = run(&fragment(9, 0x2001, 2))?;
    ensure!(!of_another.steered, "{of_another:?}");
    // The identification comes round again for a packet that is not steered.
    ensure!(!run(&fragment(53, 0x2000, 1))?.steered);
    ensure!(!run(&fragment(9, 0x2001, 1))?.steered);
    Ok(())
}

fn rewritten() -> Result<()> {
    let egress = Egress {
        redirect: true,
        mtu: 1500,
        source_mac: [2, 0, 0, 0, 0, 1],
        v4: NextHop::Mac([2, 0, 0, 0, 0, 2]),
        v6: NextHop::Kernel,
        ..Egress::default()
    };
    let mut bench = TestBench::with(&embedded(Instance::Worldwide), egress, None)?;
    let sent = frame(0x0800, &media().to_bytes());
    let (run, outcome) = bench.run_frame("xdp", &sent)?;
    ensure!(
        run.code == XDP_REDIRECT && outcome.reason == Reason::Steered,
        "{run:?} {outcome:?}"
    );
    ensure!(
        run.frame[..12] == [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1],
        "{run:?}"
    );
    let expected = Ipv4Udp { ttl: 63, ..media() }.to_bytes();
    ensure!(
        run.frame[14..] == expected[..],
        "{:?} is not {expected:?}",
        &run.frame[14..]
    );
    Ok(())
}
