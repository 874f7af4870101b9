//! The public ports of translated flows: how many are taken, and the alert before they run out.

use std::collections::HashMap;
use std::net::SocketAddrV4;

use breakout_common::nat::PORTS;

use super::Controller;
use crate::control::{BusiestRemote, NatStatus};
use crate::datapath::Mapping;

/// The share of a remote's ports beyond which it is an alert that they run out.
const NEARLY_ALL: f64 = 0.8;

impl Controller {
    /// Forgets idle mappings, and counts the others.
    pub(super) fn tidy_mappings(&mut self) {
        if !self.config.translates() {
            self.nat_status = None;
            return;
        }
        match self.datapath.tidy_mappings() {
            Ok(mappings) => self.nat_status = Some(status_of(&mappings)),
            Err(error) => tracing::warn!("cannot tidy the table of mappings: {error:#}"),
        }
    }

    /// Says that public ports run out, if they do.
    pub(super) fn port_alert(&self) -> Option<String> {
        let busiest = self.nat_status.as_ref()?.busiest.as_ref()?;
        let share = f64::from(busiest.ports_used) / f64::from(PORTS);
        (share >= NEARLY_ALL).then(|| {
            format!(
                "public ports run out: {} of {PORTS} are taken that {} {} shares with others; it has {} of them. Flows beyond take the \
                 ordinary path",
                busiest.ports_used, busiest.proto, busiest.remote, busiest.flows
            )
        })
    }

    /// The mappings of flows, by client, remote, and whether it is TCP; none where nothing is translated.
    pub(super) fn public_ports(&self) -> HashMap<(SocketAddrV4, SocketAddrV4, bool), u16> {
        if !self.config.translates() {
            return HashMap::new();
        }
        let mappings = self.datapath.mappings().unwrap_or_default();
        let ports = mappings.iter().map(|mapping| {
            (
                (mapping.client, mapping.remote, mapping.is_tcp),
                mapping.port,
            )
        });
        ports.collect()
    }
}

fn status_of(mappings: &[Mapping]) -> NatStatus {
    let mut regions: HashMap<u32, u32> = HashMap::new();
    let mut remotes: HashMap<(SocketAddrV4, bool), (u32, u32)> = HashMap::new();
    // What closes makes room as soon as it is needed.
    for mapping in mappings.iter().filter(|mapping| mapping.is_open) {
        *regions.entry(mapping.region).or_default() += 1;
        let remote = remotes.entry((mapping.remote, mapping.is_tcp)).or_default();
        *remote = (mapping.region, remote.1 + 1);
    }
    let taken = |region: &u32| regions.get(region).copied().unwrap_or_default();
    let busiest = remotes
        .into_iter()
        .max_by_key(|(remote, (region, flows))| (taken(region), *flows, *remote));
    NatStatus {
        flows: mappings.len(),
        ports: PORTS,
        busiest: busiest.map(|((remote, is_tcp), (region, flows))| BusiestRemote {
            proto: if is_tcp { "tcp" } else { "udp" }.to_owned(),
            remote,
            flows,
            ports_used: taken(&region),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_remote_is_the_one_with_most_flows() {
        let mapping = |remote: &str, client: u16, is_tcp| Mapping {
            client: SocketAddrV4::new([10, 0, 0, 1].into(), client),
            remote: remote.parse().unwrap(),
            is_tcp,
            port: 20_000,
            is_open: true,
            region: 3,
        };
        assert_eq!(status_of(&[]).busiest, None);
        let status = status_of(&[
            mapping("52.98.1.1:443", 1, true),
            mapping("52.98.1.2:443", 2, true),
            mapping("52.98.1.2:443", 3, true),
            mapping("52.98.1.2:443", 4, false),
        ]);
        let busiest = status.busiest.unwrap();
        assert_eq!((status.flows, busiest.flows, busiest.ports_used), (4, 2, 4));
        assert_eq!(busiest.remote.to_string(), "52.98.1.2:443");
        assert_eq!(busiest.proto, "tcp");
    }
}
