//! The programs of one LAN interface: loaded with their constants, attached, and replaced without a gap.

use std::io;
use std::mem;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use breakout_common::constants::Constants;

use super::bpffs::PinDirectory;
use super::clock::Clock;
use super::flows::Shape;
use super::mappings::{MAPPINGS, limits_in_ticks};
use super::object::object;
use super::sys::{self, open_pin};
use super::{Hook, LanPlan, MAPS, Side, XdpRefused};
use crate::config::XdpAttach;
use crate::exit::{Code, WithCode};

pub(super) const TC: &str = "breakout_tc";
pub(super) const XDP: &str = "breakout_xdp";
pub(super) const REPLY: &str = "breakout_reply";
pub(super) const ANSWER: &str = "breakout_note";
pub(super) const RETURN: &str = "breakout_return";

/// Priority of the TC filter on kernels before 6.6, which have no TCX. Fixed, so that a
/// later controller finds and replaces it.
pub(super) const FILTER_PRIORITY: u16 = 0x4252;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);
/// The same on egresses. Others have filters of early priorities, so the handle is one that nobody gets by chance.
pub(super) const REPLIES_PRIORITY: u16 = 7;
const REPLIES_HANDLE: TcHandle = TcHandle::new(0, 0x4252);

/// The map of the LAN interfaces, as the eBPF object names it.
pub(super) const TC_LANS: &str = "TC_LANS";

const fn filter_handle(side: Side) -> TcHandle {
    match side {
        Side::Replies => REPLIES_HANDLE,
        Side::Ingress | Side::Egress => FILTER_HANDLE,
    }
}

/// Options of programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// Log each decision.
    pub(super) trace: bool,
    /// Leave each decision where a test run finds it.
    pub(super) report: bool,
    /// Keep flows on their way.
    pub(super) pins: bool,
    /// The table of flows.
    pub(super) flows: Shape,
    /// The table of mappings.
    pub(super) mappings: Shape,
    /// True if anything is translated by it.
    pub(super) translates: bool,
    /// Number of interfaces.
    pub(super) interfaces: u32,
}

/// Loaded programs for one LAN interface, with what they need to be attached.
pub(super) struct Programs {
    ebpf: Ebpf,
    lan: LanPlan,
}

/// Additions of an attachment to the system, to be taken back if a later step fails.
#[derive(Debug, Default)]
pub(super) struct Added {
    pins: Vec<String>,
    filters: Vec<(String, Side)>,
    /// Interfaces that got a clsact qdisc.
    pub(super) clsact: Vec<String>,
}

impl Added {
    /// Detaches what was added.
    pub(super) fn undo(&self, pins: &PinDirectory) {
        for name in &self.pins {
            let _ = pins.remove(name);
        }
        for (interface, side) in &self.filters {
            let _ = remove_filter_at(interface, *side);
        }
    }
}

impl Programs {
    /// Loads both programs for a LAN interface. Their maps are those pinned in `staging`; what is not there yet
    /// is made and pinned.
    pub(super) fn load(
        lan: &LanPlan,
        staging: &PinDirectory,
        table_words: u32,
        options: Options,
    ) -> Result<Self> {
        let Options {
            trace,
            report,
            pins,
            flows,
            mappings,
            translates,
            interfaces,
        } = options;
        let mut loader = EbpfLoader::new();
        let limits = limits_in_ticks();
        let idle = |ticks| u16::try_from(ticks).unwrap_or(u16::MAX);
        let constants = Constants {
            table_words,
            lan_mac: lan.mac,
            lan_v4: lan.addresses.0.octets(),
            lan_v6: lan.addresses.1.octets(),
            trace: u8::from(trace),
            tc_counts: u8::from(lan.xdp.is_none()),
            report: u8::from(report),
            lan: lan.number,
            pins: u8::from(pins),
            clock_shift: Clock::of_kernel().shift(),
            flow_secret: flows.secret,
            flow_mask: flows.sets - 1,
            nat_mask: if translates { mappings.sets - 1 } else { 0 },
            nat_secret: mappings.secret.sets,
            nat_tcp_idle: idle(limits.tcp_idle),
            nat_udp_idle: idle(limits.udp_idle),
            returns: u8::from(lan.returns),
            bare: u8::from(lan.is_bare),
            lan_mtu: lan.mtu,
            ..Constants::UNSET
        };
        let constants = constants.to_bytes();
        loader
            .verifier_log_level(if trace {
                VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS
            } else {
                VerifierLogLevel::STATS
            })
            .override_global("CONSTANTS", &constants, true);
        for (map, entries) in flows.entries() {
            loader.map_max_entries(map, entries);
        }
        loader.map_max_entries(MAPPINGS, mappings.sets + 1);
        loader.map_max_entries(TC_LANS, interfaces);
        for map in MAPS {
            loader.map_pin_path(map, staging.path(map));
        }
        let mut ebpf = loader
            .load(object()?)
            .context("cannot load the eBPF object")?;
        for name in lan.sides().iter().map(|side| side.program()) {
            let tc: &mut SchedClassifier = program(&mut ebpf, name)?;
            tc.load().map_err(|error| verifier(name, error))?;
        }
        if lan.xdp.is_some() {
            let name = lan.xdp_program();
            let xdp: &mut Xdp = program(&mut ebpf, name)?;
            xdp.load().map_err(|error| verifier(name, error))?;
        }
        Ok(Programs {
            ebpf,
            lan: lan.clone(),
        })
    }

