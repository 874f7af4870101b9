//! The ledger of public addresses, kept by what probes and interfaces tell.

use std::fs::rename;
use std::path::Path;

use super::Controller;
use crate::addresses::{KnownBy, Ledger, path};
use crate::timestamp::Timestamp;

/// Reads the ledger; one that cannot be read is put aside, and said so.
pub(super) fn ledger(directory: &Path) -> Ledger {
    Ledger::read(directory).unwrap_or_else(|error| {
        let file = path(directory);
        let aside = file.with_extension("json.damaged");
        let kept = match rename(&file, &aside) {
            Ok(()) => format!("it is kept as {}", aside.display()),
            Err(error) => format!("it cannot be kept: {error}"),
        };
        tracing::error!(
            "cannot read the ledger of public addresses, a new one is begun: {error}; {kept}"
        );
        Ledger::default()
    })
}

impl Controller {
    /// Notes the public addresses that egresses have now.
    pub(super) fn note_addresses(&mut self) {
        let now = Timestamp::now();
        let seen = self.failover.paths().public_addresses();
        for (egress, address, known_by) in &seen {
            // A server that tells another address each time tells nothing.
            if !self
                .seen_addresses
                .contains(&(egress.clone(), *address, *known_by))
            {
                continue;
            }
            if self.ledger.note(egress, *address, *known_by, now) {
                let why = match known_by {
                    KnownBy::Stun => "a STUN server sees it",
                    KnownBy::Interface => "the interface has it",
                };
                self.events
                    .note("egress", egress, format!("public address {address}"), why);
            }
        }
        self.seen_addresses = seen;
        if let Err(error) = self.ledger.save_if_due(&self.config.state.directory, now) {
            tracing::warn!("cannot write the ledger of public addresses: {error}");
        }
    }
}
