//! Names asked of one resolver, by one path.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::time::{Instant, timeout_at};

use crate::health::Bound;

/// The times that a question is asked, and how long an answer is awaited.
const TRIES: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(2);
const PORT: u16 = 53;

/// An answer by a resolver.
pub(super) struct Resolved {
    /// The addresses; none if the name has none of that family.
    pub(super) addresses: Vec<IpAddr>,
    /// The time that it took.
    pub(super) took: Duration,
}

/// Asks a resolver for the addresses of a name.
pub(super) async fn resolve(
    bound: &Bound,
    resolver: IpAddr,
    name: &str,
    v6: bool,
) -> Result<Resolved> {
    let kind = if v6 { RecordType::AAAA } else { RecordType::A };
    let name = Name::from_ascii(format!("{}.", name.trim_end_matches('.')))
        .with_context(|| format!("{name} is not a valid name"))?;
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    let bytes = query.to_vec()?;
    let socket = bound.datagrams(SocketAddr::new(resolver, PORT))?;
    let mut answer = [0; 4096];
    let started = Instant::now();
    for _ in 0..TRIES {
        let turn = Instant::now() + PATIENCE;
        socket.send(&bytes).await?;
        while let Ok(length) = timeout_at(turn, socket.recv(&mut answer)).await {
            let Ok(response) = Message::from_vec(&answer[..length?]) else {
                continue;
            };
            if response.metadata.id != query.metadata.id || response.queries != query.queries {
                continue;
            }
            let code = response.metadata.response_code;
            if code != ResponseCode::NoError {
                bail!("resolver {resolver} answers {code}");
            }
            let addresses = response
                .answers
                .iter()
                .filter_map(|record| record.data.ip_addr());
            return Ok(Resolved {
                addresses: addresses
                    .filter(|address| address.is_ipv6() == v6)
                    .collect(),
                took: started.elapsed(),
            });
        }
    }
    bail!("resolver {resolver} does not answer")
}

/// Reads the first resolver of resolv.conf(5), if there is one.
pub(super) fn of_the_system() -> io::Result<Option<IpAddr>> {
    Ok(first_of(&fs::read_to_string("/etc/resolv.conf")?))
}

fn first_of(text: &str) -> Option<IpAddr> {
    let mut resolvers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_resolver = words.next() == Some("nameserver");
        // An address of a link may name that: fe80::1%eth0.
        is_resolver.then(|| words.next()?.parse().ok())?
    });
    resolvers.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_text_that_is_no_name_is_not_asked_for() {
        let asked = resolve(&Bound::default(), [127, 0, 0, 1].into(), "a..b", false).await;
        let error = asked.err().map(|error| error.to_string());
        assert_eq!(error.unwrap(), "a..b is not a valid name");
    }

    #[test]
    fn the_first_resolver_is_taken() {
        let text = "# nameserver 192.0.2.1\nsearch example.org\nnameserver nonsense\nnameserver 192.0.2.2 # x\nnameserver 192.0.2.3\n";
        assert_eq!(first_of(text), Some("192.0.2.2".parse().unwrap()));
        assert_eq!(first_of("search example.org\n"), None);
    }
}
