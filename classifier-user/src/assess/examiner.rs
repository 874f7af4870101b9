//! The measurements of one path, one after the other, and what they are compared with.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::door::{Door, Refused, ask, latency, visit};
use super::load::download;
use super::media::{reach, stream};
use super::outcome::{Outcome, PathName, Test, Verdict};
use super::path::Path;
use super::resolver::resolve;
use super::targets::Targets;
use super::trace::{hairpin, trace};
use super::{Options, tcp};
use crate::config::Config;
use crate::health::{Bound, Target, Trust, handshake};

/// Connections of which latencies are compared.
const CONNECTIONS: usize = 3;
/// The time that an answer may take after a pause.
const PATIENCE: Duration = Duration::from_secs(10);
/// The headers of IP and TCP, without options, in bytes.
const HEADERS: [u32; 2] = [40, 60];
/// The largest segment on Ethernet over IPv4, in bytes.
const ETHERNET: u32 = 1500;

/// Context of all measurements.
pub(super) struct Examiner<'a, P: Fn(&str)> {
    pub(super) config: &'a Config,
    pub(super) targets: &'a Targets,
    pub(super) trust: &'a Trust,
    pub(super) options: &'a Options,
    pub(super) progress: &'a P,
}

/// Findings about the ordinary path, with which egresses are compared.
#[derive(Default)]
pub(super) struct Reference {
    pub(super) outcomes: Vec<Outcome>,
    hops: Vec<Option<IpAddr>>,
    public: Option<IpAddr>,
}

impl Reference {
    /// Looks at the ordinary path: its front doors, routers and public address.
    pub(super) async fn of<P: Fn(&str)>(examiner: &Examiner<'_, P>, path: &Path) -> Result<Self> {
        let mut reference = Reference::default();
        for door in &examiner.targets.doors {
            let Ok(Some(address)) = examiner
                .targets
                .address(&door.host, door.port, path.v6)
                .await
            else {
                continue;
            };
            if let Ok(took) = latency(&path.bound, address, CONNECTIONS).await {
                let outcome = Outcome::measured(&path.name, Test::TcpLatency, &door.host, took);
                // It is there to compare with: what takes it, takes it on purpose.
                let verdict = Verdict::Pass;
                reference.outcomes.push(Outcome {
                    verdict,
                    advice: None,
                    ..outcome
                });
            }
            if reference.hops.is_empty() {
                reference.hops = trace(&path.bound, address.ip()).await.unwrap_or_default();
            }
        }
        reference.public = examiner.public_address(path).await;
        Ok(reference)
    }
}

