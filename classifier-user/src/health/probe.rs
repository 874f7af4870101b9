//! One try to reach a target, by a socket that cannot leave by another interface.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use socket2::{Protocol, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::bound::{Bound, connected};
use super::peer::Trust;
use super::stun::{Answer, Method, Request};
use super::{Kind, Target};

/// The status that is a captive portal's alone (RFC 6585, section 6).
const NETWORK_AUTHENTICATION_REQUIRED: u16 = 511;

/// An answer.
pub(super) struct Answered {
    /// Time that it took.
    pub(super) took: Duration,
    /// Method of the request to a relay.
    pub(super) method: Option<Method>,
    /// The address that the server has seen, if it tells.
    pub(super) mapped: Option<IpAddr>,
}

/// Failure of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The target did not answer.
    Silence(String),
    /// Somebody answered in its place.
    Foreign(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Silence(error.to_string())
    }
}

/// Probes a target once; a relay by the method that it answers, if that is known. Returns the answer, or why there is none. Where
/// nothing comes back it waits for ever; the caller has `patience`.
pub(super) async fn probe(
    target: &Target,
    address: SocketAddr,
    method: Option<Method>,
    bound: &Bound,
    trust: Option<&Trust>,
    patience: Duration,
) -> Result<Answered, Failure> {
    let started = Instant::now();
    let mut mapped = None;
    match target.kind {
        Kind::Turn => return Ok(turn(address, method, bound, patience).await?),
        Kind::Stun => mapped = stun(address, bound).await?,
        Kind::Icmp => icmp(address.ip(), bound).await?,
        Kind::Tcp => drop(bound.connect(address).await?),
        Kind::Tls => tls(target, address, bound, trust).await?,
        Kind::Http => http(target, address, bound).await?,
    }
    Ok(Answered {
        took: started.elapsed(),
        method: None,
        mapped,
    })
}

async fn stun(address: SocketAddr, bound: &Bound) -> io::Result<Option<IpAddr>> {
    let socket = bound.datagrams(address)?;
    let request = Request::new(Method::Binding);
    socket.send(&request.bytes).await?;
    // Success or error: either way the relay was reached.
    Ok(answer(&socket, &[&request]).await?.mapped)
}

/// Asks a relay for an allocation, which it refuses without a password (error 401). One of which it is not known what it answers is
/// asked for a binding too when half of the time is over.
async fn turn(
    address: SocketAddr,
    method: Option<Method>,
    bound: &Bound,
    patience: Duration,
) -> io::Result<Answered> {
    let socket = bound.datagrams(address)?;
    let first = Request::new(method.unwrap_or(Method::Allocate));
    let mut requests = vec![&first];
    let mut asked = vec![Instant::now()];
    socket.send(&first.bytes).await?;
    let early = match method {
        Some(_) => None,
        None => timeout(patience / 2, answer(&socket, &requests)).await.ok(),
    };
    let second = Request::new(Method::Binding);
    let Replied {
        which,
        answer,
        mapped,
    } = match early {
        Some(answered) => answered?,
        None => {
            if method.is_none() {
                requests.push(&second);
                asked.push(Instant::now());
                socket.send(&second.bytes).await?;
            }
            answer(&socket, &requests).await?
        }
    };
    let (took, method) = (asked[which].elapsed(), requests[which].method);
    if (method, answer) == (Method::Allocate, Answer::Success) {
        // Given up at once. Should that be lost, the relay forgets it after ten minutes.
        socket.send(&Request::new(Method::Refresh).bytes).await?;
    }
    Ok(Answered {
        took,
        method: Some(method),
        mapped,
    })
}

/// An answer to one of several requests.
struct Replied {
    /// Index of the request that it answers.
    which: usize,
    answer: Answer,
    /// The address that the requests seem to come from.
    mapped: Option<IpAddr>,
}

/// Waits for the answer to one of these requests.
async fn answer(socket: &UdpSocket, requests: &[&Request]) -> io::Result<Replied> {
    let mut message = [0; 548];
    loop {
        let length = socket.recv(&mut message).await?;
        let message = &message[..length];
        let mut replies = requests.iter().enumerate().filter_map(|(which, request)| {
            Some(Replied {
                which,
                answer: request.answer(message)?,
                mapped: request.mapped(message).map(|mapped| mapped.ip()),
            })
        });
        if let Some(replied) = replies.next() {
            return Ok(replied);
        }
    }
}

