//! Connections to the control socket and to the metrics' address: so many at a time, and none that only waits.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Limits of one client. Each connection is a descriptor, of which the controller needs others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time. The next one takes the place of the oldest, so that idle ones keep nobody out.
    pub(super) connections: usize,
    /// Time for which a connection may wait for a whole request.
    pub(super) request: Duration,
    /// Time that it may last.
    pub(super) lifetime: Duration,
    /// True if further requests may follow the first one.
    pub(super) keep_alive: bool,
}

/// Answers connections for ever.
pub(super) async fn serve<L: Listener>(mut listener: L, router: Router, limits: Limits) {
    let mut running: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        // Where there is no descriptor left, this waits for one.
        let (stream, _) = listener.accept().await;
        running.retain(|task| !task.is_finished());
        if running.len() >= limits.connections
            && let Some(oldest) = running.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.request)
            .keep_alive(limits.keep_alive)
            .serve_connection(TokioIo::new(stream), service);
        let task = tokio::spawn(async move {
            // What goes wrong there is the client's affair.
            let _ = timeout(limits.lifetime, connection).await;
        });
        running.push_back(task.abort_handle());
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const LIMITS: Limits = Limits {
        connections: 4,
        request: Duration::from_millis(300),
        lifetime: Duration::from_secs(5),
        keep_alive: false,
    };

    async fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn idle_connections_keep_nobody_out_and_are_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(serve(listener, router, LIMITS));
        let mut idle = Vec::new();
        for _ in 0..50 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = ask(&mut stream).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        // The youngest of them was not pushed out; it is ended because it asks nothing.
        let mut last = idle.pop().unwrap();
        let mut byte = [0];
        let ended = timeout(Duration::from_secs(5), last.read(&mut byte)).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}