    /// The interface that they are for.
    pub(super) fn lan(&self) -> &LanPlan {
        &self.lan
    }

    /// The kernel's number of one of the programs.
    pub(super) fn program_id(&self, name: &str) -> Result<u32> {
        let program = self.ebpf.program(name);
        let program = program.with_context(|| format!("the eBPF object has no program {name}"))?;
        Ok(program.info()?.id())
    }

    /// The loaded object, for its maps and for test runs.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Attaches the programs where none of ours is attached.
    ///
    /// XDP comes first, so that packets which it leaves to TC are counted once.
    pub(super) fn attach_new(&mut self, pins: &PinDirectory, added: &mut Added) -> Result<()> {
        if self.lan.xdp.is_some() && !is_attached(pins, &self.lan.xdp_pin()) {
            detach(pins, &self.lan.other_xdp_pin())?;
            self.attach_xdp(pins, added)?;
        }
        for side in self.lan.sides().iter().copied() {
            let attached = if !has_tcx() {
                self.attach_filter(side, added)
            } else if is_attached(pins, &self.lan.pin_at(side)) {
                Ok(())
            } else {
                self.attach_tcx(side, pins, added)
            };
            self.needed(side, attached)?;
        }
        Ok(())
    }

    /// Lets the failure of a program that only notes answers pass with a warning: it is no reason to steer nothing.
    fn needed(&self, side: Side, attached: Result<()>) -> Result<()> {
        if let (Side::Egress, Err(error)) = (side, &attached) {
            tracing::warn!(
                "it is not seen which flows are answered by {}: {error:#}",
                self.lan.name
            );
            return Ok(());
        }
        attached
    }

    /// Lets the programs take over from those that are attached, each in one atomic replacement.
    pub(super) fn take_over(&mut self, pins: &PinDirectory) -> Result<()> {
        let lan = self.lan.clone();
        if lan.xdp.is_some()
            && let Some(link) = pinned_link(pins, &lan.xdp_pin())?
        {
            let xdp: &mut Xdp = program(&mut self.ebpf, lan.xdp_program())?;
            match xdp.attach_to_link(link.try_into()?) {
                Err(error) if is_defunct(&error) => {
                    pins.remove(&lan.xdp_pin())?;
                    self.attach_xdp(pins, &mut Added::default())?;
                }
                other => {
                    other.with_context(|| {
                        format!("cannot replace the XDP program on {}", lan.name)
                    })?;
                }
            }
        }
        for side in lan.sides().iter().copied() {
            let taken = self.take_over_tc(side, pins);
            self.needed(side, taken)?;
        }
        Ok(())
    }

