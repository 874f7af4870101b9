//! How many instructions a packet costs, held below limits. The counts are exact, so that no machine's noise hides a step back.

use breakout_tests::emulate::{PACKETS, executed, executed_for_answer};

/// The most that [`executed`] may count for each of [`PACKETS`]: XDP in redirect mode, and TC in route mode.
const LIMITS: [(u64, u64); 6] = [
    (138, 156),
    (164, 184),
    (682, 554),
    (1026, 984),
    (682, 554),
    (1026, 984),
];

/// The most that [`executed_for_answer`] may count for each of them: what goes to clients has a program, too.
const ANSWERS: [u64; 6] = [92, 103, 384, 529, 387, 532];

#[test]
fn answers_cost_few_instructions() {
    for (packet, limit) in PACKETS.iter().zip(ANSWERS) {
        let count = executed_for_answer(packet).unwrap();
        println!("{}, breakout_note: {count}", packet.what);
        assert!((40..=limit).contains(&count), "{}: {count}", packet.what);
    }
}

#[test]
fn packets_cost_few_instructions() {
    let mut failures = Vec::new();
    for (packet, (xdp, tc)) in PACKETS.iter().zip(LIMITS) {
        for (program, limit) in [("breakout_xdp", xdp), ("breakout_tc", tc)] {
            let count = executed(program, packet).unwrap();
            println!("{}, {program}: {count}", packet.what);
            // Nothing at all would be a mistake of the emulator's.
            if !(40..=limit).contains(&count) {
                failures.push(format!(
                    "{}, {program}: {count}, limit {limit}",
                    packet.what
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
