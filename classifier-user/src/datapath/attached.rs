//! Check that the programs are still attached where they belong.

use anyhow::{Context, Result};
use aya::programs::TcAttachType;

use super::DataPath;
use super::program::{ANSWER, FILTER_PRIORITY, REPLIES_PRIORITY, RETURN, TC};
use super::sys::tcx_programs;

/// A program of ours, and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// Hook.
    pub hook: Hook,
    /// The kernel's number of the program.
    pub program: u32,
}

/// Hook of an interface to which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before the network stack.
    Xdp,
    /// At TC: by TCX, or by the filter of kernels before 6.6.
    Tc(Side),
}

/// Direction and kind of interface of a TC program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those that come in by a LAN interface.
    Ingress,
    /// Those that go out by one.
    Egress,
    /// Those that come in by an egress.
    Replies,
}

impl Side {
    /// All of them.
    pub(super) const ALL: [Side; 3] = [Side::Ingress, Side::Egress, Side::Replies];

    /// The program that belongs there.
    pub(super) fn program(self) -> &'static str {
        match self {
            Side::Ingress => TC,
            Side::Egress => ANSWER,
            Side::Replies => RETURN,
        }
    }

    /// The priority of its filter on kernels before 6.6. Each side has its own: on an ingress qdisc, which somebody may have in the place
    /// of a clsact qdisc, both sides are one, and one filter would replace the other. On an egress it comes early: shapers send what comes
    /// in to another device.
    pub fn filter_priority(self) -> u16 {
        match self {
            Side::Ingress => FILTER_PRIORITY,
            Side::Egress => FILTER_PRIORITY + 1,
            Side::Replies => REPLIES_PRIORITY,
        }
    }

    /// Returns what the loader calls it.
    pub(super) fn attach_type(self) -> TcAttachType {
        match self {
            Side::Ingress | Side::Replies => TcAttachType::Ingress,
            Side::Egress => TcAttachType::Egress,
        }
    }
}

impl DataPath {
    /// Every program that is in force.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell its number.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for programs in self.live.iter().flat_map(|live| &live.programs) {
            let lan = programs.lan();
            let mut add = |hook: Hook, name: &str| -> Result<()> {
                let program = programs.program_id(name)?;
                attachments.push(Attachment {
                    interface: lan.name.clone(),
                    index: lan.index,
                    hook,
                    program,
                });
                Ok(())
            };
            for side in lan.sides() {
                add(Hook::Tc(*side), side.program())?;
            }
            if lan.xdp.is_some() {
                add(Hook::Xdp, lan.xdp_program())?;
            }
        }
        Ok(attachments)
    }
}

impl DataPath {
    /// Attaches a program again that somebody has detached.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as where another program is in its place.
    pub fn attach_again(&mut self, attachment: &Attachment) -> Result<()> {
        let live = self.live.as_mut().context("nothing is installed")?;
        let mut programs = live.programs.iter_mut();
        let programs = programs.find(|programs| programs.lan().index == attachment.index);
        let programs = programs.context("the interface has no programs")?;
        programs.attach_again(&self.pins, attachment.hook)?;
        self.keep_pinned()
    }
}

impl Attachment {
    /// Returns whether the program is among those that TCX runs on its side of the interface.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, for example because the interface is gone.
    pub fn is_in_tcx(&self, side: Side) -> Result<bool> {
        let programs = tcx_programs(self.index, side.attach_type())
            .with_context(|| format!("cannot list the TC programs on {}", self.interface))?;
        Ok(programs.contains(&self.program))
    }
}
