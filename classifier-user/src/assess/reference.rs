//! The ordinary path, with which the egresses are compared.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::door::{CONNECTIONS, latency};
use super::outcome::{Outcome, Test, Verdict};
use super::path::Path;
use super::public::public_address;
use super::targets::Targets;
use super::trace::{hairpin, trace};

/// Findings about the ordinary path.
#[derive(Default)]
pub(super) struct Reference {
    pub(super) outcomes: Vec<Outcome>,
    hops: Vec<Option<IpAddr>>,
    public: Option<IpAddr>,
    /// The address that packets of the gateway itself have there.
    source: Option<IpAddr>,
}

impl Reference {
    /// Looks at the ordinary path: its front doors, routers and public address.
    pub(super) async fn of(targets: &Targets, path: &Path) -> Self {
        let mut reference = Reference::default();
        for door in &targets.doors {
            let found = targets.address(&door.host, door.port, path.v6).await;
            let Ok(Some(address)) = found else { continue };
            reference.source = reference.source.or_else(|| source_to(address));
            if let Ok(took) = latency(&path.bound, address, CONNECTIONS).await {
                let outcome = Outcome::measured(&path.name, Test::TcpLatency, &door.host, took);
                reference.outcomes.push(Outcome {
                    // It is there to compare with: what takes it, takes it on purpose.
                    verdict: Verdict::Skipped,
                    advice: None,
                    ..outcome
                });
            }
            if reference.hops.is_empty() {
                reference.hops = trace(&path.bound, address.ip()).await.unwrap_or_default();
            }
        }
        reference.public = public_address(targets, path).await;
        reference
    }

    /// Tells why an egress cannot be compared with it, if so.
    fn objection(&self, path: &Path) -> Option<&'static str> {
        let is_same = self.source.is_some_and(|source| path.own.contains(&source));
        is_same.then_some("the ordinary path leaves by this egress too")
    }

    /// Compares the routers on the way to an address.
    pub(super) async fn compare_route(&self, path: &Path, address: IpAddr) -> Outcome {
        let told = |verdict, found: String| {
            Outcome::told(
                &path.name,
                Test::Hairpin,
                Some(&address.to_string()),
                verdict,
                found,
            )
        };
        if let Some(objection) = self.objection(path) {
            return told(Verdict::Skipped, objection.to_owned());
        }
        let hops = trace(&path.bound, address).await.unwrap_or_default();
        if hops.is_empty() || self.hops.is_empty() {
            return told(
                Verdict::Skipped,
                "no router answers that could be compared".to_owned(),
            );
        }
        match hairpin(&hops, &self.hops) {
            Some(router) => told(
                Verdict::Fail,
                format!("passes {router}, which is also on the ordinary path"),
            ),
            None => told(Verdict::Pass, format!("{} hops", hops.len())),
        }
    }

    /// Compares the public address of a path.
    pub(super) fn compare_public(&self, path: &Path, public: Option<IpAddr>) -> Outcome {
        let told = |verdict, found: String| {
            Outcome::told(&path.name, Test::PublicAddress, None, verdict, found)
        };
        match (public, self.public, self.objection(path)) {
            (None, ..) => told(
                Verdict::Skipped,
                "no server reported it; name one as [assess] stun".to_owned(),
            ),
            (Some(address), _, Some(objection)) => {
                told(Verdict::Skipped, format!("{address}; {objection}"))
            }
            (Some(address), None, None) => told(
                Verdict::Skipped,
                format!("{address}; that of the ordinary path is not known"),
            ),
            (Some(address), Some(other), None) if address == other => {
                told(Verdict::Fail, format!("{address}, as on the ordinary path"))
            }
            (Some(address), Some(_), None) => told(Verdict::Pass, address.to_string()),
        }
    }
}

/// Asks the kernel which source address packets to an address have; none are sent.
fn source_to(address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(address).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
