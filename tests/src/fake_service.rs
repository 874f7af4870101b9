//! A stand-in for Microsoft's web service: real HTTPS with a certificate authority of its own, on loopback. It can
//! misbehave in all the ways that services and networks do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use time::OffsetDateTime;

/// How long a connection may take before the service gives it up.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked whether somebody wants to connect.
const PAUSE: Duration = Duration::from_millis(3);

/// How the service behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    #[default]
    Well,
    /// It answers with this status, and asks to wait for so many seconds.
    Status(u16, Option<u32>),
    /// Every second request is answered with this status.
    EverySecond(u16),
    /// It takes the request and says nothing.
    Hangs,
    /// It breaks the connection in the middle of the answer.
    Resets,
    /// It sends a byte now and then.
    Drips,
    /// A proxy answers with its log-in page, and status 200.
    LogIn,
    /// The answer is small, and huge when unpacked.
    GzipBomb,
    /// It leads elsewhere.
    Redirects(String),
    /// It answers so many bytes.
    Huge(usize),
    /// It answers with this status and `Server` header.
    Root(u16, String),
    /// The answer ends in the middle, as if that were its end.
    Truncated,
}

/// What the service's certificate is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Right.
    Good,
    /// No longer valid.
    Expired,
    /// For another host.
    OtherHost,
}

/// What it answers.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The answer of `/version`.
    pub version: String,
    /// The answer of `/endpoints`.
    pub endpoints: Vec<u8>,
    /// The answer of `/changes`.
    pub changes: Vec<u8>,
    /// How it behaves.
    pub mood: Mood,
    /// How it behaves when asked for `/endpoints`, if otherwise.
    pub endpoints_mood: Option<Mood>,
    /// The status and the `Server` header of the answer to `/`, if there shall be one: that of a front door, or of a proxy in its place.
    pub root: Option<(u16, String)>,
    /// The requests so far, path and query.
    pub requests: Vec<String>,
}

/// A running service. It ends with its handle.
pub struct FakeService {
    address: SocketAddr,
    ca: String,
    state: Arc<Mutex<State>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeService {
    /// Starts a service on loopback, in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start(credentials: Credentials) -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), credentials)
    }

    /// Starts a service at an address of this thread's network namespace.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start_at(address: SocketAddr, credentials: Credentials) -> Result<Self> {
        let (config, ca) = tls(credentials)?;
        let listener = TcpListener::bind(address).context("the fake service cannot listen")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (for_thread, is_stopping) = (Arc::clone(&state), Arc::clone(&stopping));
        listener.set_nonblocking(true)?;
        let thread = thread::spawn(move || {
            while !is_stopping.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(PAUSE);
                    continue;
                };
                let (config, state) = (Arc::clone(&config), Arc::clone(&for_thread));
                // A client that gives up is what some tests are about.
                thread::spawn(move || drop(serve(stream, config, &state)));
            }
        });
        Ok(FakeService {
            address,
            ca,
            state,
            stopping,
            thread: Some(thread),
        })
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// The certificate of its authority, as PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// What it answers, to be looked at and changed.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a list.
    pub fn publish(&self, version: &str, endpoints: impl Into<Vec<u8>>) {
        let mut state = self.state();
        state.version = version.to_owned();
        state.endpoints = endpoints.into();
    }

    /// How often a path that starts so was asked for.
    pub fn requests(&self, path: &str) -> usize {
        let state = self.state();
        state
            .requests
            .iter()
            .filter(|request| request.starts_with(path))
            .count()
    }
}

impl Drop for FakeService {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tls(credentials: Credentials) -> Result<(Arc<ServerConfig>, String)> {
    let ca_key = KeyPair::generate()?;
    let mut ca_parameters = CertificateParams::new(Vec::new())?;
    ca_parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca_parameters.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_parameters, ca_key);
    let host = match credentials {
        Credentials::OtherHost => "elsewhere.example",
        _ => "localhost",
    };
    let mut parameters = CertificateParams::new(vec![host.to_owned()])?;
    if credentials == Credentials::Expired {
        let now = OffsetDateTime::now_utc();
        parameters.not_before = now - time::Duration::days(30);
        parameters.not_after = now - time::Duration::days(1);
    }
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate.der().to_vec())], key)?;
    Ok((Arc::new(config), ca.pem()))
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &Mutex<State>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut takes_gzip = false;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        let line = header.to_ascii_lowercase();
        takes_gzip |= line.starts_with("accept-encoding:") && line.contains("gzip");
        header.clear();
    }
    let path = request.split(' ').nth(1).context("no request")?.to_owned();
    let (mood, body) = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests.push(path.clone());
        state.answer(&path)
    };
    answer(&mut reader.into_inner(), &mood, &body, takes_gzip)
}

