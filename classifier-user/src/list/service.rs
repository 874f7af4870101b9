//! The client of Microsoft's web service, <https://learn.microsoft.com/microsoft-365/enterprise/microsoft-365-ip-web-service>.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use reqwest::header::{ACCEPT, LOCATION, PROXY_AUTHENTICATE, RETRY_AFTER};
use reqwest::{Certificate, Client, Proxy, Response, StatusCode, redirect};
use serde::Deserialize;

use super::Instance;
use super::fetch_error::{FetchError, MAX_ANSWER};
use crate::config::ListConfig;
use crate::plain::{into_plain, plain};
use crate::secrets::masked;

/// Time that an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connecting, with TLS.
    pub connect: Duration,
    /// Silence.
    pub read: Duration,
    /// All in all.
    pub total: Duration,
    /// The pauses before a question is asked again that the service has answered with a fault of its own.
    pub again: [Duration; 2],
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(15),
            total: Duration::from_secs(60),
            again: [Duration::from_secs(1), Duration::from_secs(3)],
        }
    }
}

/// Message about HTML in the place of an answer.
const WEB_PAGE: &str = "it is an HTML page: the log-in or error page of a proxy or of the network. Let this gateway pass there, or set \
                        [list] proxy";

/// Wait after status 429 if the service does not name one.
const HOUR: Duration = Duration::from_secs(3600);

/// The web service, or a mirror of it.
#[derive(Clone, Debug)]
pub struct Service {
    client: Client,
    base: String,
    client_id: String,
    query: String,
    again: Option<[Duration; 2]>,
    /// The proxy, for people.
    proxy: String,
    has_password: bool,
}

/// Answer of `/version/INSTANCE`.
#[derive(Deserialize)]
struct Version {
    latest: String,
}

impl Service {
    /// A client for the service at `base`, which names this machine by `client_id`, a GUID.
    ///
    /// # Errors
    ///
    /// When the certificates or the proxy of the configuration cannot be used.
    pub fn new(config: &ListConfig, base: &str, client_id: &str, limits: Limits) -> Result<Self> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // It fails only where one is installed already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let mut client = Client::builder()
            .user_agent(concat!("breakout/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limits.connect)
            .read_timeout(limits.read)
            .timeout(limits.total)
            .redirect(redirect::Policy::none())
            .https_only(!base.to_ascii_lowercase().starts_with("http:"))
            .pool_max_idle_per_host(0);
        if let Some(file) = &config.ca_file {
            client = client.tls_certs_merge(certificates(file)?);
        }
        if let Some(proxy) = &config.proxy {
            let proxy = Proxy::all(proxy)
                .with_context(|| format!("[list] proxy = \"{}\"", masked(proxy)))?;
            client = client.proxy(proxy);
        }
        if let Some(interface) = &config.interface {
            client = client.interface(interface);
        }
        let proxy = config.proxy.clone().or_else(proxy_of_environment);
        Ok(Service {
            has_password: proxy.as_ref().is_some_and(|proxy| proxy.contains('@')),
            proxy: proxy.map_or_else(|| "in between".to_owned(), |proxy| masked(&proxy)),
            client: client.build().context("cannot set up TLS")?,
            base: base.to_owned(),
            client_id: client_id.to_owned(),
            query: query(config),
            again: Some(limits.again),
        })
    }

    /// The same service, asked once only: it has faults that do not pass in a moment.
    #[must_use]
    pub fn once(&self) -> Self {
        Service {
            again: None,
            ..self.clone()
        }
    }

    /// Returns what is asked for beyond the instance, as it stands in the URL.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// Returns where answers come from, for people.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The newest version of an instance's list.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub async fn version(&self, instance: Instance) -> Result<String, FetchError> {
        let url = format!(
            "{}/version/{instance}?clientrequestid={}",
            self.base, self.client_id
        );
        let text = self.get(&url).await?;
        let wrong = |reason| FetchError::Answer {
            url: shown(&url),
            expected: "a version",
            reason,
        };
        if text.trim_ascii_start().starts_with(b"<") {
            return Err(wrong(WEB_PAGE.to_owned()));
        }
        let version: Version = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("{error}{}", beginning(&text))))?;
        if version.latest.len() != 10 || !version.latest.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong(format!("\"{}\" has not ten digits", version.latest)));
        }
        Ok(version.latest)
    }

    /// An instance's list, as it is sent.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub async fn endpoints(&self, instance: Instance) -> Result<Vec<u8>, FetchError> {
        let url = format!(
            "{}/endpoints/{instance}?clientrequestid={}{}",
            self.base, self.client_id, self.query
        );
        self.get(&url).await
    }

    /// Returns what has changed in an instance's list since a version, as it is sent.
    ///
    /// # Errors
    ///
    /// See [`FetchError`].
    pub async fn changes(&self, instance: Instance, since: &str) -> Result<Vec<u8>, FetchError> {
        let url = format!(
            "{}/changes/{instance}/{since}?clientrequestid={}",
            self.base, self.client_id
        );
        self.get(&url).await
    }

    /// Asks once more, and again, where the service has a fault that may be over in a moment.
    async fn get(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        for pause in self.again.into_iter().flatten() {
            match self.get_once(url).await {
                Err(error) if error.may_be_over_soon() => tokio::time::sleep(pause).await,
                outcome => return outcome,
            }
        }
        self.get_once(url).await
    }

    async fn get_once(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let sent = self
            .client
            .get(url)
            .header(ACCEPT, "application/json")
            .send();
        let response = sent.await.map_err(|error| self.transport(url, &error))?;
        let status = response.status();
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            let schemes = response.headers().get_all(PROXY_AUTHENTICATE).iter();
            let schemes = schemes.filter_map(|value| value.to_str().ok()?.split(' ').next());
            return Err(FetchError::Proxy {
                proxy: self.proxy.clone(),
                with_password: self.has_password,
                schemes: schemes.map(|scheme| plain(scheme).into_owned()).collect(),
            });
        }
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let to = response.headers().get(LOCATION);
            return Err(FetchError::Redirect {
                url: shown(url),
                to: into_plain(
                    String::from_utf8_lossy(to.map_or(b"nowhere", |to| to.as_bytes())).into_owned(),
                ),
            });
        }
        if !status.is_success() {
            return Err(FetchError::Status {
                url: shown(url),
                status,
                wait: wait(&response),
            });
        }
        self.body(url, response).await
    }

    async fn body(&self, url: &str, mut response: Response) -> Result<Vec<u8>, FetchError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.transport(url, &error))?
        {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(FetchError::TooLong { url: shown(url) });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn transport(&self, url: &str, error: &reqwest::Error) -> FetchError {
        let reason = reason(error);
        // That is all that the client tells of a proxy's answer to CONNECT.
        if reason.contains("proxy authorization required") {
            return FetchError::Proxy {
                proxy: self.proxy.clone(),
                with_password: self.has_password,
                schemes: Vec::new(),
            };
        }
        if reason.contains("tunnel error: unsuccessful") {
            return FetchError::Tunnel {
                url: shown(url),
                proxy: self.proxy.clone(),
            };
        }
        FetchError::Transport {
            url: shown(url),
            reason,
            was_noticed: !error.is_connect(),
        }
    }
}