impl<P: Fn(&str)> Examiner<'_, P> {
    /// Measures the resolver of the clients.
    pub(super) async fn resolver(&self, targets: &Targets, bound: &Bound) -> Vec<Outcome> {
        (self.progress)("the clients' resolver");
        let path = PathName::new(None, targets.resolver.is_ipv6());
        let Some(door) = targets.doors.iter().find(|door| door.address().is_none()) else {
            return Vec::new();
        };
        let resolver = targets.resolver.to_string();
        vec![
            match resolve(bound, targets.resolver, &door.host, false).await {
                Ok(resolved) => {
                    Outcome::measured(&path, Test::DnsTime, &resolver, milliseconds(resolved.took))
                }
                Err(error) => Outcome::told(
                    &path,
                    Test::DnsTime,
                    Some(&resolver),
                    Verdict::Fail,
                    format!("{error:#}"),
                ),
            },
        ]
    }

    /// Measures a path by an egress.
    pub(super) async fn examine(&self, path: &Path, reference: &Reference) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        let mut doors = Vec::new();
        for door in &self.targets.doors {
            let Some(address) = self
                .locate(path, door, Test::TcpLatency, &mut outcomes)
                .await
            else {
                continue;
            };
            path.lead(address.ip()).await?;
            (self.progress)(&format!("{}: front door {}", path.name, door.host));
            let visited = visit(&path.bound, &door.host, address, self.trust).await;
            outcomes.extend(door_outcomes(path, door, &visited));
            outcomes.extend(self.compare_resolvers(path, door, address).await?);
            doors.extend(visited.latency.is_ok().then_some((door, address)));
        }
        if let Some((_, address)) = doors.first() {
            (self.progress)(&format!("{}: route", path.name));
            let hops = trace(&path.bound, address.ip()).await.unwrap_or_default();
            let found = match hairpin(&hops, &reference.hops) {
                Some(router) => (
                    Verdict::Fail,
                    format!("by {router}, which is on the ordinary path too"),
                ),
                None => (Verdict::Pass, format!("{} hops", hops.len())),
            };
            let host = address.ip().to_string();
            outcomes.push(Outcome::told(
                &path.name,
                Test::Hairpin,
                Some(&host),
                found.0,
                found.1,
            ));
        }
        for relay in &self.targets.relays {
            if let Some(address) = self.locate(path, relay, Test::Relay, &mut outcomes).await {
                path.lead(address.ip()).await?;
                outcomes.extend(self.call(path, relay, address).await);
            }
        }
        outcomes.push(self.compare_public(path, reference).await);
        if let Some((_, door)) = doors.first() {
            outcomes.extend(self.load(path, *door).await?);
        }
        if let (Some(idle), Some((door, address))) = (self.options.idle, doors.first()) {
            (self.progress)(&format!("{}: a connection idle for {idle:?}", path.name));
            outcomes.push(self.idle(path, door, *address, idle).await);
        }
        Ok(outcomes)
    }

    /// Finds the address of a target; none if it has none of the family. That it cannot be asked for is an outcome.
    async fn locate(
        &self,
        path: &Path,
        target: &Target,
        test: Test,
        outcomes: &mut Vec<Outcome>,
    ) -> Option<SocketAddr> {
        match self
            .targets
            .address(&target.host, target.port, path.v6)
            .await
        {
            Ok(address) => address,
            Err(error) => {
                let found = format!("{error:#}");
                outcomes.push(Outcome::told(
                    &path.name,
                    test,
                    Some(&target.host),
                    Verdict::Skipped,
                    found,
                ));
                None
            }
        }
    }

    /// Compares the front door that clients are given with the one that the egress's own resolver gives.
    async fn compare_resolvers(
        &self,
        path: &Path,
        door: &Target,
        given: SocketAddr,
    ) -> Result<Option<Outcome>> {
        let egress = path
            .name
            .egress
            .as_ref()
            .and_then(|name| self.config.egress.get(name));
        let Some(resolver) = egress
            .and_then(|egress| egress.resolver)
            .filter(|_| door.address().is_none())
        else {
            return Ok(None);
        };
        let told = |verdict, found: String| {
            Ok(Some(Outcome::told(
                &path.name,
                Test::DnsLocal,
                Some(&door.host),
                verdict,
                found,
            )))
        };
        // A resolver of the other family has answers of both, but is reached by another path.
        if resolver.is_ipv6() != path.v6 {
            return Ok(None);
        }
        path.lead(resolver).await?;
        let resolved = match resolve(&path.bound, resolver, &door.host, path.v6).await {
            Ok(resolved) => resolved,
            Err(error) => return told(Verdict::Skipped, format!("{error:#}")),
        };
        let Some(nearest) = resolved.addresses.first().copied() else {
            return told(
                Verdict::Skipped,
                format!("resolver {resolver} knows no address"),
            );
        };
        if resolved.addresses.contains(&given.ip()) {
            return told(Verdict::Pass, format!("{} as by {resolver}", given.ip()));
        }
        path.lead(nearest).await?;
        let both = [given, SocketAddr::new(nearest, given.port())]
            .map(|address| latency(&path.bound, address, CONNECTIONS));
        let [by_clients, by_egress] = both;
        Ok(match (by_clients.await, by_egress.await) {
            (Ok(far), Ok(near)) => {
                let more = (far - near).max(0.0);
                let outcome = Outcome::measured(&path.name, Test::DnsLocal, &door.host, more);
                let found = format!(
                    "{} is {more:.1} ms further than {nearest} by {resolver}",
                    given.ip()
                );
                Some(Outcome { found, ..outcome })
            }
            _ => None,
        })
    }

    /// Sends a stream like that of a call to a relay.
    async fn call(&self, path: &Path, relay: &Target, address: SocketAddr) -> Vec<Outcome> {
        let told = |verdict, found: String| {
            Outcome::told(&path.name, Test::Relay, Some(&relay.host), verdict, found)
        };
        (self.progress)(&format!(
            "{}: a call of {:?} to {}",
            path.name, self.options.call, relay.host
        ));
        let method = match reach(&path.bound, address).await {
            Ok((method, _)) => method,
            Err(error) => return vec![told(Verdict::Fail, error.to_string())],
        };
        let mut outcomes = vec![told(Verdict::Pass, "answers".to_owned())];
        match stream(&path.bound, address, method, self.options.call).await {
            Ok(figures) => outcomes.extend(
                [
                    (Test::MediaLatency, figures.latency),
                    (Test::MediaLoss, figures.loss),
                    (Test::MediaBurst, figures.burst),
                    (Test::MediaJitter, figures.jitter),
                    (Test::MediaReordering, figures.reordering),
                ]
                .map(|(test, figure)| Outcome::measured(&path.name, test, &relay.host, figure)),
            ),
            Err(error) => outcomes.push(told(Verdict::Fail, error.to_string())),
        }
        outcomes
    }

    /// Asks which public address packets have on a path: the named server, or a relay that tells.
    async fn public_address(&self, path: &Path) -> Option<IpAddr> {
        let asked = self.targets.stun.iter().chain(&self.targets.relays);
        for target in asked {
            let address = self
                .targets
                .address(&target.host, target.port, path.v6)
                .await;
            let Ok(Some(address)) = address else { continue };
            if path.lead(address.ip()).await.is_err() {
                continue;
            }
            if let Ok((_, Some(mapped))) = reach(&path.bound, address).await {
                return Some(mapped.ip());
            }
        }
        None
    }

    async fn compare_public(&self, path: &Path, reference: &Reference) -> Outcome {
        let (verdict, found) = match self.public_address(path).await {
            None => (
                Verdict::Skipped,
                "nobody tells it; name a server as [assess] stun".to_owned(),
            ),
            Some(address) if reference.public == Some(address) => {
                (Verdict::Fail, format!("{address}, as on the ordinary path"))
            }
            Some(address) => (Verdict::Pass, address.to_string()),
        };
        Outcome::told(&path.name, Test::PublicAddress, None, verdict, found)
    }

    /// Downloads, unless nothing is named or the link is metered.
    async fn load(&self, path: &Path, door: SocketAddr) -> Result<Vec<Outcome>> {
        let egress = path
            .name
            .egress
            .as_ref()
            .and_then(|name| self.config.egress.get(name));
        let is_metered = egress.is_some_and(|egress| egress.metered) && !self.options.loads_metered;
        let skipped = |found: &str| {
            vec![Outcome::told(
                &path.name,
                Test::Download,
                None,
                Verdict::Skipped,
                found,
            )]
        };
        let Some(url) = &self.targets.download else {
            return Ok(skipped("nothing to download is named as [assess] download"));
        };
        if is_metered {
            return Ok(skipped("the link is metered; see --load-metered"));
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let Ok(Some(server)) = self.targets.address(host, port, path.v6).await else {
            return Ok(skipped(&format!("{host} has no address")));
        };
        path.lead(server.ip()).await?;
        (self.progress)(&format!("{}: download from {host}", path.name));
        let idle = latency(&path.bound, door, CONNECTIONS).await;
        let loaded = match download(&path.bound, url, server, door, self.trust).await {
            Ok(loaded) => loaded,
            Err(error) => {
                let found = format!("{error:#}");
                return Ok(vec![Outcome::told(
                    &path.name,
                    Test::Download,
                    Some(host),
                    Verdict::Fail,
                    found,
                )]);
            }
        };
        let mut outcomes = vec![Outcome::measured(
            &path.name,
            Test::Download,
            host,
            loaded.rate,
        )];
        if let (Ok(idle), Some(latency)) = (idle, loaded.latency) {
            let more = (latency - idle).max(0.0);
            outcomes.push(Outcome::measured(
                &path.name,
                Test::LoadedLatency,
                host,
                more,
            ));
        }
        Ok(outcomes)
    }

    /// Leaves a connection idle before its first request.
    async fn idle(
        &self,
        path: &Path,
        door: &Target,
        address: SocketAddr,
        pause: Duration,
    ) -> Outcome {
        let told = |verdict, found: String| {
            Outcome::told(
                &path.name,
                Test::IdleConnection,
                Some(&door.host),
                verdict,
                found,
            )
        };
        let Ok(stream) = path.bound.connect(address).await else {
            return told(Verdict::Skipped, "cannot connect".to_owned());
        };
        let Ok(Some(mut stream)) = handshake(&door.host, stream, self.trust).await else {
            return told(Verdict::Skipped, "no TLS".to_owned());
        };
        let mut byte = [0];
        tokio::select! {
            // The server itself may have enough of it.
            _ = stream.read(&mut byte) => {
                return told(Verdict::Skipped, format!("the server closed it within {pause:?}"));
            }
            () = sleep(pause) => {}
        }
        let answered = timeout(PATIENCE, ask(&mut stream, &door.host)).await;
        let _ = stream.shutdown().await;
        match answered {
            Ok(Ok(_)) => told(Verdict::Pass, format!("goes on after {pause:?}")),
            Ok(Err(why)) => told(Verdict::Fail, format!("after {pause:?}: {why}")),
            Err(_) => told(
                Verdict::Fail,
                format!("after {pause:?} nothing comes through"),
            ),
        }
    }
}