async fn icmp(address: IpAddr, bound: &Bound) -> io::Result<()> {
    let (request, reply, protocol) = match address {
        IpAddr::V4(_) => (8, 0, Protocol::ICMPV4),
        IpAddr::V6(_) => (128, 129, Protocol::ICMPV6),
    };
    let socket = bound.socket(address, Type::RAW, Some(protocol))?;
    let socket = connected(socket, SocketAddr::new(address, 0))?;
    let mut echo = [0; 16];
    echo[0] = request;
    fastrand::fill(&mut echo[4..]);
    if address.is_ipv4() {
        // The kernel fills in the checksum of ICMPv6 itself (RFC 3542, section 3.1).
        let sum = checksum(&echo).to_be_bytes();
        echo[2..4].copy_from_slice(&sum);
    }
    socket.send(&echo).await?;
    let mut answer = [0; 128];
    loop {
        let length = socket.recv(&mut answer).await?;
        let packet = &answer[..length];
        // IPv4 raw sockets get the IP header too.
        let header = if address.is_ipv4() {
            usize::from(packet.first().unwrap_or(&0) & 0x0f) * 4
        } else {
            0
        };
        let Some(message) = packet.get(header..) else {
            continue;
        };
        if message.first() == Some(&reply) && message.get(4..16) == Some(&echo[4..]) {
            return Ok(());
        }
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

async fn tls(
    target: &Target,
    address: SocketAddr,
    bound: &Bound,
    trust: Option<&Trust>,
) -> Result<(), Failure> {
    let no_trust = || io::Error::other("the certificates to trust are not read yet");
    let trust = trust.ok_or_else(no_trust)?;
    let stream = bound.connect(address).await?;
    handshake(&target.host, stream, trust).await.map(drop)
}

/// Does a TLS handshake with a host. Returns the stream, or none where a server speaks TLS that cannot be verified, as it is asked for by
/// its address.
pub(crate) async fn handshake(
    host: &str,
    stream: TcpStream,
    trust: &Trust,
) -> Result<Option<TlsStream<TcpStream>>, Failure> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let (config, is_checked) = trust.config(&name);
    let error = match TlsConnector::from(config).connect(name, stream).await {
        Ok(stream) => return Ok(Some(stream)),
        Err(error) => error,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(why)) if is_checked => Err(Failure::Foreign(
            format!("the certificate is not that of {host}: {why}"),
        )),
        Some(rustls::Error::InvalidMessage(_)) if is_checked => Err(Failure::Foreign(
            "what answers does not speak TLS".to_owned(),
        )),
        // A refusal does not say whose it is.
        Some(rustls::Error::AlertReceived(_)) if is_checked => Err(error.into()),
        // That there is a certificate, or a refusal, means that a server speaks TLS.
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)) => Ok(None),
        _ => Err(error.into()),
    }
}

async fn http(target: &Target, address: SocketAddr, bound: &Bound) -> Result<(), Failure> {
    let mut stream = bound.connect(address).await?;
    let request = format!(
        "HEAD {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: breakout\r\nConnection: close\r\n\r\n",
        target.path, target.host
    );
    stream.write_all(request.as_bytes()).await?;
    let mut start = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut start).await?;
    let not_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let start = str::from_utf8(&start).map_err(|_| not_http())?;
    let (version, status) = start.split_once(' ').ok_or_else(not_http)?;
    let status: u16 = status.parse().map_err(|_| not_http())?;
    if !version.starts_with("HTTP/") {
        return Err(not_http().into());
    }
    match target.expects {
        Some(expected) if status != expected => Err(Failure::Foreign(format!(
            "the status is {status} instead of {expected}"
        ))),
        None if status == NETWORK_AUTHENTICATION_REQUIRED => Err(Failure::Foreign(
            "the network asks for a log-in (status 511)".to_owned(),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_make_the_sum_zero() {
        let mut echo = [8, 0, 0, 0, 0x12, 0x34, 0xff, 0xff];
        let sum = checksum(&echo).to_be_bytes();
        echo[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&echo), 0);
    }
}
