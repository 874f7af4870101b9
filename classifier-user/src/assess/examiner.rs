//! The measurements, in their order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use super::Options;
use super::door::{CONNECTIONS, ask, latency, visit};
use super::load::{NoFile, download};
use super::media::{reach, stream};
use super::outcome::{Outcome, PathName, Test, Verdict, milliseconds};
use super::path::Path;
use super::public::public_address;
use super::reference::Reference;
use super::resolver::resolve;
use super::targets::Targets;
use super::verdicts::door_outcomes;
use crate::config::{Config, EgressConfig};
use crate::health::{Bound, Target, Trust, handshake};

/// The time that the measurements of a path may take, beside the call and the idle connection.
const LIMIT: Duration = Duration::from_secs(60);
/// The time that an answer may take after a pause.
const PATIENCE: Duration = Duration::from_secs(10);

/// Context of all measurements.
pub(super) struct Examiner<'a, P: Fn(&str)> {
    pub(super) config: &'a Config,
    pub(super) targets: &'a Targets,
    pub(super) trust: &'a Trust,
    pub(super) options: &'a Options,
    pub(super) progress: &'a P,
}

impl<P: Fn(&str)> Examiner<'_, P> {
    /// Measures the resolver of the clients.
    pub(super) async fn resolver(&self) -> Vec<Outcome> {
        (self.progress)("the clients' resolver");
        let targets = self.targets;
        let path = PathName::new(None, targets.resolver.is_ipv6());
        let Some(door) = targets.doors.iter().find(|door| door.address().is_none()) else {
            return Vec::new();
        };
        let resolver = targets.resolver.to_string();
        vec![
            match resolve(&Bound::default(), targets.resolver, &door.host, false).await {
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

    /// Measures all paths: those by different egresses at the same time, and downloads at the end, one after the other, so that none
    /// disturbs another.
    pub(super) async fn examine_all(
        &self,
        paths: &[Path],
        references: &BTreeMap<bool, Reference>,
    ) -> Vec<Outcome> {
        let by_egress = paths.chunk_by(|a, b| a.name.egress == b.name.egress);
        let examined = by_egress.map(|paths| async move {
            let mut all = Vec::new();
            for path in paths {
                let limit = LIMIT + self.options.call + self.options.idle.unwrap_or_default();
                let examined = timeout(limit, self.examine(path, &references[&path.v6], &mut all));
                if let Err(why) = flat(examined.await) {
                    all.push(broken(path, why));
                }
            }
            all
        });
        let mut outcomes = join_all(examined).await.concat();
        for path in paths {
            match flat(timeout(LIMIT, self.load(path)).await) {
                Ok(loaded) => outcomes.extend(loaded),
                Err(why) => outcomes.push(broken(path, why)),
            }
        }
        outcomes
    }

    /// Measures a path by an egress.
    async fn examine(
        &self,
        path: &Path,
        reference: &Reference,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let mut doors = Vec::new();
        for door in &self.targets.doors {
            let Some(address) = self.locate(path, door, Test::TcpLatency, outcomes).await else {
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
            outcomes.push(reference.compare_route(path, address.ip()).await);
        }
        for relay in &self.targets.relays {
            if let Some(address) = self.locate(path, relay, Test::Relay, outcomes).await {
                path.lead(address.ip()).await?;
                outcomes.extend(self.call(path, relay, address).await);
            }
        }
        outcomes.push(reference.compare_public(path, public_address(self.targets, path).await));
        if let (Some(idle), Some((door, address))) = (self.options.idle, doors.first()) {
            (self.progress)(&format!("{}: a connection idle for {idle:?}", path.name));
            outcomes.push(self.idle(path, door, *address, idle).await);
        }
        Ok(())
    }

    /// Returns the configuration of a path's egress.
    fn egress(&self, path: &Path) -> Option<&EgressConfig> {
        self.config.egress.get(path.name.egress.as_ref()?)
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
        let Some(resolver) = self
            .egress(path)
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
        match (by_clients.await, by_egress.await) {
            (Ok(far), Ok(near)) => {
                let more = (far - near).max(0.0);
                let outcome = Outcome::measured(&path.name, Test::DnsLocal, &door.host, more);
                let found = format!(
                    "{} is {more:.1} ms further than {nearest} by {resolver}",
                    given.ip()
                );
                Ok(Some(Outcome { found, ..outcome }))
            }
            (Err(_), Ok(_)) => told(
                Verdict::Fail,
                format!(
                    "{} does not answer here, {nearest} by {resolver} does",
                    given.ip()
                ),
            ),
            (_, Err(why)) => told(Verdict::Skipped, format!("{nearest} by {resolver}: {why}")),
        }
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
            Ok(figures) => {
                let figures = [
                    (Test::MediaLatency, figures.latency),
                    (Test::MediaLoss, Some(figures.loss)),
                    (Test::MediaBurst, Some(figures.burst)),
                    (Test::MediaJitter, figures.jitter),
                    (Test::MediaReordering, figures.reordering),
                ];
                outcomes.extend(figures.into_iter().filter_map(|(test, figure)| {
                    Some(Outcome::measured(&path.name, test, &relay.host, figure?))
                }));
            }
            Err(error) => outcomes.push(told(Verdict::Fail, error.to_string())),
        }
        outcomes
    }

    /// Downloads, unless nothing is named or the link is metered.
    async fn load(&self, path: &Path) -> Result<Vec<Outcome>> {
        let is_metered = self.egress(path).is_some_and(|egress| egress.metered);
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
        if is_metered && !self.options.loads_metered {
            return Ok(skipped("the link is metered; see --load-metered"));
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let Ok(Some(server)) = self.targets.address(host, port, path.v6).await else {
            return Ok(skipped(&format!("{host} has no address")));
        };
        let Some(door) = self.first_door(path).await else {
            return Ok(skipped("no front door has an address"));
        };
        path.lead(server.ip()).await?;
        path.lead(door.ip()).await?;
        (self.progress)(&format!("{}: download from {host}", path.name));
        let idle = latency(&path.bound, door, CONNECTIONS).await;
        let told = |test, verdict, found: String| {
            Outcome::told(&path.name, test, Some(host), verdict, found)
        };
        let loaded = match download(&path.bound, url, server, door, self.trust).await {
            Ok(loaded) => loaded,
            Err(error) => {
                let verdict = if error.is::<NoFile>() {
                    Verdict::Skipped
                } else {
                    Verdict::Fail
                };
                return Ok(vec![told(Test::Download, verdict, format!("{error:#}"))]);
            }
        };
        let mut outcomes = vec![Outcome::measured(
            &path.name,
            Test::Download,
            host,
            loaded.rate,
        )];
        outcomes.extend(match (idle, loaded.latency) {
            (Ok(idle), Some(Some(latency))) => {
                let more = (latency - idle).max(0.0);
                Some(Outcome::measured(
                    &path.name,
                    Test::LoadedLatency,
                    host,
                    more,
                ))
            }
            (Ok(_), Some(None)) => Some(told(
                Test::LoadedLatency,
                Verdict::Fail,
                "no connection came through meanwhile".to_owned(),
            )),
            _ => None,
        });
        Ok(outcomes)
    }

    /// Returns the address of the first front door that has one.
    async fn first_door(&self, path: &Path) -> Option<SocketAddr> {
        for door in &self.targets.doors {
            let found = self.targets.address(&door.host, door.port, path.v6).await;
            if let Ok(Some(address)) = found {
                return Some(address);
            }
        }
        None
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
        let Ok(Ok(stream)) = timeout(PATIENCE, path.bound.connect(address)).await else {
            return told(Verdict::Skipped, "cannot connect".to_owned());
        };
        let encrypted = timeout(PATIENCE, handshake(&door.host, stream, self.trust)).await;
        let Ok(Ok(Some(mut stream))) = encrypted else {
            return told(Verdict::Skipped, "no TLS".to_owned());
        };
        let mut byte = [0];
        tokio::select! {
            // The server itself may have enough of it.
            read = stream.read(&mut byte) => {
                return match read {
                    Ok(_) => told(Verdict::Skipped, format!("the server closed it within {pause:?}")),
                    Err(error) => told(Verdict::Fail, format!("reset within {pause:?}: {error}")),
                };
            }
            () = sleep(pause) => {}
        }
        let answered = timeout(PATIENCE, ask(&mut stream, &door.host)).await;
        let _ = stream.shutdown().await;
        match answered {
            Ok(Ok(_)) => told(Verdict::Pass, format!("still works after {pause:?}")),
            Ok(Err(why)) => told(Verdict::Fail, format!("after {pause:?}: {why}")),
            Err(_) => told(
                Verdict::Fail,
                format!("nothing comes through after {pause:?}"),
            ),
        }
    }
}

/// Makes one of a time limit and an error.
fn flat<T>(outcome: std::result::Result<Result<T>, Elapsed>) -> std::result::Result<T, String> {
    match outcome {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err("the measurements took too long".to_owned()),
    }
}

/// Returns the outcome of a path that could not be measured to the end.
fn broken(path: &Path, why: String) -> Outcome {
    Outcome::told(&path.name, Test::Path, None, Verdict::Fail, why)
}
