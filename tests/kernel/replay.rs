//! `breakout replay`: the program in the kernel and the function in the process agree on whatever a capture has.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use breakout_tests::capture::{any_frame, pcap, pcapng};
use breakout_tests::daemon::binary;
use fastrand::Rng;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Test, setting};

pub(crate) const TESTS: &[Test] = &[
    ("replay_by_kernel_and_by_function_agree", agree),
    ("replay_sums_up", summary),
    ("replay_of_a_damaged_capture_says_so", damaged),
];

/// Frames of one capture, unless BREAKOUT_TEST_FRAMES says how many.
const FRAMES: usize = 5000;
const ETHERNET: u16 = 1;
/// Link types with the bytes that stand where the Ethernet header was, before the ethertype or instead of it.
const OTHERS: [(u16, &[u8]); 2] = [
    (113, &[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]),
    (101, &[]),
];

struct Captures {
    directory: TempDir,
}

impl Captures {
    fn new() -> Result<Self> {
        Ok(Captures {
            directory: tempfile::tempdir()?,
        })
    }

    /// Replays a capture with the built-in list.
    fn replay(&self, capture: &[u8], more: &[&str]) -> Result<Output> {
        let path = self.directory.path().join("capture");
        fs::write(&path, capture)?;
        let config = self.directory.path().join("breakout.toml");
        fs::write(
            &config,
            "[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n",
        )?;
        Ok(Command::new(binary()?)
            .arg("replay")
            .arg(path)
            .arg("--config")
            .arg(config)
            .args(more)
            .output()?)
    }

    fn lines(&self, capture: &[u8], more: &[&str]) -> Result<Vec<Value>> {
        let output = self.replay(capture, &[&["--json"], more].concat())?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{:?}: {message}", output.status);
        lines(&output)
    }
}

fn lines(output: &Output) -> Result<Vec<Value>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().context("each line is JSON")
}

fn count() -> usize {
    setting("BREAKOUT_TEST_FRAMES", FRAMES)
}

fn agree() -> Result<()> {
    let captures = Captures::new()?;
    let seed = Rng::new().u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let count = count();
    let frames: Vec<Vec<u8>> = (0..count).map(|_| any_frame(&mut rng)).collect();
    let mut files = vec![
        pcap(ETHERNET.into(), 0x1_0000, &frames),
        pcapng(ETHERNET, 0x1_0000, &frames),
        pcap(ETHERNET.into(), 60, &frames),
        pcapng(ETHERNET, 96, &frames),
    ];
    for (link, header) in OTHERS {
        let skipped = if header.is_empty() { 14 } else { 12 };
        let others: Vec<Vec<u8>> = frames
            .iter()
            .filter(|frame| frame.len() > 20)
            .map(|frame| [header, &frame[skipped..]].concat())
            .collect();
        files.push(pcap(link.into(), 0x1_0000, &others));
    }
    let mut reasons: Vec<String> = Vec::new();
    for file in files {
        let kernel = captures.lines(&file, &[])?;
        let pure = captures.lines(&file, &["--pure"])?;
        ensure!(kernel.len() == pure.len() && kernel.len() > count / 2);
        for (kernel, pure) in kernel.iter().zip(&pure) {
            ensure!(
                kernel == pure,
                "the kernel says {kernel}, the function {pure}"
            );
        }
        reasons.extend(
            pure.iter()
                .filter_map(|line| Some(line["reason"].as_str()?.to_owned())),
        );
    }
    reasons.sort_unstable();
    reasons.dedup();
    println!("{FRAMES} frames in six captures: {}", reasons.join(", "));
    // All that TC can give with every egress up and no address of its own.
    ensure!(
        reasons.len() == 12 || count < FRAMES,
        "not every reason occurred: {reasons:?}"
    );
    Ok(())
}

