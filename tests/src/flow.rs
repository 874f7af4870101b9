//! Real traffic from the client, and where it came out.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::netns::Namespace;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Messages that a flow sends, one after the other's answer.
const ROUNDS: usize = 4;
/// The size of such a message in bytes.
const MESSAGE: usize = 1000;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A conversation that the client starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// TCP or UDP.
    pub transport: Transport,
    /// Whom the client talks to.
    pub destination: SocketAddr,
}

impl Flow {
    /// A flow to an address, which may be IPv4 or IPv6.
    ///
    /// # Panics
    ///
    /// When the text is no IP address.
    pub fn new(transport: Transport, address: &str, port: u16) -> Self {
        let address = address.parse().expect("tests name valid addresses");
        Flow {
            transport,
            destination: SocketAddr::new(address, port),
        }
    }

    /// Holds the conversation: several messages, each sent back and compared. Returns who answered.
    ///
    /// # Errors
    ///
    /// When nobody answers, or something else comes back than was sent.
    pub fn talk(&self, client: &Namespace) -> Result<String> {
        let flow = self.clone();
        client
            .enter(move || match flow.transport {
                Transport::Tcp => tcp(flow.destination),
                Transport::Udp => udp(flow.destination),
            })
            .with_context(|| format!("{:?} to {}", self.transport, self.destination))
    }
}

/// A byte that differs from those around it.
fn pattern(index: usize) -> u8 {
    let [_, byte, ..] = index.wrapping_mul(2_654_435_761).to_le_bytes();
    byte
}

/// A message that is different in each round.
fn message(round: usize) -> Vec<u8> {
    (round * MESSAGE..(round + 1) * MESSAGE)
        .map(pattern)
        .collect()
}

fn tcp(destination: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&destination, PATIENCE).context("no connection")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut identity = String::new();
    reader.read_line(&mut identity).context("no greeting")?;
    for round in 0..ROUNDS {
        let sent = message(round);
        stream.write_all(&sent)?;
        let mut received = vec![0; sent.len()];
        reader.read_exact(&mut received).context("no answer")?;
        ensure!(sent == received, "the answer differs from what was sent");
    }
    Ok(identity.trim().to_owned())
}

fn udp(destination: SocketAddr) -> Result<String> {
    let any = if destination.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(destination)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut identity = String::new();
    for round in 0..ROUNDS {
        let sent = message(round);
        socket.send(&sent)?;
        let mut buffer = [0; 2 * MESSAGE];
        let count = socket.recv(&mut buffer).context("no answer")?;
        let end = buffer[..count]
            .iter()
            .position(|byte| *byte == b'\n')
            .context("an answer without identity")?;
        identity = String::from_utf8_lossy(&buffer[..end]).into_owned();
        ensure!(
            buffer[end + 1..count] == sent[..],
            "the answer differs from what was sent"
        );
    }
    Ok(identity)
}

/// Sends `size` bytes over one TCP connection while all of them come back. Returns who answered.
///
/// # Errors
///
/// When the connection breaks, or other bytes come back than were sent.
pub fn bulk(client: &Namespace, destination: SocketAddr, size: usize) -> Result<String> {
    client.enter(move || {
        let mut stream = TcpStream::connect_timeout(&destination, PATIENCE)?;
        let mut reader = BufReader::with_capacity(256 << 10, stream.try_clone()?);
        reader.get_ref().set_read_timeout(Some(PATIENCE))?;
        let mut identity = String::new();
        reader.read_line(&mut identity)?;
        let sender = std::thread::spawn(move || -> Result<()> {
            let mut sent = 0;
            while sent < size {
                let end = (sent + (64 << 10)).min(size);
                let chunk: Vec<u8> = (sent..end).map(pattern).collect();
                stream.write_all(&chunk)?;
                sent = end;
            }
            Ok(())
        });
        let mut received = 0;
        let mut buffer = vec![0; 64 << 10];
        while received < size {
            let count = reader
                .read(&mut buffer)
                .with_context(|| format!("after {received} of {size} bytes"))?;
            ensure!(
                count > 0,
                "the connection ended after {received} of {size} bytes"
            );
            for (offset, value) in buffer[..count].iter().enumerate() {
                ensure!(
                    *value == pattern(received + offset),
                    "byte {} is wrong",
                    received + offset
                );
            }
            received += count;
        }
        sender.join().expect("the sender does not panic")?;
        Ok(identity.trim().to_owned())
    })
}
