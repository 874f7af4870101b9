//! Whether somebody else has taken a program of ours away.

use super::Controller;
use crate::control::ProgramStatus;
use crate::datapath::{Attachment, FILTER_PRIORITY, Hook};

impl Controller {
    /// Looks at each program, and notes those that are no longer where they belong, and those that are again.
    pub(super) async fn look_at_programs(&mut self) {
        let attachments = match self.datapath.attachments() {
            Ok(attachments) => attachments,
            Err(error) => {
                tracing::warn!("cannot look whether the programs are in place: {error:#}");
                return;
            }
        };
        let mut programs = Vec::with_capacity(attachments.len());
        for attachment in &attachments {
            // Of one that cannot be looked at now, as on an interface that is just going, nothing is said.
            let Ok(Some(in_place)) = self.is_in_place(attachment).await else {
                continue;
            };
            programs.push(ProgramStatus {
                interface: attachment.interface.clone(),
                hook: hook(attachment.hook).to_owned(),
                in_place,
            });
        }
        for program in programs.iter().filter(|program| !program.in_place) {
            if !self.programs.contains(program) {
                tracing::error!("{}", displaced(program));
                let subject = &program.interface;
                self.events
                    .note("program", subject, "gone", displaced(program));
            }
        }
        self.programs = programs;
    }

    async fn is_in_place(&self, attachment: &Attachment) -> anyhow::Result<Option<bool>> {
        let Some(interface) = self.links.interface(&attachment.interface).await? else {
            return Ok(None);
        };
        if interface.index != attachment.index {
            return Ok(None);
        }
        Ok(Some(match attachment.hook {
            Hook::Xdp => interface.xdp_program == Some(attachment.program),
            Hook::Tcx => attachment.is_in_tcx()?,
            // Of the filter it is only known that it is there.
            Hook::Filter => {
                let index = attachment.index;
                self.links
                    .has_ingress_filter(index, FILTER_PRIORITY)
                    .await?
            }
        }))
    }
}

fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => "xdp",
        Hook::Tcx | Hook::Filter => "tc",
    }
}

/// What is said of a program that is not in place.
pub(super) fn displaced(program: &ProgramStatus) -> String {
    format!(
        "the {} program on {} was detached or replaced by somebody else: packets from there are not steered, or not by us. \
         Restart breakout to put it back",
        program.hook, program.interface
    )
}
