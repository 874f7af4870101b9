//! Traffic for benchmarks: made and counted by programs, without a socket in between.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::PerCpuArray;
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{
    SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions, XdpMode,
};

use super::Asker;
use super::program::{has_tcx, program};

/// Packets that the kernel makes between two looks at whether it should stop.
const BATCH: u32 = 64;
/// Size of `struct xdp_md`.
const XDP_MD_LEN: usize = 24;

impl Asker {
    /// Attaches an XDP program, `sink` or a forwarder, to an interface of this thread's network namespace, natively.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn attach(&mut self, name: &str, interface: &str) -> Result<()> {
        self.xdp(name)?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("cannot attach {name} to {interface}"))?;
        Ok(())
    }

    /// Attaches a TC program to what comes in by an interface of this thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn attach_tc(&mut self, name: &str, interface: &str) -> Result<()> {
        let tc: &mut SchedClassifier = program(&mut self.ebpf, name)?;
        tc.load()?;
        if !has_tcx() {
            qdisc_add_clsact(interface)?;
        }
        tc.attach(interface, TcAttachType::Ingress)
            .with_context(|| format!("cannot attach {name} to {interface}"))?;
        Ok(())
    }

    /// Sends packets that are as long as `frame` and have its ethertype by an interface of this thread's network
    /// namespace, to the destinations that are set. Returns the time that each took.
    ///
    /// # Errors
    ///
    /// When the test run fails.
    pub fn generate(&mut self, frame: &[u8], interface: u32, packets: u32) -> Result<Duration> {
        let mut context = [0; XDP_MD_LEN];
        let length = u32::try_from(frame.len())?;
        context[4..8].copy_from_slice(&length.to_ne_bytes());
        context[12..16].copy_from_slice(&interface.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        options.repeat = packets;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        Ok(self
            .xdp("generate")?
            .test_run(options)
            .context("the generator failed")?
            .duration)
    }

    /// Packets that sinks have dropped.
    ///
    /// # Errors
    ///
    /// When the count cannot be read.
    pub fn sunk(&mut self) -> Result<u64> {
        let map = self
            .ebpf
            .map_mut("SUNK")
            .context("the object has no sink")?;
        let counts: PerCpuArray<_, u64> = map.try_into()?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }
}
