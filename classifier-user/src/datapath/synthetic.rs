//! Synthetic packets: put onto a LAN interface, and caught before they leave by any other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use aya::maps::HashMap;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use breakout_common::synthetic::{CAUGHT_WORDS, NONCE};

use super::object::object;
use super::program::{has_tcx, program};

const INJECT: &str = "breakout_inject";
const CATCH: &str = "breakout_catch";
const CAUGHT: &str = "CAUGHT";
/// The bytes of `struct __sk_buff` that are given: up to the first word of the control block.
const CONTEXT_LEN: usize = 52;
/// Offset of that word.
const CONTROL_BLOCK: usize = 48;

/// A packet that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The interface that it was about to leave by.
    pub interface: u32,
    /// Its source address.
    pub source: IpAddr,
    /// Its type of service, or traffic class.
    pub service: u8,
    /// The segment size that it announced; 0 if it is no SYN.
    pub segment_size: u16,
}

/// Programs that are attached as long as this is there. The kernel detaches them with the process, however it ends.
pub struct Catcher {
    ebpf: Ebpf,
    /// That of the packet that was sent last.
    nonce: u32,
}

impl Catcher {
    /// Catches packets at these interfaces, which are given by names.
    ///
    /// # Errors
    ///
    /// When the kernel is older than Linux 6.6, where programs would stay behind a process that is killed, or refuses them.
    pub fn attach<'a>(interfaces: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        ensure!(
            has_tcx(),
            "synthetic packets need Linux 6.6: before that programs stay behind a process that is killed"
        );
        let mut ebpf = EbpfLoader::new()
            .load(object()?)
            .context("cannot load the eBPF object")?;
        program::<SchedClassifier>(&mut ebpf, INJECT)?.load()?;
        let catch: &mut SchedClassifier = program(&mut ebpf, CATCH)?;
        catch.load()?;
        for interface in interfaces {
            // Before all others: some send packets away.
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            catch
                .attach_with_options(interface, TcAttachType::Egress, order)
                .with_context(|| format!("cannot catch synthetic packets at {interface}"))?;
        }
        Ok(Catcher { ebpf, nonce: 0 })
    }

    /// Puts a frame that is known by a number onto an interface of this thread's network namespace, as if it had come in there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as where the interface is down.
    pub fn inject(&mut self, interface: u32, nonce: u32, frame: &[u8]) -> Result<()> {
        let mut caught = caught(&mut self.ebpf)?;
        let before: Vec<u32> = caught.keys().filter_map(Result::ok).collect();
        for key in before {
            caught.remove(&key)?;
        }
        let mut known = [0; CAUGHT_WORDS];
        known[0] = nonce;
        self.nonce = nonce;
        caught.insert(NONCE, known, 0)?;
        let mut context = [0; CONTEXT_LEN];
        context[CONTROL_BLOCK..].copy_from_slice(&interface.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        let inject: &mut SchedClassifier = program(&mut self.ebpf, INJECT)?;
        let run = inject
            .test_run(options)
            .context("cannot put a synthetic packet onto the interface")?;
        ensure!(
            run.return_value == u32::MAX,
            "the kernel takes no synthetic packet on the interface"
        );
        Ok(())
    }

    /// Returns the packet, if it was caught, that was put onto an interface last.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn caught(&mut self, v6: bool) -> Result<Option<Caught>> {
        let caught = caught(&mut self.ebpf)?;
        let mut entries = caught.iter().filter_map(Result::ok);
        let found = entries
            .find(|(interface, words)| *interface != NONCE && words.first() == Some(&self.nonce));
        Ok(found.map(|(interface, words)| {
            let [_, service, a, b, c, d, segment_size] = words;
            let source = [a, b, c, d].map(u32::to_ne_bytes);
            Caught {
                interface,
                source: if v6 {
                    Ipv6Addr::from(<[u8; 16]>::try_from(source.as_flattened()).unwrap_or_default())
                        .into()
                } else {
                    Ipv4Addr::from(a.to_ne_bytes()).into()
                },
                service: (service & 0xff) as u8,
                segment_size: (segment_size & 0xffff) as u16,
            }
        }))
    }
}

fn caught(ebpf: &mut Ebpf) -> Result<HashMap<&mut aya::maps::MapData, u32, [u32; CAUGHT_WORDS]>> {
    let map = ebpf.map_mut(CAUGHT);
    let map = map.with_context(|| format!("the eBPF object has no map {CAUGHT}"))?;
    Ok(map.try_into()?)
}
