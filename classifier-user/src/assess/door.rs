//! Front doors, asked as a client would: TCP, TLS and HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::outcome::milliseconds;
use super::tcp::Agreed;
use crate::health::{Bound, Failure, Trust, handshake};

/// Connections of which the median latency is a figure, those of which latencies are compared, and the pause between them.
const MEASURED: usize = 5;
pub(super) const CONNECTIONS: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// The time that each step may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The most of an answer that is read for its head.
const HEAD: usize = 16 << 10;

/// Findings about a front door.
pub(super) struct Door {
    /// The median time of a connection, in milliseconds, or why there is none.
    pub(super) latency: Result<f64, String>,
    /// Properties of a connection.
    pub(super) agreed: Option<Agreed>,
    /// The answer over TLS and HTTP, or why there is none; none if there was no connection.
    pub(super) answer: Option<Result<Answer, Refused>>,
}

/// The reason for which a door gave no answer.
pub(super) enum Refused {
    /// No TLS, or a certificate of somebody else.
    Tls(String),
    /// No HTTP.
    Http(String),
}

/// The head of an answer over HTTP.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The `Server` header.
    pub(super) server: Option<String>,
}

/// Measures a front door.
pub(super) async fn visit(bound: &Bound, host: &str, address: SocketAddr, trust: &Trust) -> Door {
    let latency = latency(bound, address, MEASURED).await;
    let mut door = Door {
        latency,
        agreed: None,
        answer: None,
    };
    if door.latency.is_err() {
        return door;
    }
    let tls = |why: String| Some(Err(Refused::Tls(why)));
    let Ok(Ok(stream)) = timeout(PATIENCE, bound.connect(address)).await else {
        door.answer = tls("no connection".to_owned());
        return door;
    };
    door.agreed = Agreed::of(&stream).ok();
    door.answer = match timeout(PATIENCE, handshake(host, stream, trust)).await {
        Err(_) => tls(format!("no TLS within {PATIENCE:?}")),
        Ok(Err(Failure::Silence(why) | Failure::Foreign(why))) => tls(why),
        Ok(Ok(None)) => tls(format!(
            "{host} is no name, so its certificate cannot be verified"
        )),
        Ok(Ok(Some(mut stream))) => Some(
            timeout(PATIENCE, ask(&mut stream, host))
                .await
                .unwrap_or_else(|_| Err(format!("no answer over HTTP within {PATIENCE:?}")))
                .map_err(Refused::Http),
        ),
    };
    door
}

/// Measures the median time of so many connections, in milliseconds.
pub(super) async fn latency(
    bound: &Bound,
    address: SocketAddr,
    connections: usize,
) -> Result<f64, String> {
    let (mut took, mut why) = (Vec::new(), String::new());
    for _ in 0..connections {
        let started = Instant::now();
        match timeout(PATIENCE, bound.connect(address)).await {
            Ok(Ok(_)) => took.push(milliseconds(started.elapsed())),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no connection within {PATIENCE:?}"),
        }
        // One that does not answer at all is not waited for so often.
        if took.is_empty() && !why.is_empty() {
            return Err(why);
        }
        sleep(PAUSE).await;
    }
    median(took).ok_or(why)
}

/// Returns the middle value.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Sends a HEAD request for the root, and reads the head of the answer.
pub(super) async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    host: &str,
) -> Result<Answer, String> {
    let request = format!(
        "HEAD / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: breakout\r\nConnection: close\r\n\r\n"
    );
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(|error| error.to_string())?;
    let mut head = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let length = match stream.read(&mut chunk).await {
            Ok(0) => return Err("the connection was closed without an answer".to_owned()),
            Ok(length) => length,
            Err(error) => return Err(error.to_string()),
        };
        head.extend_from_slice(&chunk[..length]);
        if let Some(answer) = parse(&head)? {
            return Ok(answer);
        }
        if head.len() > HEAD {
            return Err(format!(
                "the head of the answer is longer than {HEAD} bytes"
            ));
        }
    }
}

/// Parses the head of an answer; none if it is not complete.
fn parse(head: &[u8]) -> Result<Option<Answer>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 96];
    let mut response = httparse::Response::new(&mut headers);
    let status = response
        .parse(head)
        .map_err(|error| format!("the answer is not HTTP: {error}"))?;
    if status.is_partial() {
        return Ok(None);
    }
    let server = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("server"));
    Ok(response.code.map(|status| Answer {
        status,
        server: server.map(|header| String::from_utf8_lossy(header.value).into_owned()),
    }))
}

/// Names of proxies in the `Server` header of an answer.
const PROXIES: [&str; 12] = [
    "squid",
    "bluecoat",
    "proxysg",
    "mcafee",
    "websense",
    "forcepoint",
    "zscaler",
    "fortigate",
    "sophos",
    "cisco",
    "barracuda",
    "proxy",
];

impl Answer {
    /// Returns which proxy has answered in the place of the front door, if one has.
    pub(super) fn proxy(&self) -> Option<String> {
        let server = self.server.as_deref().unwrap_or_default();
        let lower = server.to_ascii_lowercase();
        match self.status {
            407 => Some("a proxy wants authentication (status 407)".to_owned()),
            403 if PROXIES.iter().any(|proxy| lower.contains(proxy)) => {
                Some(format!("a proxy refuses (status 403 by {server:?})"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_told_from_front_doors() {
        let answer = |text: &str| parse(text.as_bytes()).unwrap().unwrap();
        let genuine = answer("HTTP/1.1 403 Forbidden\r\nServer: Microsoft-IIS/10.0\r\n\r\n");
        assert_eq!(genuine.proxy(), None);
        assert_eq!(
            answer("HTTP/1.1 302 Found\r\nLocation: /owa\r\n\r\n").proxy(),
            None
        );
        let proxy = answer("HTTP/1.1 403 Forbidden\r\nserver: squid/6.13\r\n\r\n").proxy();
        assert_eq!(
            proxy.unwrap(),
            "a proxy refuses (status 403 by \"squid/6.13\")"
        );
        assert!(
            answer("HTTP/1.0 407 Authentication\r\n\r\n")
                .proxy()
                .is_some()
        );
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nServer"), Ok(None));
        assert!(parse(b"SSH-2.0-OpenSSH\r\n").is_err());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(Vec::new()), None);
    }
}
