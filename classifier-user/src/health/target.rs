//! Targets of probes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kind of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A STUN binding request over UDP (RFC 8489).
    Stun,
    /// A TURN allocate request over UDP (RFC 8656): what Teams' clients send to its relays. That it is refused is an answer.
    Turn,
    /// An ICMP echo request (RFC 792, RFC 4443).
    Icmp,
    /// A TCP connection.
    Tcp,
    /// A TCP connection with a TLS handshake. The certificate must be that of the host, if it is given by name.
    Tls,
    /// A request over HTTP, which the expected status answers, or any.
    Http,
}

impl Kind {
    const ALL: [(Kind, &'static str); 6] = [
        (Kind::Stun, "stun"),
        (Kind::Turn, "turn"),
        (Kind::Icmp, "icmp"),
        (Kind::Tcp, "tcp"),
        (Kind::Tls, "tls"),
        (Kind::Http, "http"),
    ];

    /// Returns whether it is one small packet, which is sent often and tells how much the link loses.
    pub fn is_quick(self) -> bool {
        matches!(self, Kind::Stun | Kind::Turn | Kind::Icmp)
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Kind::Stun | Kind::Turn => Some(3478),
            Kind::Icmp => Some(0),
            Kind::Tcp => None,
            Kind::Tls => Some(443),
            Kind::Http => Some(80),
        }
    }
}

/// Something to probe.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Target {
    /// Kind of the probe.
    pub kind: Kind,
    /// Its name or address.
    pub host: String,
    /// Its port; 0 for ICMP.
    pub port: u16,
    /// The path of an HTTP request.
    pub path: String,
    /// The status that answers an HTTP request; any does if there is none.
    pub expects: Option<u16>,
}

impl Target {
    /// A target without a path.
    pub fn new(kind: Kind, host: impl Into<String>, port: u16) -> Self {
        let (host, path) = (host.into(), String::new());
        Target {
            kind,
            host,
            port,
            path,
            expects: None,
        }
    }

    /// Tells whether its answers show that nobody stands in its place.
    pub fn is_verifiable(&self) -> bool {
        match self.kind {
            Kind::Tls => self.address().is_none(),
            Kind::Http => self.expects.is_some(),
            Kind::Stun | Kind::Turn | Kind::Icmp | Kind::Tcp => false,
        }
    }

    /// The address, if it is given as one.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no probe; there are: turn:HOST:PORT, stun:HOST:PORT, icmp:HOST, tcp:HOST:PORT, tls:HOST:PORT, http://HOST/, http://HOST/ STATUS"
            )
        };
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (kind, _) = *(Kind::ALL.iter())
            .find(|(_, name)| *name == kind)
            .ok_or_else(wrong)?;
        let (rest, expects) = match (kind, rest.split_once(' ')) {
            (Kind::Http, Some((rest, status))) => {
                let status = status.parse().ok();
                let status = status.filter(|status| (100..=599).contains(status));
                (rest, Some(status.ok_or_else(wrong)?))
            }
            _ => (rest, None),
        };
        let (rest, path) = match (kind, rest.strip_prefix("//")) {
            (Kind::Http, Some(rest)) => match rest.split_once('/') {
                Some((host, path)) => (host, format!("/{path}")),
                None => (rest, "/".to_owned()),
            },
            (Kind::Http, None) | (_, Some(_)) => return Err(wrong()),
            (_, None) => (rest, String::new()),
        };
        let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            (host, rest.strip_prefix(':'))
        } else if rest.parse::<IpAddr>().is_ok() {
            (rest, None)
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        let port = match port {
            Some(port) if kind != Kind::Icmp => port.parse().ok().filter(|port| *port != 0),
            Some(_) => None,
            None => kind.default_port(),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || !host.chars().all(is_name) || path.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Target {
            kind,
            host: host.to_owned(),
            port: port.ok_or_else(wrong)?,
            path,
            expects,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Kind::ALL.iter().find(|(kind, _)| *kind == self.kind);
        let name = name.map_or("", |(_, name)| name);
        let slashes = if self.kind == Kind::Http { "//" } else { "" };
        write!(f, "{name}:{slashes}")?;
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if self.kind != Kind::Icmp {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)?;
        match self.expects {
            Some(status) => write!(f, " {status}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_for_targets() {
        for (text, again) in [
            ("stun:13.107.64.2", "stun:13.107.64.2:3478"),
            ("stun:relay.example:3479", "stun:relay.example:3479"),
            ("turn:relay.example", "turn:relay.example:3478"),
            ("icmp:2001:db8::1", "icmp:[2001:db8::1]"),
            ("tls:[2001:db8::1]:8443", "tls:[2001:db8::1]:8443"),
            ("tcp:front.example:443", "tcp:front.example:443"),
            (
                "http://front.example/check",
                "http://front.example:80/check",
            ),
            ("http://front.example:8080", "http://front.example:8080/"),
            (
                "http://front.example/a 204",
                "http://front.example:80/a 204",
            ),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), again, "{text}");
            assert_eq!(again.parse::<Target>().unwrap(), target);
        }
        for wrong in [
            "",
            "front.example",
            "tcp:front.example",
            "udp:a:1",
            "icmp:a:1",
            "stun:a:0",
            "stun:a:70000",
            "http:front",
            "tcp://a:1",
            "stun:a b:1",
            "tls:[::1",
            "http://a/b c",
            "http://a/b 99",
            "http://a/b 204 ",
            "tls:a 204",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
