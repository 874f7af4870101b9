//! `breakout replay`.

use std::fs;
use std::io::{BufWriter, IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::arguments::{ConfigArgument, Replay as Arguments};
use super::offline::{Offline, offline_config};
use super::output::{bytes, table};
use crate::controller::require_privileges;
use crate::exit::{Code, WithCode};
use crate::replay::{Capture, Decided, Replay, Summary};
use crate::ruleset::{Ruleset, compile};

/// Interval between progress messages on a terminal.
const PROGRESS: Duration = Duration::from_secs(1);

/// One packet, as `--json` prints it.
#[derive(Serialize)]
struct PacketLine<'a> {
    /// Its place in the capture, counted from 1.
    packet: u64,
    verdict: &'a str,
    reason: &'a str,
    endpoint_set: Option<u32>,
    prefix: Option<String>,
}

pub(super) fn replay(config: &ConfigArgument, arguments: &Arguments) -> Result<()> {
    if !arguments.pure {
        require_privileges()
            .context(
                "the packets go through the program in this kernel; --pure needs no privileges",
            )
            .code(Code::Permission)?;
    }
    let offline = Offline::load(offline_config(config)?, arguments.list.as_deref())?;
    let ruleset = offline.ruleset;
    let image = compile(&ruleset).code(Code::List)?;
    let mut replay = if arguments.pure {
        Replay::pure(&ruleset, image)
    } else {
        Replay::kernel(&ruleset, &image).code(Code::System)?
    };
    let mut capture = Capture::open(&arguments.capture)?;
    let size = fs::metadata(&arguments.capture)?.len();
    let mut lines = arguments.json.then(|| BufWriter::new(stdout().lock()));
    let mut progress = Progress::new(size);
    let limit = arguments.limit.unwrap_or(u64::MAX);
    let mut packets = 0;
    let mut damage = None;
    while packets < limit {
        let captured = match capture.packet() {
            Ok(Some(captured)) => captured,
            Ok(None) => break,
            Err(error) => {
                damage = Some(error);
                break;
            }
        };
        packets += 1;
        let decided = replay.packet(&captured)?;
        if let Some(lines) = &mut lines {
            print_packet(lines, packets, decided, &mut replay, &ruleset)?;
        }
        progress.show(packets, capture.position());
    }
    progress.end();
    if let Some(mut lines) = lines {
        lines.flush().context("cannot write to stdout")?;
    } else {
        print_summary(replay.summary(), &ruleset)?;
    }
    match damage {
        None => Ok(()),
        Some(error) => Err(error.context(format!(
            "cannot read on behind packet {packets} of {}; what is above is of the packets before",
            arguments.capture.display()
        ))),
    }
}

fn print_packet(
    lines: &mut impl Write,
    packet: u64,
    decided: Decided,
    replay: &mut Replay<'_>,
    ruleset: &Ruleset,
) -> Result<()> {
    let decision = decided.decision;
    let rule = decision.set().and_then(|slot| ruleset.rule(slot));
    let line = PacketLine {
        packet,
        verdict: decision.verdict().name(),
        reason: decision.reason().name(),
        endpoint_set: rule.and_then(|rule| rule.key.id()),
        prefix: replay.prefix(&decided).map(|prefix| prefix.to_string()),
    };
    let text = serde_json::to_string(&line)?;
    writeln!(lines, "{text}").context("cannot write to stdout")
}

fn print_summary(summary: &Summary, ruleset: &Ruleset) -> Result<()> {
    let header = [
        "verdict",
        "reason",
        "endpoint set",
        "packets",
        "bytes",
        "flows",
    ];
    let mut table = table(&header, &[3, 4, 5]);
    for (decision, line) in summary.lines() {
        let rule = decision.set().and_then(|slot| ruleset.rule(slot));
        table.add_row([
            decision.verdict().name().to_owned(),
            decision.reason().name().to_owned(),
            rule.map_or(String::new(), |rule| {
                format!("{} {} {}", rule.key, rule.service_area, rule.category)
            }),
            line.packets.to_string(),
            bytes(line.bytes),
            line.flows.to_string(),
        ]);
    }
    let total = summary.total();
    table.add_row([
        "all".to_owned(),
        String::new(),
        String::new(),
        total.packets.to_string(),
        bytes(total.bytes),
        total.flows.to_string(),
    ]);
    writeln!(stdout(), "{table}").context("cannot write to stdout")
}

/// Says how far the capture has been read, if somebody is looking.
struct Progress {
    size: u64,
    last: Instant,
    is_seen: bool,
    is_shown: bool,
}

impl Progress {
    fn new(size: u64) -> Self {
        Progress {
            size,
            last: Instant::now(),
            is_seen: stderr().is_terminal(),
            is_shown: false,
        }
    }

    fn show(&mut self, packets: u64, position: u64) {
        if self.is_seen && self.last.elapsed() >= PROGRESS {
            let percent = position.saturating_mul(100) / self.size.max(1);
            eprint!("\r{packets} packets, {percent} %");
            self.last = Instant::now();
            self.is_shown = true;
        }
    }

    fn end(&self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}
