//! Results of an assessment: which figure of which path, beside the limit that Microsoft publishes for it.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plain::plain;
use crate::timestamp::Timestamp;

/// An assessment of all paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Assessment {
    /// The time at which it began.
    pub at: Timestamp,
    /// The results, path by path.
    pub results: Vec<Outcome>,
    /// Microsoft's points for each path.
    pub scores: Vec<Score>,
}

/// A path of packets: an egress, or the ordinary path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PathName {
    /// The egress; none for the ordinary path.
    pub egress: Option<String>,
    /// `v4` or `v6`.
    pub family: String,
}

impl PathName {
    /// Names the path by an egress, or the ordinary one.
    pub(super) fn new(egress: Option<&str>, v6: bool) -> Self {
        PathName {
            egress: egress.map(str::to_owned),
            family: if v6 { "v6" } else { "v4" }.to_owned(),
        }
    }
}

impl fmt::Display for PathName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == "v6" { "IPv6" } else { "IPv4" };
        match &self.egress {
            Some(egress) => write!(f, "{egress}, {family}"),
            None => write!(f, "ordinary path, {family}"),
        }
    }
}

/// The result of one test on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// The path.
    #[serde(flatten)]
    pub path: PathName,
    /// The test.
    pub test: Test,
    /// The host that was asked, if one was.
    pub target: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// The figure, in the unit of the test.
    pub measured: Option<f64>,
    /// Finding in words.
    pub found: String,
    /// Advice, unless it passes.
    pub advice: Option<String>,
}

/// A verdict on a figure.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Not tested: see what was found.
    Skipped,
    /// Within Microsoft's limit for a customer's edge.
    Pass,
    /// Beyond it, and within the limit for clients.
    Warning,
    /// Beyond the limit for clients, or broken.
    Fail,
}

/// Microsoft's points for a service on a path, from 0 to 100; 80 is healthy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Score {
    /// The path.
    #[serde(flatten)]
    pub path: PathName,
    /// `Exchange` or `SharePoint`.
    pub service: String,
    /// The points.
    pub points: f64,
}

/// Tests of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// The path exists.
    Path,
    /// Time of a DNS answer, in milliseconds.
    DnsTime,
    /// Additional latency of the front door that the clients' resolver names, in milliseconds.
    DnsLocal,
    /// Median time of a TCP connection, in milliseconds.
    TcpLatency,
    /// TLS with a certificate of the host.
    Tls,
    /// HTTP without a proxy in between.
    Http,
    /// The segment size of TCP, in bytes.
    SegmentSize,
    /// Window scaling and selective acknowledgements of TCP.
    TcpOptions,
    /// An answer by a relay of Teams.
    Relay,
    /// Mean latency of packets like those of a call, in milliseconds.
    MediaLatency,
    /// Loss of packets like those of a call, in percent.
    MediaLoss,
    /// Loss in the worst 200 ms, in percent.
    MediaBurst,
    /// Jitter, in milliseconds.
    MediaJitter,
    /// Reordering, in percent.
    MediaReordering,
    /// Download rate, in megabytes per second.
    Download,
    /// Additional latency under load (bufferbloat), in milliseconds.
    LoadedLatency,
    /// A connection that is idle for a while goes on.
    IdleConnection,
    /// A way without a detour by the WAN.
    Hairpin,
    /// The public address.
    PublicAddress,
}

/// Limits of a figure.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Its unit.
    pub unit: &'static str,
    /// The limit of a customer's edge; beyond it the verdict is a warning.
    pub warning: f64,
    /// The limit for clients; beyond it the test has failed.
    pub failure: f64,
    /// True if less is worse.
    pub is_floor: bool,
}

