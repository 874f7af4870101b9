//! Check that nobody has taken a program or a pin of ours away; puts back what can be.

use super::Controller;
use crate::control::ProgramStatus;
use crate::datapath::{Attachment, Hook, Side, has_tcx};

/// Place where a program of ours should be.
enum Place {
    /// It is there.
    Ours,
    /// Nothing is there.
    Free,
    /// Another program is there.
    Taken,
}

impl Controller {
    /// Looks at each program and each pin, puts back what somebody has removed, and tells of it.
    pub(super) async fn look_at_programs(&mut self) {
        self.look_at_pins();
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
            let Ok(Some(place)) = self.place(attachment).await else {
                continue;
            };
            let in_place = match place {
                Place::Ours => true,
                Place::Free => self.attach_again(attachment),
                Place::Taken => false,
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

    fn look_at_pins(&mut self) {
        match self.datapath.pin_again() {
            Ok(names) if names.is_empty() => {}
            Ok(names) => {
                let why = "somebody had removed them; without them a successor would find nothing";
                tracing::warn!("pins were put back ({}): {why}", names.join(", "));
                let subject = format!("{} pins", names.len());
                self.events.note("program", subject, "pinned again", why);
            }
            Err(error) => tracing::error!("pins are gone and cannot be put back: {error:#}"),
        }
    }

    /// Attaches a program where there is none. Returns whether that has worked.
    fn attach_again(&mut self, attachment: &Attachment) -> bool {
        let name = format!("{} program", hook(attachment.hook));
        match self.datapath.attach_again(attachment) {
            Ok(()) => {
                if attachment.hook != Hook::Xdp && !has_tcx() {
                    self.persistent.clsact.push(attachment.interface.clone());
                    self.persistent.clsact.dedup();
                    self.save("after a crash, a clsact qdisc may have to be removed by hand");
                }
                let why = "somebody had detached it";
                tracing::warn!(
                    "the {name} on {} was attached again: {why}",
                    attachment.interface
                );
                let (subject, what) = (&attachment.interface, format!("{name} attached again"));
                self.events.note("program", subject, what, why);
                true
            }
            Err(error) => {
                tracing::warn!(
                    "cannot attach the {name} to {} again: {error:#}",
                    attachment.interface
                );
                false
            }
        }
    }

    async fn place(&self, attachment: &Attachment) -> anyhow::Result<Option<Place>> {
        let Some(interface) = self.links.interface(&attachment.interface).await? else {
            return Ok(None);
        };
        if interface.index != attachment.index {
            return Ok(None);
        }
        let is_there = match attachment.hook {
            Hook::Xdp => match interface.xdp_program {
                Some(program) if program != attachment.program => return Ok(Some(Place::Taken)),
                found => found.is_some(),
            },
            // Others may be beside it.
            Hook::Tc(side) if has_tcx() => attachment.is_in_tcx(side)?,
            // Of the filter it is only known that it is there.
            Hook::Tc(side) => {
                let index = attachment.index;
                let of_outgoing = side == Side::Egress;
                let links = &self.links;
                links
                    .has_filter(index, of_outgoing, side.filter_priority())
                    .await?
            }
        };
        Ok(Some(if is_there { Place::Ours } else { Place::Free }))
    }
}

fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => "xdp",
        Hook::Tc(Side::Ingress) => "tc",
        Hook::Tc(Side::Egress) => ANSWERS,
        Hook::Tc(Side::Replies) => REPLIES,
    }
}

/// The name of the hook whose program notes answers.
const ANSWERS: &str = "answers";

/// The name of the hook whose program gives replies of translated flows their clients back.
const REPLIES: &str = "replies";

/// Returns what is said of a program that is not in place.
pub(super) fn displaced(program: &ProgramStatus) -> String {
    if program.hook == ANSWERS {
        return format!(
            "the program that notes answers on {} was detached by somebody else: it is not seen which flows are answered",
            program.interface
        );
    }
    if program.hook == REPLIES {
        return format!(
            "the program that takes replies of translated flows on {} was detached or replaced by somebody else: flows there get no \
             answers. Remove what is in its place; it is then put back within ten seconds",
            program.interface
        );
    }
    format!(
        "the {} program on {} was detached or replaced by somebody else: packets from there are not steered, or not by us. \
         Remove what is in its place; it is then put back within ten seconds",
        program.hook, program.interface
    )
}