fn summary() -> Result<()> {
    let captures = Captures::new()?;
    let frame = |destination: [u8; 4], source: u8| {
        let mut frame = [
            &[0; 12][..],
            &[
                8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, source,
            ],
        ]
        .concat();
        frame.extend(destination);
        frame.extend([0, source, 0x0d, 0x96, 0, 8, 0, 0]);
        frame
    };
    let media = [52, 113, 0, 1];
    let frames = [
        frame(media, 1),
        frame(media, 1),
        frame(media, 2),
        frame([9, 9, 9, 9], 1),
    ];
    let file = pcap(ETHERNET.into(), 0x1_0000, &frames);
    for more in [&["--pure"][..], &[]] {
        let output = captures.replay(&file, more)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let steered = [
            "steer",
            "steered",
            "Worldwide",
            "11",
            "Skype",
            "Optimize",
            "3",
            "126",
            "B",
            "2",
        ];
        ensure!(rows.get(1).is_some_and(|row| row[..] == steered), "{text}");
        ensure!(
            rows.get(2)
                .is_some_and(|row| row[..] == ["pass", "no_prefix", "1", "42", "B", "1"]),
            "{text}"
        );
        ensure!(
            rows.get(3)
                .is_some_and(|row| row[..] == ["all", "4", "168", "B", "3"]),
            "{text}"
        );
    }
    let lines = captures.lines(&file, &["--limit", "3"])?;
    ensure!(lines.len() == 3, "{lines:?}");
    ensure!(
        lines[2]
            == serde_json::json!({"packet": 3, "verdict": "steer", "reason": "steered",
                                  "endpoint_set": 11, "prefix": "52.112.0.0/14"}),
        "{}",
        lines[2]
    );
    Ok(())
}

fn damaged() -> Result<()> {
    let captures = Captures::new()?;
    let mut rng = Rng::with_seed(1);
    let frames: Vec<Vec<u8>> = (0..50).map(|_| any_frame(&mut rng)).collect();
    for whole in [pcap(1, 0x1_0000, &frames), pcapng(1, 0x1_0000, &frames)] {
        let output = captures.replay(&whole[..whole.len() - 7], &["--pure", "--json"])?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1),
            "{:?}: {message}",
            output.status
        );
        ensure!(
            message.contains("cannot read on behind packet 49"),
            "{message}"
        );
        ensure!(
            message.contains("the capture is cut off after byte"),
            "{message}"
        );
        ensure!(lines(&output)?.len() == 49);
        // Whatever is wrong, it ends, and in order.
        for _ in 0..count() / 100 {
            let mut file = whole.clone();
            let at = rng.usize(..file.len());
            file[at] = rng.u8(..);
            file.truncate(rng.usize(..=whole.len()));
            let output = captures.replay(&file, &["--pure", "--json"])?;
            ensure!(
                matches!(output.status.code(), Some(0 | 1)),
                "{:?}",
                output.status
            );
            let message = String::from_utf8_lossy(&output.stderr);
            ensure!(!message.contains("panicked"), "{message}");
        }
    }
    for (file, part) in [
        (&b""[..], "it is empty or cut off in its header"),
        (
            b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
            "neither pcap nor pcapng",
        ),
    ] {
        let output = captures.replay(file, &["--pure"])?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && message.contains(part),
            "{message}"
        );
    }
    let large = [vec![0; 200_000]];
    for capture in [pcap(1, 0x4_0000, &large), pcapng(1, 0x4_0000, &large)] {
        ensure!(captures.lines(&capture, &["--pure"])?.len() == 1);
    }
    let mut long = pcap(1, 0x1_0000, &frames);
    long[24 + 8..][..4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    let mut trailer = pcapng(1, 0x1_0000, &frames);
    let at = trailer.len() - 4;
    trailer[at] ^= 0xff;
    let mut interface = pcapng(1, 0x1_0000, &frames[..1]);
    // Behind the section's header, two interfaces, and statistics.
    interface[28 + 2 * 20 + 24 + 8] = 7;
    for (file, words) in [
        (
            pcap(105, 0x1_0000, &frames),
            &[
                "link type 105 is not known here: capture on one ",
                "in the block that ends with byte ",
            ][..],
        ),
        (
            long,
            &[
                "the capture is damaged after byte ",
                ": a block of more than ",
            ],
        ),
        (trailer, &["the capture is damaged after byte "]),
        (
            interface,
            &["a packet of interface 7", ", which is not described"],
        ),
    ] {
        let output = captures.replay(&file, &["--pure"])?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            words.iter().all(|word| message.contains(word)),
            "{words:?}: {message}"
        );
    }
    Ok(())
}