/// Judges what was found at a front door.
fn door_outcomes(path: &Path, door: &Target, visited: &Door) -> Vec<Outcome> {
    let told = |test, verdict, found: String| {
        Outcome::told(&path.name, test, Some(&door.host), verdict, found)
    };
    let mut outcomes = vec![match &visited.latency {
        Ok(latency) => Outcome::measured(&path.name, Test::TcpLatency, &door.host, *latency),
        Err(why) => told(Test::TcpLatency, Verdict::Fail, why.clone()),
    }];
    match &visited.answer {
        None => {}
        Some(Err(Refused::Tls(why))) => outcomes.push(told(Test::Tls, Verdict::Fail, why.clone())),
        Some(answer) => {
            outcomes.push(told(
                Test::Tls,
                Verdict::Pass,
                "its own certificate".to_owned(),
            ));
            outcomes.push(match answer {
                Ok(answer) => match answer.proxy() {
                    Some(proxy) => told(Test::Http, Verdict::Fail, proxy),
                    None => told(
                        Test::Http,
                        Verdict::Pass,
                        format!("status {}", answer.status),
                    ),
                },
                Err(Refused::Http(why) | Refused::Tls(why)) => {
                    told(Test::Http, Verdict::Fail, why.clone())
                }
            });
        }
    }
    if let (Some(agreed), Some(mtu)) = (visited.agreed, path.mtu) {
        outcomes.extend(
            tcp_outcomes(agreed, mtu, path.v6)
                .map(|(test, verdict, found)| told(test, verdict, found)),
        );
    }
    outcomes
}

