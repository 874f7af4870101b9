//! The ledger of public addresses: every address that services have seen each egress at, and when.
//!
//! Microsoft's address policies (named locations, trusted addresses) have to know all of them, also those after a fail-over. An address is
//! known by the answer of a STUN server, or by the interface where that has a public one itself.

mod formats;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use formats::{AddressFormat, export};

use crate::config::EgressConfig;
use crate::durable::{Disk, read_sealed};
use crate::private;
use crate::timestamp::Timestamp;

/// The file of the state directory.
const FILE: &str = "addresses.json";
/// The most entries; beyond that those that were not seen for the longest time are dropped.
const MOST: usize = 1000;
/// The interval at which it is written if nothing but the time of the last look has changed.
const SAVE: Duration = Duration::from_secs(3600);
/// The time after which it is tried again to write it.
const RETRY: Duration = Duration::from_secs(60);
/// The time in which an egress that has had two addresses of a family is taken for one that changes them.
const CHANGING: Duration = Duration::from_secs(90 * 24 * 3600);

/// An address that an egress has or has had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublicAddress {
    /// The egress.
    pub egress: String,
    /// The address.
    pub address: IpAddr,
    /// `stun`: a server outside saw it; `interface`: the interface has it.
    pub known_by: KnownBy,
    /// The first time that it was seen.
    pub first: Timestamp,
    /// The last time, to the hour.
    pub last: Timestamp,
}

/// Evidence of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KnownBy {
    /// The answer of a STUN server.
    Stun,
    /// The interface's own addresses.
    Interface,
}

/// All addresses.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Vec<PublicAddress>,
    /// The time at which they are written next; now if none.
    due: Option<Timestamp>,
}

impl Ledger {
    /// Reads the ledger of a state directory; one that is not there is empty.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be read, or is damaged.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let entries = match read_sealed(&path(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        Ok(Ledger { entries, due: None })
    }

    /// Returns all addresses, by egress and in the order in which they were first seen.
    pub fn entries(&self) -> &[PublicAddress] {
        &self.entries
    }

    /// Notes that an egress has an address now. Returns whether it did not have it before.
    pub fn note(
        &mut self,
        egress: &str,
        address: IpAddr,
        known_by: KnownBy,
        now: Timestamp,
    ) -> bool {
        let known = self
            .entries
            .iter_mut()
            .find(|entry| entry.egress == egress && entry.address == address);
        if let Some(known) = known {
            known.known_by = known_by;
            known.last = known.last.max(now);
            return false;
        }
        self.entries.push(PublicAddress {
            egress: egress.to_owned(),
            address,
            known_by,
            first: now,
            last: now,
        });
        self.entries
            .sort_by(|a, b| (&a.egress, a.first).cmp(&(&b.egress, b.first)));
        if self.entries.len() > MOST {
            let oldest = (0..).zip(&self.entries).min_by_key(|(_, entry)| entry.last);
            let oldest = oldest.map_or(0, |(place, _)| place);
            self.entries.remove(oldest);
        }
        self.due = None;
        true
    }

    /// Writes the ledger if it has a new address, or was written an hour ago. What fails is tried again after a minute.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written.
    pub fn save_if_due(&mut self, directory: &Path, now: Timestamp) -> io::Result<()> {
        // After the clock was set back it is long until then.
        let is_due = self
            .due
            .is_none_or(|due| due <= now || due.since(now) > SAVE);
        if !is_due || self.entries.is_empty() {
            return Ok(());
        }
        let written = Disk::reliable().write_sealed(&path(directory), &self.entries);
        let wait = if written.is_ok() { SAVE } else { RETRY };
        self.due = Some(now.after(wait));
        written
    }
}

/// Returns where the ledger of a state directory is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Tells whether everybody on the internet can have it as a source: an address of the interface is not the public one otherwise.
pub fn is_public(address: IpAddr) -> bool {
    let is_private = private::networks().any(|network| network.contains(&address));
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            // For protocols (DS-Lite, 464XLAT) and for benchmarks (RFC 6890).
            let is_special = [first, second] == [192, 0] && address.octets()[2] == 0
                || first == 198 && second & 0xfe == 18;
            let is_reserved = first == 0 || first >= 224 || is_special;
            !(is_private || address.is_loopback() || address.is_link_local() || is_reserved)
        }
        // Global unicast (RFC 4291), of which 2000::/3 is assigned.
        IpAddr::V6(address) => address.segments()[0] >> 13 == 1,
    }
}