    fn take_over_tc(&mut self, side: Side, pins: &PinDirectory) -> Result<()> {
        let (name, pin) = (self.lan.name.clone(), self.lan.pin_at(side));
        let tc: &mut SchedClassifier = program(&mut self.ebpf, side.program())?;
        let failed = || format!("cannot replace the TC program on {name}");
        if !has_tcx() {
            let filter = filter(&name, side)?;
            let id = tc.attach_to_link(filter).with_context(failed)?;
            // Dropping the link would remove the filter; it must outlive this process and be replaceable.
            mem::forget(tc.take_link(id)?);
            return Ok(());
        }
        let Some(link) = pinned_link(pins, &pin)? else {
            return Ok(());
        };
        match tc.attach_to_link(link.try_into()?) {
            Err(error) if is_defunct(&error) => {
                pins.remove(&pin)?;
                self.attach_tcx(side, pins, &mut Added::default())?;
            }
            other => {
                other.with_context(failed)?;
            }
        }
        Ok(())
    }

    /// Attaches one of the programs again, by a new link: the one that was detached stays without effect.
    pub(super) fn attach_again(&mut self, pins: &PinDirectory, hook: Hook) -> Result<()> {
        let added = &mut Added::default();
        match hook {
            Hook::Xdp => {
                pins.remove(&self.lan.xdp_pin())?;
                self.attach_xdp(pins, added)
            }
            Hook::Tc(side) if has_tcx() => {
                pins.remove(&self.lan.pin_at(side))?;
                self.attach_tcx(side, pins, added)
            }
            Hook::Tc(side) => self.attach_filter(side, added),
        }
    }

    fn attach_xdp(&mut self, pins: &PinDirectory, added: &mut Added) -> Result<()> {
        let lan = self.lan.clone();
        let mode = match lan.xdp {
            Some(XdpAttach::Generic) => XdpMode::Skb,
            _ => XdpMode::Driver,
        };
        let xdp: &mut Xdp = program(&mut self.ebpf, lan.xdp_program())?;
        let id = xdp
            .attach_to_if_index(lan.index, mode)
            .map_err(|error| xdp_refused(&lan.name, mode, error))?;
        let link: FdLink = xdp.take_link(id)?.try_into().with_context(|| {
            format!(
                "{} takes XDP programs only in a way that ends with the controller",
                lan.name
            )
        })?;
        let pin = lan.xdp_pin();
        link.pin(pins.path(&pin))
            .context("cannot pin the XDP link")?;
        added.pins.push(pin);
        Ok(())
    }

    fn attach_tcx(&mut self, side: Side, pins: &PinDirectory, added: &mut Added) -> Result<()> {
        let lan = self.lan.clone();
        let tc: &mut SchedClassifier = program(&mut self.ebpf, side.program())?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = tc
            .attach_with_options(&lan.name, side.attach_type(), order)
            .with_context(|| format!("cannot attach the TC program to {}", lan.name))?;
        let link: FdLink = tc.take_link(id)?.try_into()?;
        let pin = lan.pin_at(side);
        link.pin(pins.path(&pin))
            .context("cannot pin the TC link")?;
        added.pins.push(pin);
        Ok(())
    }

    /// Adds the filter of kernels before 6.6, unless an earlier controller's is there.
    fn attach_filter(&mut self, side: Side, added: &mut Added) -> Result<()> {
        let name = self.lan.name.clone();
        if qdisc_add_clsact(&name).is_ok() {
            added.clsact.push(name.clone());
        }
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: side.filter_priority(),
            handle: filter_handle(side),
            classid: None,
        });
        let tc: &mut SchedClassifier = program(&mut self.ebpf, side.program())?;
        match tc.attach_with_options(&name, side.attach_type(), options) {
            Ok(id) => {
                mem::forget(tc.take_link(id)?);
                added.filters.push((name, side));
                Ok(())
            }
            // The place is taken; `take_over` replaces what is there.
            Err(ProgramError::TcError(TcError::NetlinkError(_))) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot attach the TC program to {name}"))
            }
        }
    }
}

/// Removes the TC filters of kernels before 6.6 from an interface.
pub(super) fn remove_filters(interface: &str) -> Result<()> {
    Side::ALL
        .into_iter()
        .try_for_each(|side| remove_filter_at(interface, side))
}

/// Removes that for replies from an interface where nothing is translated any more.
pub(super) fn remove_unused_filter(lan: &LanPlan) -> Result<()> {
    match lan.sides().contains(&Side::Replies) {
        true => Ok(()),
        false => remove_filter_at(&lan.name, Side::Replies),
    }
}

