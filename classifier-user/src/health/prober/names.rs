//! The addresses of targets, and when their names are looked up.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::Target;

/// Time for which an address of a name is used.
const LOOKUP: Duration = Duration::from_secs(600);
/// Delay after which a name is looked up again that could not be.
const AGAIN: Duration = Duration::from_secs(30);
/// Time that a resolver may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Result of a lookup: nothing if nobody answered, and no address if there is none of the family.
type Found = Option<Option<SocketAddr>>;

/// The addresses of the targets of one address family, by their indices.
pub(super) struct Names {
    v6: bool,
    addresses: Vec<Option<SocketAddr>>,
    /// True if it is known of each target if it has an address.
    is_known: Vec<bool>,
    next: Instant,
    last: Instant,
    running: JoinSet<(usize, Found)>,
}

impl Names {
    /// Knows the addresses of targets that are given by them.
    pub(super) fn new(targets: &[Target], v6: bool) -> Self {
        let now = Instant::now();
        let given = |target: &Target| {
            let address = target.address().filter(|address| address.is_ipv6() == v6)?;
            Some(SocketAddr::new(address, target.port))
        };
        Names {
            v6,
            addresses: targets.iter().map(given).collect(),
            is_known: (targets.iter().map(|target| target.address().is_some())).collect(),
            next: now,
            last: now,
            running: JoinSet::new(),
        }
    }

    /// The address of a target, if it has one of the family.
    pub(super) fn address(&self, index: usize) -> Option<SocketAddr> {
        self.addresses[index]
    }

    /// All addresses.
    pub(super) fn all(&self) -> BTreeSet<IpAddr> {
        let addresses = self.addresses.iter().flatten();
        addresses.map(SocketAddr::ip).collect()
    }

    /// Tells whether a target may turn out to have an address.
    pub(super) fn is_awaited(&self, index: usize) -> bool {
        !self.is_known[index]
    }

    /// Returns when names are looked up next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Has the names looked up now.
    pub(super) fn look_up_now(&mut self) {
        self.next = Instant::now();
    }

    /// Has the names looked up soon, unless they just were.
    pub(super) fn look_up_soon(&mut self) {
        let soon = (self.last + AGAIN).max(Instant::now());
        self.next = self.next.min(soon);
    }

    /// Looks the names up if it is time to, beside the probes: a resolver may take long. Returns whether it did.
    pub(super) fn look_up<'a>(&mut self, targets: impl Iterator<Item = &'a Target>) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        (self.last, self.next) = (now, now + LOOKUP);
        let v6 = self.v6;
        for (index, target) in targets.enumerate() {
            if target.address().is_some() {
                continue;
            }
            let (host, port) = (target.host.clone(), target.port);
            self.running.spawn(async move {
                let found = timeout(PATIENCE, lookup_host((host.as_str(), port))).await;
                let found = found.ok().and_then(Result::ok);
                let of_family = |address: &SocketAddr| address.is_ipv6() == v6;
                (index, found.map(|mut all| all.find(of_family)))
            });
        }
        true
    }

    /// Tells whether names are being looked up.
    pub(super) fn is_looking(&self) -> bool {
        !self.running.is_empty()
    }

    /// Waits for the next name. Returns the index of its target, and whether that has another address now.
    pub(super) async fn found(&mut self) -> Option<(usize, bool)> {
        let (index, found) = self.running.join_next().await?.ok()?;
        Some((index, self.take_in(index, found)))
    }

    /// Takes in what was found. A name that cannot be looked up now keeps the address that it had.
    pub(super) fn take_in(&mut self, index: usize, found: Found) -> bool {
        self.is_known[index] = true;
        match found {
            Some(Some(address)) => self.addresses[index].replace(address) != Some(address),
            Some(None) => false,
            None => {
                self.next = self.next.min(Instant::now() + AGAIN);
                false
            }
        }
    }
}
