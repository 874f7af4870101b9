//! A path under load: how fast a download is, and how much longer other packets take meanwhile (bufferbloat).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use reqwest::Url;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::door::{PATIENCE, latency, median};
use crate::health::{Bound, Failure, Trust, handshake};

/// The time that the download takes, at most, and that before the link is full.
const DURATION: Duration = Duration::from_secs(8);
const START: Duration = Duration::from_secs(2);
/// The pause behind a connection that is refused.
const PAUSE: Duration = Duration::from_millis(100);
/// Transfers at the same time: a single one takes long until it fills a link.
const TRANSFERS: usize = 4;

/// An answer that is no file: the URL is to blame, and not the path.
#[derive(Debug, Error)]
#[error("the download begins with {0:?} instead of status 200")]
pub(super) struct NoFile(String);

/// Figures of a path under load.
pub(super) struct Loaded {
    /// The rate, in megabytes per second.
    pub(super) rate: f64,
    /// The latency of a connection meanwhile, in milliseconds, if one came through; none if the download was over too soon.
    pub(super) latency: Option<Option<f64>>,
}

/// Downloads for some seconds, and connects to a front door meanwhile.
pub(super) async fn download(
    bound: &Bound,
    url: &Url,
    server: SocketAddr,
    door: SocketAddr,
    trust: &Trust,
) -> Result<Loaded> {
    let host = url.host_str().context("the URL has no host")?;
    let transfer = || async {
        let connected = timeout(PATIENCE, bound.connect(server)).await;
        let stream = connected
            .context("no connection in time")?
            .context("cannot connect")?;
        if url.scheme() == "http" {
            return read(stream, url, host).await;
        }
        let encrypted = timeout(PATIENCE, handshake(host, stream, trust)).await;
        match encrypted.context("no TLS in time")? {
            Ok(Some(stream)) => read(stream, url, host).await,
            Ok(None) => bail!("{host} is no name, so its certificate cannot be verified"),
            Err(Failure::Silence(why) | Failure::Foreign(why)) => bail!("no TLS: {why}"),
        }
    };
    let (mut latencies, mut tries) = (Vec::new(), 0);
    let meanwhile = async {
        sleep(START).await;
        loop {
            tries += 1;
            match latency(bound, door, 1).await {
                Ok(latency) => latencies.push(latency),
                Err(_) => sleep(PAUSE).await,
            }
        }
    };
    let transfers = try_join_all((0..TRANSFERS).map(|_| transfer()));
    let transfers = tokio::select! {
        transfers = transfers => transfers?,
        () = meanwhile => Vec::new(),
    };
    let took = transfers
        .iter()
        .map(|(_, took)| *took)
        .max()
        .unwrap_or_default();
    let bytes: u64 = transfers.iter().map(|(bytes, _)| bytes).sum();
    Ok(Loaded {
        rate: bytes as f64 / 1e6 / took.as_secs_f64().max(1e-3),
        latency: (tries > 0).then(|| median(latencies)),
    })
}

/// Reads the answer to a request until it ends or the time is over. Returns how many bytes came, and in which time.
async fn read(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    url: &Url,
    host: &str,
) -> Result<(u64, Duration)> {
    let query = url
        .query()
        .map_or(String::new(), |query| format!("?{query}"));
    let host = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let request = format!(
        "GET {}{query} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: breakout\r\nConnection: close\r\n\r\n",
        url.path()
    );
    let started = Instant::now();
    timeout(PATIENCE, stream.write_all(request.as_bytes())).await??;
    let mut chunk = vec![0; 64 << 10];
    let (mut bytes, mut head) = (0_u64, Vec::new());
    while let Ok(length) = timeout_at(started + DURATION, stream.read(&mut chunk)).await {
        // A server may end without TLS's own farewell.
        let length = length.unwrap_or(0);
        if length == 0 {
            break;
        }
        if head.len() < STATUS.len() {
            head.extend_from_slice(&chunk[..length.min(STATUS.len())]);
        }
        bytes += length as u64;
    }
    if head.get(9..12) != Some(b"200") {
        return Err(NoFile(String::from_utf8_lossy(&head).into_owned()).into());
    }
    Ok((bytes, started.elapsed()))
}

/// The start of a good answer.
const STATUS: &str = "HTTP/1.1 200";

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads what a server answers.
    async fn answered(answer: &[u8]) -> Result<(u64, Duration)> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        let url = Url::parse("https://files.example/large?part=1").unwrap();
        let read = read(ours, &url, "files.example").await;
        let mut request = String::new();
        theirs.read_to_string(&mut request).await.unwrap();
        assert!(
            request.starts_with("GET /large?part=1 HTTP/1.1\r\nHost: files.example\r\n"),
            "{request}"
        );
        read
    }

    #[tokio::test]
    async fn only_a_good_answer_is_a_download() {
        let good = b"HTTP/1.1 200 OK\r\n\r\n0123456789";
        let (bytes, _) = answered(good).await.unwrap();
        assert_eq!(bytes, good.len() as u64);
        for bad in ["HTTP/1.1 404 Not Found\r\n\r\n", "", "HTTP/1.1"] {
            let error = answered(bad.as_bytes()).await.unwrap_err().to_string();
            assert!(
                error.starts_with("the download begins with"),
                "{bad}: {error}"
            );
        }
    }
}