/// Returns why an address should not be registered, if so: it is not what Microsoft sees, or somebody else may have it tomorrow.
/// `egress` is its egress, if that is configured.
pub fn objection(
    entries: &[PublicAddress],
    entry: &PublicAddress,
    egress: Option<&EgressConfig>,
    now: Timestamp,
) -> Option<&'static str> {
    let Some(egress) = egress else {
        return Some("its egress is not configured");
    };
    let is_recent = |entry: &PublicAddress| now.since(entry.last) < CHANGING;
    let changes = entries.iter().any(|other| {
        other.egress == entry.egress
            && other.address != entry.address
            && other.address.is_ipv6() == entry.address.is_ipv6()
            && is_public(other.address)
            && is_recent(other)
    });
    if !is_public(entry.address) {
        Some("no public address, so the provider translates as well")
    } else if entry.address.is_ipv6() && !egress.masquerade {
        Some("clients have addresses of their own; register the prefix of the LAN")
    } else if egress.metered {
        Some("a metered link, as of a mobile provider")
    } else if !is_recent(entry) {
        Some("not seen for 90 days")
    } else if changes {
        Some("the egress has had another address within 90 days")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000 + hours * 3600)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_is_remembered_with_its_times() {
        let mut ledger = Ledger::default();
        assert!(ledger.note("local", address("203.0.113.1"), KnownBy::Stun, at(0)));
        assert!(!ledger.note("local", address("203.0.113.1"), KnownBy::Stun, at(5)));
        assert!(ledger.note("lte", address("203.0.113.1"), KnownBy::Stun, at(6)));
        assert!(ledger.note("local", address("203.0.113.2"), KnownBy::Interface, at(7)));
        let times: Vec<_> = ledger
            .entries()
            .iter()
            .map(|entry| (entry.egress.as_str(), entry.first, entry.last))
            .collect();
        assert_eq!(
            times,
            [
                ("local", at(0), at(5)),
                ("local", at(7), at(7)),
                ("lte", at(6), at(6))
            ]
        );
    }

    #[test]
    fn it_is_written_when_an_address_is_new_and_each_hour() {
        let directory = tempfile::tempdir().unwrap();
        let read = || Ledger::read(directory.path()).unwrap().entries().to_vec();
        let mut ledger = Ledger::default();
        ledger.save_if_due(directory.path(), at(0)).unwrap();
        assert!(
            !path(directory.path()).exists(),
            "there is nothing to write"
        );
        ledger.note("local", address("203.0.113.1"), KnownBy::Stun, at(0));
        ledger.save_if_due(directory.path(), at(0)).unwrap();
        assert_eq!(read(), ledger.entries());
        ledger.note("local", address("203.0.113.1"), KnownBy::Stun, at(1));
        ledger
            .save_if_due(
                directory.path(),
                Timestamp::from_seconds(1_800_000_000 + 3599),
            )
            .unwrap();
        assert_eq!(read()[0].last, at(0));
        ledger.save_if_due(directory.path(), at(1)).unwrap();
        assert_eq!(read()[0].last, at(1));
        std::fs::write(path(directory.path()), "{}").unwrap();
        assert!(Ledger::read(directory.path()).is_err());
    }

    #[test]
    fn a_ledger_does_not_grow_for_ever() {
        let mut ledger = Ledger::default();
        for number in 0..2000_u16 {
            let [high, low] = number.to_be_bytes();
            let address = IpAddr::from([20, 0, high, low]);
            ledger.note("local", address, KnownBy::Stun, at(number.into()));
        }
        assert_eq!(ledger.entries().len(), MOST);
        assert_eq!(ledger.entries()[0].first, at(1000));
    }

    #[test]
    fn public_addresses_are_told_from_others() {
        for public in [
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "2a00::1",
        ] {
            assert!(is_public(address(public)), "{public}");
        }
        for other in [
            "10.0.0.1",
            "100.64.0.1",
            "100.127.0.1",
            "192.0.0.1",
            "198.19.0.1",
            "192.168.1.1",
            "169.254.0.1",
            "224.0.0.1",
            "fd00::1",
            "fe80::1",
            "::1",
        ] {
            assert!(!is_public(address(other)), "{other}");
        }
    }

    #[test]
    fn only_what_microsoft_sees_for_long_is_registered() {
        let config = |more: &str| -> EgressConfig {
            toml::from_str(&format!("interface = \"inet\"\n{more}")).unwrap()
        };
        let mut ledger = Ledger::default();
        let note = |ledger: &mut Ledger, text, hour| {
            ledger.note("local", address(text), KnownBy::Stun, at(hour));
        };
        for text in ["203.0.113.1", "2001:db8::1", "10.0.0.1"] {
            note(&mut ledger, text, 0);
        }
        let why = |ledger: &Ledger, text: &str, more: &str, hour| {
            let entry = ledger
                .entries()
                .iter()
                .find(|entry| entry.address == address(text));
            objection(
                ledger.entries(),
                entry.unwrap(),
                Some(&config(more)),
                at(hour),
            )
        };
        assert_eq!(
            why(&ledger, "203.0.113.1", "", 1),
            None,
            "a private address is no change"
        );
        for (text, more, hour, words) in [
            ("10.0.0.1", "", 1, "no public address"),
            ("2001:db8::1", "", 1, "clients have addresses"),
            ("203.0.113.1", "metered = true", 1, "metered"),
            ("203.0.113.1", "", 24 * 90, "not seen"),
        ] {
            let why = why(&ledger, text, more, hour);
            assert!(
                why.is_some_and(|why| why.contains(words)),
                "{text}: {why:?}"
            );
        }
        assert_eq!(why(&ledger, "2001:db8::1", "masquerade = true", 1), None);
        assert!(objection(ledger.entries(), &ledger.entries()[0], None, at(1)).is_some());
        note(&mut ledger, "203.0.113.2", 10);
        assert!(why(&ledger, "203.0.113.2", "", 11).is_some_and(|why| why.contains("another")));
        note(&mut ledger, "203.0.113.2", 24 * 91);
        assert_eq!(
            why(&ledger, "203.0.113.2", "", 24 * 91),
            None,
            "the other one is long gone"
        );
    }
}
