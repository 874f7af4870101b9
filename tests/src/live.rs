//! Conversations that go on: TCP connections that stay open, and a media stream.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::netns::Namespace;

/// How long a connection may take to come up.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between the messages of a connection.
const TURN: Duration = Duration::from_millis(50);
/// Between the packets of a media stream: those of audio.
const FRAME: Duration = Duration::from_millis(20);
/// No conversation outlives this, whatever becomes of the test.
const LIFETIME: Duration = Duration::from_secs(600);

/// One connection as it is now.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Who answered at the start.
    pub identity: String,
    /// The client's port.
    pub port: u16,
    /// Messages that have come back.
    pub rounds: u64,
    /// Why it has ended, if it has.
    pub error: Option<String>,
}

/// TCP connections on which a message goes back and forth all the time. They end with the handle.
pub struct Connections {
    stop: Arc<AtomicBool>,
    state: Arc<Mutex<Vec<Conversation>>>,
    thread: Option<JoinHandle<()>>,
}

impl Connections {
    /// Opens `count` connections from the namespace, to the destinations in turn.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub fn open(client: &Namespace, destinations: &[SocketAddr], count: usize) -> Result<Self> {
        let ends: Vec<SocketAddr> = destinations.iter().copied().cycle().take(count).collect();
        let (streams, state) = client.enter(move || {
            let opened = ends.into_iter().map(open);
            Ok(opened
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .unzip::<_, _, Vec<_>, Vec<_>>())
        })?;
        let (stop, state) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(state)),
        );
        let (flag, shared) = (Arc::clone(&stop), Arc::clone(&state));
        let thread = thread::spawn(move || talk(streams, &shared, &flag));
        Ok(Connections {
            stop,
            state,
            thread: Some(thread),
        })
    }

    /// All connections as they are now.
    ///
    /// # Panics
    ///
    /// When the thread that holds them has.
    pub fn now(&self) -> Vec<Conversation> {
        self.state.lock().expect("the conversations go on").clone()
    }

    /// Waits until each of them that has not ended has had so many more messages back.
    ///
    /// # Errors
    ///
    /// When that takes too long.
    pub fn rounds(&self, more: u64) -> Result<Vec<Conversation>> {
        let before = self.now();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = self.now();
            let pairs = before.iter().zip(&now);
            let stuck = pairs
                .filter(|(before, now)| now.error.is_none() && now.rounds < before.rounds + more)
                .count();
            if stuck == 0 {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err(anyhow!(
                    "{stuck} of {} connections get no answers: {now:?}",
                    now.len()
                ));
            }
            thread::sleep(TURN);
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(destination: SocketAddr) -> Result<(TcpStream, Conversation)> {
    let mut stream = TcpStream::connect_timeout(&destination, PATIENCE)
        .with_context(|| format!("no connection to {destination}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut identity = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("no greeting")?;
        identity.extend(byte);
    }
    stream.set_nonblocking(true)?;
    let conversation = Conversation {
        identity: String::from_utf8_lossy(&identity).trim().to_owned(),
        port: stream.local_addr()?.port(),
        rounds: 0,
        error: None,
    };
    Ok((stream, conversation))
}

fn talk(mut streams: Vec<TcpStream>, state: &Mutex<Vec<Conversation>>, stop: &AtomicBool) {
    let started = Instant::now();
    let mut waiting = vec![false; streams.len()];
    while !stop.load(Ordering::Relaxed) && started.elapsed() < LIFETIME {
        let Ok(mut state) = state.lock() else { return };
        for ((stream, conversation), waits) in
            streams.iter_mut().zip(state.iter_mut()).zip(&mut waiting)
        {
            if conversation.error.is_none()
                && let Err(error) = turn(stream, conversation, waits)
            {
                conversation.error = Some(error);
            }
        }
        drop(state);
        thread::sleep(TURN);
    }
}

/// Sends the next message if the last one has come back.
fn turn(
    stream: &mut TcpStream,
    conversation: &mut Conversation,
    waits: &mut bool,
) -> Result<(), String> {
    let mut answer = [0; 8];
    if *waits {
        match stream.read(&mut answer) {
            Ok(0) => return Err("closed by the other end".to_owned()),
            Ok(8) if answer == conversation.rounds.to_be_bytes() => {
                conversation.rounds += 1;
                *waits = false;
            }
            Ok(_) => return Err("another answer than was sent".to_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
    stream
        .write_all(&conversation.rounds.to_be_bytes())
        .map_err(|error| error.to_string())?;
    *waits = true;
    Ok(())
}

/// A stream of small UDP packets, 50 a second, each sent back. It ends with the handle.
pub struct Stream {
    stop: Arc<AtomicBool>,
    packets: Arc<Mutex<Packets>>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

/// What a stream has sent, and what has come back.
#[derive(Default)]
struct Packets {
    /// When each was sent, by its number.
    sent: Vec<Instant>,
    /// When each answer came, to which number, and who gave it.
    answers: Vec<(Instant, usize, String)>,
}

impl Stream {
    /// Starts a stream from the namespace.
    ///
    /// # Errors
    ///
    /// When there is no socket.
    pub fn start(client: &Namespace, destination: SocketAddr) -> Result<Self> {
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::start_from(client, SocketAddr::new(any, 0), destination)
    }

    /// Starts a stream from an address of the namespace.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_from(
        client: &Namespace,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Self> {
        let socket = client.enter(move || {
            let socket = UdpSocket::bind(source)?;
            socket.connect(destination)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let port = socket.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let packets = Arc::new(Mutex::new(Packets::default()));
        let (flag, shared) = (Arc::clone(&stop), Arc::clone(&packets));
        let thread = thread::spawn(move || {
            let started = Instant::now();
            let mut buffer = [0; 256];
            while !flag.load(Ordering::Relaxed) && started.elapsed() < LIFETIME {
                let Ok(mut packets) = shared.lock() else {
                    return;
                };
                let mut payload = [0; 160];
                payload[..8].copy_from_slice(&packets.sent.len().to_be_bytes());
                packets.sent.push(Instant::now());
                drop(packets);
                // An error of the network is a packet lost.
                let _ = socket.send(&payload);
                thread::sleep(FRAME);
                while let Ok(count) = socket.recv(&mut buffer) {
                    let Some((number, identity)) = answer(&buffer[..count]) else {
                        continue;
                    };
                    if let Ok(mut packets) = shared.lock() {
                        packets.answers.push((Instant::now(), number, identity));
                    }
                }
            }
        });
        Ok(Stream {
            stop,
            packets,
            port,
            thread: Some(thread),
        })
    }

    /// The client's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn packets(&self) -> MutexGuard<'_, Packets> {
        self.packets.lock().expect("the stream goes on")
    }

    /// How many packets that were sent since a moment had no answer. The last tenth of a second does not count.
    ///
    /// # Panics
    ///
    /// As [`now`](Self::now).
    pub fn lost_since(&self, moment: Instant) -> usize {
        let packets = self.packets();
        let until = Instant::now() - Duration::from_millis(100);
        let answered: HashSet<usize> = packets
            .answers
            .iter()
            .map(|(_, number, _)| *number)
            .collect();
        let sent = packets.sent.iter().enumerate();
        sent.filter(|(number, time)| {
            **time >= moment && **time < until && !answered.contains(number)
        })
        .count()
    }

    /// Who has answered last; nobody at first.
    ///
    /// # Panics
    ///
    /// When the thread that holds the stream has.
    pub fn now(&self) -> Option<String> {
        let packets = self.packets();
        packets
            .answers
            .last()
            .map(|(.., identity)| identity.clone())
    }

    /// The longest time without an answer since a moment, until now.
    ///
    /// # Panics
    ///
    /// As [`now`](Self::now).
    pub fn gap_since(&self, moment: Instant) -> Duration {
        let packets = self.packets();
        let mut times: Vec<Instant> = (packets.answers.iter())
            .map(|(time, ..)| *time)
            .filter(|time| *time >= moment)
            .collect();
        times.insert(0, moment);
        times.push(Instant::now());
        let pairs = times.windows(2).map(|pair| pair[1] - pair[0]);
        pairs.max().unwrap_or_default()
    }

    /// Everybody who has answered since a moment.
    ///
    /// # Panics
    ///
    /// As [`now`](Self::now).
    pub fn who_since(&self, moment: Instant) -> Vec<String> {
        let packets = self.packets();
        let since = packets.answers.iter().filter(|(time, ..)| *time >= moment);
        let mut who: Vec<String> = since.map(|(.., identity)| identity.clone()).collect();
        who.dedup();
        who
    }
}

/// The number and the identity in what a server has sent back.
fn answer(bytes: &[u8]) -> Option<(usize, String)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let number = usize::from_be_bytes(bytes.get(end + 1..end + 9)?.try_into().ok()?);
    Some((number, String::from_utf8_lossy(&bytes[..end]).into_owned()))
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
