//! Errors of the web service, and what to do about them.

use std::time::Duration;

use reqwest::StatusCode;

/// The longest answer that is taken, unpacked. The real ones are below 100 KiB.
pub(super) const MAX_ANSWER: usize = 8 << 20;

/// Error of the web service.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The service was not reached, or broke off.
    #[error("cannot fetch {url}: {reason}")]
    Transport {
        /// URL that was asked for.
        url: String,
        /// Reason.
        reason: String,
        /// True if the service got the request.
        was_noticed: bool,
    },
    /// It answered with an error.
    #[error("{url} answered {status}{}{}", advice(*status), wait.map_or(String::new(), |wait| format!("; it asks to wait {} s", wait.as_secs())))]
    Status {
        /// URL that was asked for.
        url: String,
        /// The HTTP status.
        status: StatusCode,
        /// Time that it asked us to wait.
        wait: Option<Duration>,
    },
    /// It leads elsewhere.
    #[error(
        "{url} redirects to {to}. A log-in page of the network may be in the way; if it is right, set [list] source to it"
    )]
    Redirect {
        /// URL that was asked for.
        url: String,
        /// Target of the redirect.
        to: String,
    },
    /// A proxy wants to know who asks, or does not believe it.
    #[error("the proxy {proxy} answered 407: {}", log_in(*with_password, schemes))]
    Proxy {
        /// The proxy, without its password.
        proxy: String,
        /// True if a user name and a password were sent.
        with_password: bool,
        /// The ways to log in that it offers, if it said so.
        schemes: Vec<String>,
    },
    /// A proxy does not connect.
    #[error(
        "the proxy {proxy} refuses to connect to {url}: let it pass CONNECT to that host, or set [list] proxy to another one, or \
         [list] source to a mirror"
    )]
    Tunnel {
        /// URL that was asked for.
        url: String,
        /// The proxy, without its password.
        proxy: String,
    },
    /// The answer has no end.
    #[error("the answer of {url} is longer than {} MiB; no list is", MAX_ANSWER >> 20)]
    TooLong {
        /// URL that was asked for.
        url: String,
    },
    /// The answer is something else.
    #[error("{url} did not answer with {expected}: {reason}")]
    Answer {
        /// URL that was asked for.
        url: String,
        /// Expected content.
        expected: &'static str,
        /// Actual content.
        reason: String,
    },
}

impl FetchError {
    /// Returns how long the service wants to be left alone, if it said so.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            FetchError::Status { wait, .. } => *wait,
            _ => None,
        }
    }

    /// Returns whether the service got a request, so that it counts there.
    pub fn was_noticed(&self) -> bool {
        !matches!(
            self,
            FetchError::Transport {
                was_noticed: false,
                ..
            } | FetchError::Proxy { .. }
                | FetchError::Tunnel { .. }
        )
    }

    /// Returns whether a password was refused: asking on may lock its account.
    pub const fn is_refused_password(&self) -> bool {
        matches!(
            self,
            FetchError::Proxy {
                with_password: true,
                ..
            }
        )
    }

    /// Returns whether the same question may well be answered in a moment.
    pub(super) fn may_be_over_soon(&self) -> bool {
        let FetchError::Status {
            status, wait: None, ..
        } = self
        else {
            return false;
        };
        matches!(status.as_u16(), 500 | 502 | 503 | 504)
    }
}

fn advice(status: StatusCode) -> &'static str {
    match status.as_u16() {
        304 => {
            ", although it was not asked whether anything has changed: a cache in between is wrong"
        }
        401 | 403 => {
            ": it, or a proxy or firewall in between, does not let this gateway ask; have it let the host pass"
        }
        404 | 410 => ": is [list] source right? It ends before /version and /endpoints",
        429 => ": it was asked too often",
        500.. => ": a fault of its own, or of a proxy in between; it is asked again",
        _ => "",
    }
}

fn log_in(with_password: bool, schemes: &[String]) -> String {
    let offers_basic = schemes
        .iter()
        .any(|scheme| scheme.eq_ignore_ascii_case("basic"));
    if !schemes.is_empty() && !offers_basic {
        return format!(
            "it offers {} only, and Breakout can log in by Basic only. Let it pass this gateway without a log-in",
            schemes.join(", ")
        );
    }
    if with_password {
        "it refuses the user name and password of [list] proxy (or offers no Basic log-in). So that no account is locked, it is \
         asked again in a day, when [list] has changed, or by breakout list fetch"
            .to_owned()
    } else {
        "it wants a user name and a password: [list] proxy = \"http://USER:PASSWORD@HOST:PORT\", by Basic only".to_owned()
    }
}
