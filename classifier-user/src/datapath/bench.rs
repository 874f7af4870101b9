//! The loaded programs asked about single frames, by the kernel's test run, without being attached anywhere.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use breakout_common::verdict::Decision;

use super::asker::time;
use super::program::{TC, XDP, program};
use super::{Counters, DataPath, Plan};

/// Size of `struct __sk_buff`, the context of TC programs (Linux 6.1 and later).
const SK_BUFF_LEN: usize = 192;
/// Offset of its field `mark`.
const MARK: std::ops::Range<usize> = 8..12;
/// Offset of the first word of its field `cb`.
const CONTROL_BLOCK: std::ops::Range<usize> = 48..52;
/// Room for a frame that comes out longer than it went in.
const HEADROOM: usize = 256;

/// Programs that are loaded but not attached.
pub struct Bench {
    datapath: Option<DataPath>,
}

/// Result of a program run on a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The program's return code: a `TC_ACT_*` or `XDP_*` number.
    pub code: u32,
    /// The frame as it came out.
    pub frame: Vec<u8>,
    /// The firewall mark as it came out; for TC only.
    pub mark: u32,
    /// Decision; for TC only.
    pub decision: Option<Decision>,
}

/// Size of a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its name.
    pub program: String,
    /// Instructions that the verifier looked at, of the million that it allows; zero before Linux 5.16.
    pub verified: u32,
    /// Bytes of eBPF as the kernel has translated it.
    pub translated_bytes: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
}

impl Bench {
    /// Loads the programs for the plan's first LAN interface, which need not exist.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn load(plan: &Plan<'_>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = PathBuf::from(format!("bench-{}-{number}", std::process::id()));
        let mut datapath = DataPath::open(&name)?;
        let staged = datapath.stage(plan, true);
        datapath.unstage()?;
        match staged {
            Ok((live, _)) => datapath.live = Some(live),
            Err(error) => {
                let _ = datapath.uninstall(&BTreeSet::new());
                return Err(error);
            }
        }
        Ok(Bench {
            datapath: Some(datapath),
        })
    }

    /// Runs the TC program on a frame that has this mark.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, for example a frame shorter than an Ethernet header.
    pub fn tc(&mut self, frame: &[u8], mark: u32) -> Result<Run> {
        let mut context = [0; SK_BUFF_LEN];
        context[MARK].copy_from_slice(&mark.to_ne_bytes());
        let mut context_out = [0; SK_BUFF_LEN];
        let mut out = vec![0; frame.len() + HEADROOM];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut context_out);
        let tc: &mut SchedClassifier = program(self.programs()?, TC)?;
        let result = tc.test_run(options).with_context(|| {
            format!(
                "the test run of the TC program failed on a frame of {} bytes",
                frame.len()
            )
        })?;
        out.truncate(result.data_size_out as usize);
        let field = |range: std::ops::Range<usize>| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&context_out[range]);
            u32::from_ne_bytes(bytes)
        };
        Ok(Run {
            code: result.return_value,
            frame: out,
            mark: field(MARK),
            decision: Decision::from_word(field(CONTROL_BLOCK)),
        })
    }

    /// Runs the XDP program on a frame.
    ///
    /// # Errors
    ///
    /// As [`tc`](Self::tc), and when the plan has no XDP.
    pub fn xdp(&mut self, frame: &[u8]) -> Result<Run> {
        let mut out = vec![0; frame.len() + HEADROOM];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let xdp: &mut Xdp = program(self.programs()?, XDP)?;
        let result = xdp
            .test_run(options)
            .context("the test run of the XDP program failed")?;
        out.truncate(result.data_size_out as usize);
        Ok(Run {
            code: result.return_value,
            frame: out,
            mark: 0,
            decision: None,
        })
    }

    /// Returns how long one run of a program, `tc` or `xdp`, on a frame takes, averaged over many.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn time(&mut self, name: &str, frame: &[u8], runs: u32) -> Result<Duration> {
        if name == "tc" {
            let tc: &mut SchedClassifier = program(self.programs()?, TC)?;
            return time(tc, frame, runs);
        }
        let xdp: &mut Xdp = program(self.programs()?, XDP)?;
        time(xdp, frame, runs)
    }

    /// Returns what the programs have counted.
    ///
    /// # Errors
    ///
    /// When the counters cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        self.datapath
            .as_ref()
            .context("the bench is loaded")?
            .counters()
    }

    /// Returns how large the loaded programs are, by name.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn sizes(&mut self) -> Result<Vec<Size>> {
        let mut sizes = Vec::new();
        let datapath = self.datapath.as_mut().context("the bench is loaded")?;
        let all = datapath.live_mut()?.programs.iter_mut();
        for (name, program) in all.flat_map(|programs| programs.ebpf().programs()) {
            // An interface gets those that it needs.
            let Ok(info) = program.info() else { continue };
            sizes.push(Size {
                program: name.to_owned(),
                verified: info.verified_instruction_count().unwrap_or(0),
                translated_bytes: info.size_translated().unwrap_or(0),
                jited_bytes: info.size_jitted(),
            });
        }
        Ok(sizes)
    }

    fn programs(&mut self) -> Result<&mut aya::Ebpf> {
        let datapath = self.datapath.as_mut().context("the bench is loaded")?;
        let programs = datapath.live_mut()?.programs.first_mut();
        Ok(programs.context("the plan has a LAN interface")?.ebpf())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(datapath) = self.datapath.take()
            && let Err(error) = datapath.uninstall(&BTreeSet::new())
        {
            tracing::warn!("{error:#}");
        }
    }
}