/// Returns how long the service wants to be left alone: `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3), an hour
/// after 429 in any case.
fn wait(response: &Response) -> Option<Duration> {
    let after = response.headers().get(RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()).map(str::trim);
    let asked = after.and_then(|text| match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(SystemTime::now())
            .ok(),
    });
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS => Some(asked.unwrap_or_default().max(HOUR)),
        status if status.is_server_error() => asked,
        _ => None,
    }
}

fn reason(error: &reqwest::Error) -> String {
    let mut reason = String::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    if error.is_timeout() {
        reason.push_str("it took too long");
    }
    if error.is_body() || error.is_decode() {
        reason.push_str("the answer broke off, or is damaged");
    }
    while let Some(cause) = source {
        let (separator, cause_text) =
            (if reason.is_empty() { "" } else { ": " }, cause.to_string());
        // Each layer says the same again.
        if !reason.contains(&cause_text) && !cause_text.contains("response body error") {
            let _ = write!(reason, "{separator}{cause_text}");
        }
        source = cause.source();
    }
    reason
}

/// A URL without what is only for the service.
fn shown(url: &str) -> String {
    masked(url.split('?').next().unwrap_or(url))
}

/// Returns how an answer begins that is not what it should be.
fn beginning(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
    format!(", it begins with {text:?}")
}

fn certificates(file: &Path) -> Result<Vec<Certificate>> {
    let text =
        fs::read(file).with_context(|| format!("cannot read [list] ca_file {}", file.display()))?;
    let certificates = Certificate::from_pem_bundle(&text)
        .with_context(|| format!("[list] ca_file {} has no certificates", file.display()))?;
    anyhow::ensure!(
        !certificates.is_empty(),
        "[list] ca_file {} has no certificates",
        file.display()
    );
    Ok(certificates)
}

/// The proxy that the client takes from the environment.
fn proxy_of_environment() -> Option<String> {
    let names = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    names.iter().find_map(|name| std::env::var(name).ok())
}

fn query(config: &ListConfig) -> String {
    let mut query = String::new();
    if !config.service_areas.is_empty() {
        let _ = write!(query, "&ServiceAreas={}", config.service_areas.join(","));
    }
    if let Some(tenant) = &config.tenant {
        let _ = write!(query, "&TenantName={tenant}");
    }
    if !config.ipv6 {
        query.push_str("&NoIPv6=true");
    }
    query
}