fn remove_filter_at(interface: &str, side: Side) -> Result<()> {
    // With an interface its filters are gone.
    if has_tcx() || nix::net::if_::if_nametoindex(interface).is_err() {
        return Ok(());
    }
    // Dropping the link removes the filter.
    drop(filter(interface, side)?);
    Ok(())
}

/// Fails if a program of another controller is attached to the interface already.
pub(super) fn refuse_foreign(lan: &LanPlan, pins: &PinDirectory) -> Result<()> {
    if !has_tcx() {
        return Ok(());
    }
    let own = match PinnedLink::from_pin(pins.path(&lan.pin_at(Side::Ingress))) {
        Ok(link) => Some(FdLink::from(link).info()?.program_id()),
        Err(_) => None,
    };
    let programs = match SchedClassifier::query_tcx(&lan.name, TcAttachType::Ingress) {
        Ok((_, programs)) => programs,
        // Only CAP_SYS_ADMIN may ask what a program is. Another controller with the same routing numbers is recognised by
        // its rules.
        Err(error) if errno(&error) == Some(libc::EPERM) => return Ok(()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot list the TC programs on {}", lan.name));
        }
    };
    for program in programs {
        if program.name() == TC.as_bytes() && Some(program.id()) != own {
            let interface = lan.name.clone();
            return Err(super::Foreign { interface }).code(Code::Busy);
        }
    }
    Ok(())
}

/// Returns whether TC programs are attached by TCX, which came with Linux 6.6.
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

fn filter(interface: &str, side: Side) -> Result<SchedClassifierLink> {
    SchedClassifierLink::attached(
        interface,
        side.attach_type(),
        side.filter_priority(),
        filter_handle(side),
        None,
    )
    .with_context(|| format!("there is no interface {interface}"))
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn pinned_link(pins: &PinDirectory, name: &str) -> Result<Option<FdLink>> {
    if !pins.path(name).exists() {
        return Ok(None);
    }
    let link = PinnedLink::from_pin(pins.path(name))
        .with_context(|| format!("cannot open the pinned link {}", pins.display(name)))?;
    Ok(Some(link.into()))
}

/// Ends a pinned link, whoever has it open, if there is one.
fn detach(pins: &PinDirectory, name: &str) -> Result<()> {
    if pins.path(name).exists() {
        let what = || format!("cannot detach what is pinned at {}", pins.display(name));
        let link = open_pin(&pins.path(name)).with_context(what)?;
        sys::detach(link.as_fd()).with_context(what)?;
    }
    pins.remove(name)
}

/// Returns whether a link is pinned. Its interface may be gone, and another one have its number; see `take_over`.
fn is_attached(pins: &PinDirectory, name: &str) -> bool {
    pins.path(name).exists()
}

/// Returns whether the link's interface is gone.
fn is_defunct(error: &ProgramError) -> bool {
    errno(error) == Some(libc::ENOLINK)
}

/// Returns what the kernel answered, if it was the kernel.
fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

fn verifier(program: &str, error: ProgramError) -> anyhow::Error {
    anyhow::Error::new(error).context(format!(
        "the kernel does not accept the program {program}; run with --trace for the verifier's log"
    ))
}

fn xdp_refused(interface: &str, mode: XdpMode, error: ProgramError) -> anyhow::Error {
    if mode != XdpMode::Driver {
        return anyhow::Error::new(io::Error::other(error.to_string()))
            .context(format!("the XDP program cannot be attached to {interface}"));
    }
    let why = match errno(&error) {
        _ if matches!(error, ProgramError::XdpError(_)) => format!(
            "the driver of {interface} refuses XDP as it is set up now; often its MTU or its rings are too large for it"
        ),
        Some(libc::EOPNOTSUPP) => format!(
            "the driver of {interface} does not support native XDP, or not while LRO or GRO_HW is on (see: ethtool -k {interface})"
        ),
        Some(libc::EBUSY | libc::EEXIST) => format!(
            "another XDP program is attached to {interface} (see: ip link show {interface})"
        ),
        Some(libc::ERANGE | libc::EMSGSIZE) => {
            format!("the MTU of {interface} is too large for native XDP")
        }
        _ => format!("the XDP program cannot be attached to {interface}: {error}"),
    };
    let interface = interface.to_owned();
    anyhow::Error::new(XdpRefused { interface, why })
}
