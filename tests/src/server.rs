//! Servers at the far ends, which say where they stand and send back what they get.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::flow::{Flow, Transport};
use crate::netns::Namespace;

/// How long a server waits before it looks whether it should stop.
const TURN: Duration = Duration::from_millis(50);

/// Running servers. They end with the handle.
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Starts a server in the namespace for each flow's destination. It answers with `identity`.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound.
    pub fn start(namespace: &Namespace, identity: &'static str, flows: &[Flow]) -> Result<Self> {
        let mut ends: Vec<(Transport, SocketAddr)> = flows
            .iter()
            .map(|flow| (flow.transport, flow.destination))
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let threads = namespace.enter(move || {
            let start = |(transport, end): (Transport, SocketAddr)| {
                let stop = Arc::clone(&flag);
                let failed = || format!("cannot serve {end} at the {identity} end");
                match transport {
                    Transport::Tcp => {
                        let listener = TcpListener::bind(end).with_context(failed)?;
                        listener.set_nonblocking(true)?;
                        Ok(thread::spawn(move || tcp(&listener, identity, &stop)))
                    }
                    Transport::Udp => {
                        let socket = UdpSocket::bind(end).with_context(failed)?;
                        socket.set_read_timeout(Some(TURN))?;
                        Ok(thread::spawn(move || udp(&socket, identity, &stop)))
                    }
                }
            };
            ends.into_iter().map(start).collect::<Result<Vec<_>>>()
        })?;
        Ok(Servers { stop, threads })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn tcp(listener: &TcpListener, identity: &'static str, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let stop = Arc::clone(stop);
                thread::spawn(move || {
                    // A client that breaks off sees that itself.
                    let _ = echo(stream, identity, &stop);
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn echo(mut stream: TcpStream, identity: &str, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TURN))?;
    writeln!(stream, "{identity}")?;
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => stream.write_all(&buffer[..count])?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn udp(socket: &UdpSocket, identity: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((count, client)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("{identity}\n").into_bytes();
            answer.extend_from_slice(&buffer[..count]);
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// A relay that answers STUN binding requests (RFC 8489). It ends with the handle.
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts a relay in the namespace.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let socket = namespace.enter(move || Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(TURN))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !flag.load(Ordering::Relaxed) {
                let Ok((count, client)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                if count >= 20 && buffer[..2] == [0, 1] {
                    // A success response without attributes, with the request's transaction.
                    let mut answer = [0; 20];
                    answer[..2].copy_from_slice(&[1, 1]);
                    answer[4..].copy_from_slice(&buffer[4..20]);
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Relay {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An HTTP server that answers every request with where it stands. It ends with the handle.
pub struct Web {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Starts a server in the namespace.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn start(
        namespace: &Namespace,
        address: SocketAddr,
        identity: &'static str,
    ) -> Result<Self> {
        let listener = namespace.enter(move || Ok(TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that breaks off sees that itself.
                    Ok((stream, _)) => drop(answer(stream, identity)),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Web {
            stop,
            thread: Some(thread),
        })
    }
}

fn answer(mut stream: TcpStream, identity: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let length = identity.len() + 1;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{identity}\n"
    )
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
