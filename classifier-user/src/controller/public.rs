//! The ledger of public addresses, kept by what probes and interfaces tell.

use super::Controller;
use crate::addresses::{KnownBy, Ledger};
use crate::timestamp::Timestamp;

/// Reads the ledger; a damaged one is begun anew, and said so.
pub(super) fn ledger(directory: &std::path::Path) -> Ledger {
    Ledger::read(directory).unwrap_or_else(|error| {
        tracing::error!("cannot read the ledger of public addresses, beginning a new one: {error}");
        Ledger::default()
    })
}

impl Controller {
    /// Notes the public addresses that egresses have now.
    pub(super) fn note_addresses(&mut self) {
        let now = Timestamp::now();
        let seen = self.failover.paths().public_addresses();
        for (egress, address, known_by) in seen {
            if self.ledger.note(&egress, address, known_by, now) {
                let why = match known_by {
                    KnownBy::Stun => "a STUN server sees it",
                    KnownBy::Interface => "the interface has it",
                };
                self.events
                    .note("egress", &egress, format!("public address {address}"), why);
            }
        }
        if let Err(error) = self.ledger.save_if_due(&self.config.state.directory, now) {
            tracing::warn!("cannot write the ledger of public addresses: {error}");
        }
    }
}