/// Judges what a connection has agreed on over an interface of this MTU.
fn tcp_outcomes(agreed: tcp::Agreed, mtu: u32, v6: bool) -> [(Test, Verdict, String); 2] {
    let expected = mtu.min(ETHERNET).saturating_sub(HEADERS[usize::from(v6)]);
    let segment = if agreed.segment < expected {
        (
            Verdict::Warning,
            format!("{} bytes instead of {expected}", agreed.segment),
        )
    } else {
        (Verdict::Pass, format!("{} bytes", agreed.segment))
    };
    let missing: Vec<&str> = [
        (agreed.has_selective_acks, "selective acknowledgements"),
        (agreed.has_window_scaling, "window scaling"),
    ]
    .into_iter()
    .filter_map(|(is_there, name)| (!is_there).then_some(name))
    .collect();
    let options = if missing.is_empty() {
        (Verdict::Pass, "as asked for".to_owned())
    } else {
        (
            Verdict::Warning,
            format!("without {}", missing.join(" and ")),
        )
    };
    [
        (Test::SegmentSize, segment.0, segment.1),
        (Test::TcpOptions, options.0, options.1),
    ]
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assess::tcp::Agreed;

    #[test]
    fn devices_that_change_syns_are_told() {
        let whole = Agreed {
            segment: 1460,
            has_selective_acks: true,
            has_window_scaling: true,
        };
        let verdicts =
            |agreed, mtu, v6| tcp_outcomes(agreed, mtu, v6).map(|(_, verdict, _)| verdict);
        assert_eq!(verdicts(whole, 1500, false), [Verdict::Pass; 2]);
        let pppoe = Agreed {
            segment: 1452,
            ..whole
        };
        assert_eq!(
            verdicts(pppoe, 1492, false),
            [Verdict::Pass; 2],
            "the link's own MTU"
        );
        assert_eq!(verdicts(pppoe, 1500, false)[0], Verdict::Warning);
        let six = Agreed {
            segment: 1440,
            ..whole
        };
        assert_eq!(verdicts(six, 9000, true), [Verdict::Pass; 2]);
        let plain = Agreed {
            has_selective_acks: false,
            ..whole
        };
        assert_eq!(verdicts(plain, 1500, false)[1], Verdict::Warning);
    }
}