impl Test {
    /// Returns the name for people.
    pub fn title(self) -> &'static str {
        match self {
            Test::Path => "path",
            Test::DnsTime => "DNS time",
            Test::DnsLocal => "DNS local",
            Test::TcpLatency => "TCP latency",
            Test::Tls => "TLS",
            Test::Http => "HTTP",
            Test::SegmentSize => "TCP segment",
            Test::TcpOptions => "TCP options",
            Test::Relay => "Teams relay",
            Test::MediaLatency => "call latency",
            Test::MediaLoss => "call loss",
            Test::MediaBurst => "call loss, 200 ms",
            Test::MediaJitter => "call jitter",
            Test::MediaReordering => "call reordering",
            Test::Download => "download",
            Test::LoadedLatency => "bufferbloat",
            Test::IdleConnection => "idle TCP",
            Test::Hairpin => "hairpin",
            Test::PublicAddress => "public address",
        }
    }

    /// Returns the limits of a test that measures a figure.
    ///
    /// Microsoft, "Prepare your organization's network for Teams" (edge and client figures), "Microsoft 365 informed network routing and
    /// performance score" (80 and 60 points of Exchange and SharePoint), "Microsoft 365 network connectivity test tool" (bufferbloat) and
    /// "Performance troubleshooting plan" (DNS).
    pub fn limits(self) -> Option<Limits> {
        let ceiling = |unit, warning, failure| {
            Some(Limits {
                unit,
                warning,
                failure,
                is_floor: false,
            })
        };
        match self {
            Test::DnsTime => ceiling("ms", 100.0, f64::INFINITY),
            Test::DnsLocal => ceiling("ms", 10.0, 10.0),
            Test::TcpLatency => ceiling("ms", 25.0, 100.0),
            Test::MediaLatency => ceiling("ms", 60.0, 100.0),
            Test::MediaLoss => ceiling("%", 0.1, 1.0),
            Test::MediaBurst => ceiling("%", 1.0, 10.0),
            Test::MediaJitter => ceiling("ms", 15.0, 30.0),
            Test::MediaReordering => ceiling("%", 0.01, 0.05),
            Test::LoadedLatency => ceiling("ms", 100.0, 100.0),
            Test::Download => Some(Limits {
                unit: "MB/s",
                warning: 14.0,
                failure: 1.0,
                is_floor: true,
            }),
            _ => None,
        }
    }

    /// Returns what to do where the verdict is not `pass`.
    fn advice(self) -> &'static str {
        match self {
            Test::Path => "see: breakout status",
            Test::DnsTime => "use a resolver at the site, or one near it",
            Test::DnsLocal => {
                "have clients ask a resolver that leaves by this egress: the front door they are given is far from it"
            }
            Test::TcpLatency => {
                "ask the provider for a shorter path to Microsoft's network; see `breakout assess` of the other egresses"
            }
            Test::Tls => {
                "exempt Microsoft 365 from TLS inspection, and see whether the link has a captive portal"
            }
            Test::Http => "keep Microsoft 365 away from proxies on this path",
            Test::SegmentSize => {
                "find the device that lowers the segment size: a tunnel, PPPoE or an MSS rule"
            }
            Test::TcpOptions => {
                "find the device that removes TCP options: a firewall's normalisation, or a WAN optimiser"
            }
            Test::Relay => "let UDP 3478 to 3481 out to Teams' relays",
            Test::MediaLatency => "see the TCP latency; media needs a short path most of all",
            Test::MediaLoss | Test::MediaBurst => {
                "see whether the link is full or its line is bad; have media prefer another egress"
            }
            Test::MediaJitter => "shape the link, and give calls priority",
            Test::MediaReordering => "do not balance packets of one flow over several links",
            Test::Download => "see whether the link is full; compare with what the provider sells",
            Test::LoadedLatency => "shape the link a little below its rate, with fq_codel or cake",
            Test::IdleConnection => {
                "raise the timeout of idle TCP connections in firewalls and NAT on this path above five minutes"
            }
            Test::Hairpin => {
                "this egress leads back by the WAN: see its provider's or tunnel's routes"
            }
            Test::PublicAddress => {
                "this egress leaves by the same public address as the WAN: it is no local breakout"
            }
        }
    }
}

impl Limits {
    /// Judges a figure.
    pub fn verdict(&self, measured: f64) -> Verdict {
        let is_beyond = |limit: f64| {
            if self.is_floor {
                measured < limit
            } else {
                measured > limit
            }
        };
        if is_beyond(self.failure) {
            Verdict::Fail
        } else if is_beyond(self.warning) {
            Verdict::Warning
        } else {
            Verdict::Pass
        }
    }
}

impl Outcome {
    /// Judges a figure by the limits of its test.
    pub(super) fn measured(path: &PathName, test: Test, target: &str, measured: f64) -> Self {
        let limits = test.limits();
        let unit = limits.map_or("", |limits| limits.unit);
        let verdict = limits.map_or(Verdict::Pass, |limits| limits.verdict(measured));
        Outcome {
            measured: Some(measured),
            ..Outcome::told(
                path,
                test,
                Some(target),
                verdict,
                format!("{measured:.1} {unit}"),
            )
        }
    }

    /// Tells a verdict that has no figure.
    pub(super) fn told(
        path: &PathName,
        test: Test,
        target: Option<&str>,
        verdict: Verdict,
        found: impl Into<String>,
    ) -> Self {
        Outcome {
            path: path.clone(),
            test,
            target: target.map(str::to_owned),
            verdict,
            measured: None,
            // Servers choose parts of it.
            found: plain(&found.into()).into_owned(),
            advice: (verdict >= Verdict::Warning).then(|| test.advice().to_owned()),
        }
    }
}

/// Returns a time in the unit of figures.
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_judged_by_microsofts_limits() {
        for (test, pass, warning, fail) in [
            (Test::TcpLatency, 25.0, 25.1, 100.1),
            (Test::MediaLatency, 60.0, 60.1, 100.1),
            (Test::MediaLoss, 0.1, 0.2, 1.1),
            (Test::MediaBurst, 1.0, 10.0, 10.1),
            (Test::MediaJitter, 15.0, 15.1, 30.1),
            (Test::MediaReordering, 0.01, 0.02, 0.06),
            (Test::Download, 14.0, 13.9, 0.9),
        ] {
            let limits = test.limits().unwrap();
            let verdicts = [pass, warning, fail].map(|measured| limits.verdict(measured));
            let expected = [Verdict::Pass, Verdict::Warning, Verdict::Fail];
            assert_eq!(verdicts, expected, "{test:?}");
        }
        let bloat = Test::LoadedLatency.limits().unwrap();
        assert_eq!(bloat.verdict(100.0), Verdict::Pass);
        assert_eq!(bloat.verdict(100.1), Verdict::Fail);
    }

    #[test]
    fn only_what_is_not_good_has_advice() {
        let path = PathName::new(Some("local"), false);
        let good = Outcome::measured(&path, Test::MediaLoss, "relay", 0.0);
        assert_eq!((good.advice, good.verdict), (None, Verdict::Pass));
        let bad = Outcome::measured(&path, Test::MediaLoss, "relay", 2.0);
        assert!(bad.advice.is_some() && bad.verdict == Verdict::Fail);
    }
}
