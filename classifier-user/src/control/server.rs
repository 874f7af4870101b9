//! The controller's end of the control socket.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use super::connections::{Limits, serve};
use super::exposition::{self, Exposition};
use super::{
    BypassOrder, EventsQuery, Failure, FlowsQuery, ForgetOrder, ListOrder, Reply, Request,
};
use crate::durable::remove;
use crate::exit::{Code, WithCode, code_of};
use crate::explain::Query;
use crate::rights::as_owner;

type Requests = mpsc::Sender<Request>;

/// Root and the service's user ask here, also by connections that they keep, and wait for what takes minutes.
const CONTROL: Limits = Limits {
    connections: 128,
    request: Duration::from_secs(300),
    lifetime: Duration::from_secs(24 * 3600),
    keep_alive: true,
};
/// Anybody who reaches the address.
const METRICS: Limits = Limits {
    connections: 16,
    request: Duration::from_secs(5),
    lifetime: Duration::from_secs(30),
    keep_alive: false,
};

/// A listening control socket. It is removed when this is dropped.
pub struct Server {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens on `path`, readable and writable for the owner only, and sends on what is asked.
    ///
    /// A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made, or another process listens on it.
    pub fn start(path: &Path, requests: Requests) -> Result<Self> {
        if let Some(directory) = path.parent() {
            as_owner(directory, || fs::create_dir_all(directory))
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(anyhow!(
                "another controller listens on {}; stop it, or set [control] socket",
                path.display()
            ))
            .code(Code::Busy);
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => {
                remove(path).with_context(|| format!("cannot replace {}", path.display()))?;
            }
            Ok(_) => bail!(
                "[control] socket: {} is there and is no socket",
                path.display()
            ),
            Err(_) => {}
        }
        let listen = || {
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = as_owner(path, listen)
            .with_context(|| format!("cannot listen on the control socket {}", path.display()))?;
        let router = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/stats", get(stats))
            .route("/v1/list", get(list))
            .route("/v1/explain", post(explain))
            .route("/v1/reload", post(reload))
            .route("/v1/plan", get(plan))
            .route("/v1/apply", post(apply))
            .route("/v1/bypass", post(bypass))
            .route("/v1/events", post(events))
            .route("/v1/flows", post(flows))
            .route("/v1/flows/forget", post(forget_flows))
            .route("/metrics", get(metrics))
            .route("/v1/list/fetch", post(fetch))
            .route("/v1/list/change", post(change_list))
            .with_state(requests);
        let task = tokio::spawn(serve(listener, router, CONTROL));
        Ok(Server {
            path: path.to_owned(),
            task,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = remove(&self.path);
    }
}

/// `/metrics` on a TCP address. It ends when this is dropped.
pub struct MetricsServer {
    task: tokio::task::JoinHandle<()>,
}

impl MetricsServer {
    /// Listens on `address` and answers `/metrics` only.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on.
    pub async fn start(address: SocketAddr, requests: Requests) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| {
            format!("[metrics] listen: cannot listen on {address}; is it taken, or no address of this machine?")
        })?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .with_state(requests);
        let task = tokio::spawn(serve(listener, router, METRICS));
        Ok(MetricsServer { task })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn metrics(State(requests): State<Requests>, headers: HeaderMap) -> Response {
    let snapshot = match answer(requests, Request::Metrics).await {
        Ok(snapshot) => snapshot,
        Err(failure) => return failure,
    };
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let exposition = Exposition::wanted(accept.unwrap_or_default());
    match exposition::text(snapshot, exposition) {
        Ok(text) => ([(CONTENT_TYPE, exposition.content_type())], text).into_response(),
        Err(error) => failure(error.to_string(), 1),
    }
}

async fn events(State(requests): State<Requests>, Json(query): Json<EventsQuery>) -> Response {
    ask(requests, |reply| Request::Events(query, reply)).await
}

async fn flows(State(requests): State<Requests>, Json(query): Json<FlowsQuery>) -> Response {
    ask(requests, |reply| Request::Flows(query, reply)).await
}

async fn status(State(requests): State<Requests>) -> Response {
    ask(requests, Request::Status).await
}

async fn stats(State(requests): State<Requests>) -> Response {
    ask(requests, Request::Stats).await
}

async fn list(State(requests): State<Requests>) -> Response {
    ask(requests, Request::List).await
}

async fn reload(State(requests): State<Requests>) -> Response {
    ask(requests, Request::Reload).await
}

async fn plan(State(requests): State<Requests>) -> Response {
    ask(requests, Request::Plan).await
}

async fn apply(State(requests): State<Requests>) -> Response {
    ask(requests, Request::Apply).await
}

async fn fetch(State(requests): State<Requests>) -> Response {
    ask(requests, Request::Fetch).await
}

async fn bypass(State(requests): State<Requests>, Json(order): Json<BypassOrder>) -> Response {
    ask(requests, |reply| Request::Bypass(order, reply)).await
}

async fn change_list(State(requests): State<Requests>, Json(order): Json<ListOrder>) -> Response {
    ask(requests, |reply| Request::ChangeList(order, reply)).await
}

async fn forget_flows(
    State(requests): State<Requests>,
    Json(order): Json<ForgetOrder>,
) -> Response {
    ask(requests, |reply| Request::ForgetFlows(order, reply)).await
}

async fn explain(State(requests): State<Requests>, Json(query): Json<Query>) -> Response {
    ask(requests, |reply| Request::Explain(query, reply)).await
}

async fn ask<T: Serialize>(
    requests: Requests,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Response {
    match answer(requests, request).await {
        Ok(value) => Json(value).into_response(),
        Err(failure) => failure,
    }
}

/// Returns what the controller answers, or the response that says why it does not.
async fn answer<T>(
    requests: Requests,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, Response> {
    let stopping = || failure("the controller is stopping".to_owned(), 1);
    let (reply, answer) = oneshot::channel();
    requests
        .send(request(reply))
        .await
        .map_err(|_| stopping())?;
    let answer = answer.await.map_err(|_| stopping())?;
    answer.map_err(|error| failure(format!("{error:#}"), code_of(&error) as u8))
}

fn failure(error: String, code: u8) -> Response {
    let body = Json(Failure { error, code });
    (StatusCode::INTERNAL_SERVER_ERROR, body).into_response()
}
