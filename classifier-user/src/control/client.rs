//! A command's end of the control socket.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{
    BypassOrder, EventsQuery, EventsReport, Failure, FetchReport, FlowsQuery, FlowsReport,
    ForgetOrder, ListOrder, ListReport, Plan, Reloaded, Stats, Status,
};
use crate::exit::{Code, WithCode};
use crate::explain::{Explanation, Query};

/// Time that a controller may take for an order. A reload of a large list takes seconds, a fetch up to minutes.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Time that it may take for an answer, also while it carries an order out.
const ANSWER: Duration = Duration::from_secs(60);
/// Paths of orders, which change something.
const ORDERS: [&str; 5] = [
    "/v1/reload",
    "/v1/apply",
    "/v1/bypass",
    "/v1/list/fetch",
    "/v1/list/change",
];

/// Error of a request to a controller.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no controller listens on {}: {error}. Start one with: breakout run --config FILE", socket.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The socket is not for this user.
    #[error("the control socket {} is for root only; run this as root", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
}

impl ClientError {
    /// The exit code that fits.
    pub fn code(&self) -> Code {
        match self {
            ClientError::NotRunning { .. } => Code::NotRunning,
            ClientError::Permission { .. } => Code::Permission,
        }
    }
}

/// A connection to a running controller.
pub struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
}

/// Returns what the controller answers, unless it takes longer.
///
/// # Errors
///
/// Those of the answer, and when there is none in time.
pub async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let answer = timeout(limit, answer).await;
    answer.with_context(|| format!("no answer in {limit:?}"))?
}

impl Client {
    /// Connects to the controller that listens on `socket`.
    ///
    /// # Errors
    ///
    /// When none does, or this user may not ask it.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission {
                socket: socket.to_owned(),
            },
            _ => ClientError::NotRunning {
                socket: socket.to_owned(),
                error,
            },
        };
        let stream = UnixStream::connect(socket).await.map_err(failed)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(io::Error::other(error)))?;
        tokio::spawn(connection);
        Ok(Client { sender })
    }

    /// Returns what the controller is doing.
    ///
    /// # Errors
    ///
    /// When it does not answer, as for the other requests.
    pub async fn status(&mut self) -> anyhow::Result<Status> {
        self.request(Method::GET, "/v1/status", &()).await
    }

    /// The counters.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status).
    pub async fn stats(&mut self) -> anyhow::Result<Stats> {
        self.request(Method::GET, "/v1/stats", &()).await
    }

    /// The list in force.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status).
    pub async fn list(&mut self) -> anyhow::Result<ListReport> {
        self.request(Method::GET, "/v1/list", &()).await
    }

    /// Returns why a flow goes where it goes.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status).
    pub async fn explain(&mut self, query: Query) -> anyhow::Result<Explanation> {
        self.request(Method::POST, "/v1/explain", &query).await
    }

    /// Has it forget the flows of a client, whose next packets are new. Returns how many there were.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status).
    pub async fn forget_flows(&mut self, client: IpAddr) -> anyhow::Result<usize> {
        let order = ForgetOrder { client };
        self.request(Method::POST, "/v1/flows/forget", &order).await
    }

    /// Reads configuration and list again.
    ///
    /// # Errors
    ///
    /// When something in them is wrong; everything then stays as it is.
    pub async fn reload(&mut self) -> anyhow::Result<Reloaded> {
        self.request(Method::POST, "/v1/reload", &()).await
    }

    /// Returns what a reload and the lists that wait would change.
    ///
    /// # Errors
    ///
    /// As for [`reload`](Self::reload).
    pub async fn plan(&mut self) -> anyhow::Result<Plan> {
        self.request(Method::GET, "/v1/plan", &()).await
    }

    /// Reads the configuration again and applies the lists that wait.
    ///
    /// # Errors
    ///
    /// As for [`reload`](Self::reload).
    pub async fn apply(&mut self) -> anyhow::Result<Reloaded> {
        self.request(Method::POST, "/v1/apply", &()).await
    }

    /// Switches steering off or on.
    ///
    /// # Errors
    ///
    /// When the switch fails; everything then stays as it is.
    pub async fn bypass(&mut self, order: BypassOrder) -> anyhow::Result<Reloaded> {
        self.request(Method::POST, "/v1/bypass", &order).await
    }

    /// Returns what has happened.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status).
    pub async fn events(&mut self, query: EventsQuery) -> anyhow::Result<EventsReport> {
        self.request(Method::POST, "/v1/events", &query).await
    }

    /// Pinned flows.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status).
    pub async fn flows(&mut self, query: FlowsQuery) -> anyhow::Result<FlowsReport> {
        self.request(Method::POST, "/v1/flows", &query).await
    }

    /// Looks at the lists' source now.
    ///
    /// # Errors
    ///
    /// As for [`status`](Self::status). That the source fails is no error here.
    pub async fn fetch(&mut self) -> anyhow::Result<FetchReport> {
        self.request(Method::POST, "/v1/list/fetch", &()).await
    }

    /// Changes which list is in force.
    ///
    /// # Errors
    ///
    /// When it is not possible; everything then stays as it is.
    pub async fn change_list(&mut self, order: &ListOrder) -> anyhow::Result<Reloaded> {
        self.request(Method::POST, "/v1/list/change", order).await
    }

    async fn request<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "breakout")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
        let exchange = async {
            // The end of an answer can be read before the connection is free for the next request.
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        let limit = if ORDERS.contains(&path) {
            TIMEOUT
        } else {
            ANSWER
        };
        let (status, body) = timeout(limit, exchange)
            .await
            .with_context(|| format!("the controller did not answer {path} in {limit:?}"))?
            .with_context(|| format!("the controller broke off the answer to {path}"))?;
        if !status.is_success() {
            let failure: Failure = serde_json::from_slice(&body)
                .with_context(|| format!("the controller answered {path} with {status}"))?;
            return Err(anyhow!(failure.error)).code(Code::from_number(failure.code));
        }
        serde_json::from_slice(&body).context(
            "the controller's answer is not understood; is it another version of breakout?",
        )
    }
}