impl State {
    fn answer(&self, path: &str) -> (Mood, Vec<u8>) {
        let (mood, body) = self.answer_in_mood(path);
        let mood = match mood {
            Mood::EverySecond(status) if self.requests.len() % 2 == 1 => Mood::Status(status, None),
            Mood::EverySecond(_) => Mood::Well,
            mood => mood,
        };
        (mood, body)
    }

    fn answer_in_mood(&self, path: &str) -> (Mood, Vec<u8>) {
        if let (Some((status, server)), "/") = (&self.root, path) {
            return (Mood::Root(*status, server.clone()), Vec::new());
        }
        let lower = path.to_ascii_lowercase();
        // As the real one, which wants to tell its clients apart.
        if !lower.contains("clientrequestid=") {
            return (Mood::Status(400, None), Vec::new());
        }
        let for_endpoints = self
            .endpoints_mood
            .clone()
            .unwrap_or_else(|| self.mood.clone());
        if lower.starts_with("/version/") {
            let version = &self.version;
            let body = format!("{{\"instance\":\"Worldwide\",\"latest\":\"{version}\"}}");
            (self.mood.clone(), body.into_bytes())
        } else if lower.starts_with("/endpoints/") {
            (for_endpoints, self.endpoints.clone())
        } else if lower.starts_with("/changes/") {
            (for_endpoints, self.changes.clone())
        } else {
            (Mood::Status(404, None), Vec::new())
        }
    }
}

fn answer(stream: &mut Stream, mood: &Mood, body: &[u8], takes_gzip: bool) -> Result<()> {
    let json = "content-type: application/json\r\n";
    match mood {
        Mood::Well if takes_gzip && body.len() > 1000 => {
            let packed = gzip(body)?;
            send(
                stream,
                200,
                &format!("{json}content-encoding: gzip\r\n"),
                &packed,
            )?;
        }
        Mood::Well => send(stream, 200, json, body)?,
        Mood::Status(status, wait) => {
            let wait = wait.map_or(String::new(), |wait| format!("retry-after: {wait}\r\n"));
            send(stream, *status, &wait, b"not now")?;
        }
        // It was one of the others a moment before.
        Mood::EverySecond(_) | Mood::Hangs => thread::sleep(PATIENCE),
        Mood::Resets => {
            head(stream, 200, json, body.len())?;
            stream.write_all(&body[..body.len() / 2])?;
            stream.flush()?;
            // Without TLS's closing alert, and with a reset instead of an end.
            socket2::SockRef::from(&stream.sock).set_linger(Some(Duration::ZERO))?;
            return Ok(());
        }
        Mood::Drips => {
            head(stream, 200, json, body.len())?;
            for byte in body {
                stream.write_all(&[*byte])?;
                stream.flush()?;
                thread::sleep(Duration::from_millis(100));
            }
        }
        Mood::LogIn => {
            let page = b"<!DOCTYPE html><html><title>Log in</title></html>";
            send(stream, 200, "content-type: text/html\r\n", page)?;
        }
        Mood::GzipBomb => {
            let packed = gzip(&vec![b' '; 16 << 20])?;
            send(
                stream,
                200,
                &format!("{json}content-encoding: gzip\r\n"),
                &packed,
            )?;
        }
        Mood::Redirects(to) => send(stream, 302, &format!("location: {to}\r\n"), b"")?,
        Mood::Root(status, server) => {
            send(stream, *status, &format!("server: {server}\r\n"), b"")?;
        }
        Mood::Huge(size) => {
            head(stream, 200, json, *size)?;
            let chunk = vec![b' '; 1 << 16];
            for _ in 0..size.div_ceil(chunk.len()) {
                stream.write_all(&chunk)?;
            }
        }
        Mood::Truncated => send(stream, 200, json, &body[..body.len() / 2])?,
    }
    stream.conn.send_close_notify();
    stream.flush()?;
    // The client closes first, so that nothing of the answer is lost.
    let _ = stream.sock.shutdown(std::net::Shutdown::Write);
    let _ = stream.sock.read(&mut [0; 64]);
    Ok(())
}

fn head(stream: &mut Stream, status: u16, headers: &str, length: usize) -> Result<()> {
    let text = format!(
        "HTTP/1.1 {status} -\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    Ok(stream.write_all(text.as_bytes())?)
}

fn send(stream: &mut Stream, status: u16, headers: &str, body: &[u8]) -> Result<()> {
    head(stream, status, headers, body.len())?;
    Ok(stream.write_all(body)?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
