//! `[egress.NAME]`, `[health]` and `[pinning]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MonthlyVolume, OneOrMany, Share, Span};
use crate::health::Target;

/// Mode in which steered packets get to an egress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// TC marks them and the kernel routes them: netfilter, conntrack and NAT work as always.
    #[default]
    Route,
    /// The programs forward them, past netfilter.
    Redirect,
}

/// `[egress.NAME]`: a way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressConfig {
    /// The interface of a way out.
    pub interface: String,
    /// The IPv4 next hop. Learnt from the interface's routes when absent.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 next hop. Learnt from the interface's routes when absent.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// `route` or `redirect`, see [gateway.md](gateway.md).
    #[serde(default)]
    pub mode: Mode,
    /// True if XDP forwards the replies that come in by it too, with mode `redirect`. Those of flows that are translated are forwarded in
    /// any case.
    #[serde(default, rename = "return")]
    pub returns: bool,
    /// True if steered packets get the interface's address as their source: by an nftables table of our own, and with mode `redirect`, for
    /// IPv4, by the programs themselves.
    #[serde(default)]
    pub masquerade: bool,
    /// True if DNAT and REDIRECT rules, as of a transparent proxy, are kept from steered packets. When absent, as
    /// `masquerade` with mode `route`.
    #[serde(default)]
    pub skip_dnat: Option<bool>,
    /// Targets that are probed through it, as `turn:HOST:PORT`, `stun:HOST:PORT`, `icmp:HOST`, `tcp:HOST:PORT`, `tls:HOST:PORT`,
    /// `http://HOST/` or `http://HOST/ STATUS`. Chosen from the list when absent; nothing if empty.
    #[serde(default)]
    #[schemars(with = "Option<Vec<String>>")]
    pub probes: Option<OneOrMany<Target>>,
    /// True if traffic costs money there: probes get a `probe_budget`.
    #[serde(default)]
    pub metered: bool,
    /// Volume that probes may send and receive there, as in `"200 MiB/month"`, which a metered egress has when absent.
    #[serde(default)]
    pub probe_budget: Option<MonthlyVolume>,
    /// The provider's resolver, which `breakout assess` compares with that of the clients.
    #[serde(default)]
    pub resolver: Option<IpAddr>,
}

impl EgressConfig {
    /// Returns whether steered packets are kept from DNAT and REDIRECT rules.
    pub fn skips_dnat(&self) -> bool {
        self.skip_dnat.unwrap_or_else(|| self.is_masqueraded())
    }

    /// Returns how much probes may send and receive in a month.
    pub fn probe_budget(&self) -> Option<MonthlyVolume> {
        let default = self.metered.then_some(MonthlyVolume::OF_METERED);
        self.probe_budget.or(default)
    }

    /// Tells whether the kernel translates the sources of steered packets.
    pub fn is_masqueraded(&self) -> bool {
        self.masquerade && self.mode == Mode::Route
    }

    /// Tells whether the programs translate them.
    pub fn is_translated(&self) -> bool {
        self.masquerade && self.mode == Mode::Redirect
    }
}

/// `[health]`: when an egress is good enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Interval at which TURN, STUN and ICMP probes are sent, all targets of an egress and address family together.
    pub interval: Span,
    /// Interval at which each TCP, TLS and HTTP target is probed.
    pub slow_interval: Span,
    /// Time for which an egress must have been good before it is used again.
    pub hold_down: Span,
    /// Media leaves an egress that loses this share of its probes, and comes back below half of it.
    pub media_loss: Share,
    /// Media leaves an egress whose probes take so long, and comes back below half of it.
    pub media_latency: Span,
    /// Everything leaves an egress that loses this share, and comes back below half of it.
    pub loss: Share,
    /// Everything leaves an egress whose probes take so long, and comes back below half of it.
    pub latency: Span,
    /// A PEM file with further certificates to trust in `tls:` probes, for networks that intercept TLS knowingly.
    pub ca_file: Option<PathBuf>,
}

impl Default for HealthConfig {
    fn default() -> Self {
        HealthConfig {
            interval: Span(Duration::from_millis(250)),
            slow_interval: Span(Duration::from_secs(10)),
            hold_down: Span(Duration::from_secs(10)),
            media_loss: Share::percent(2),
            media_latency: Span(Duration::from_millis(300)),
            loss: Share::percent(40),
            latency: Span(Duration::from_millis(800)),
            ca_file: None,
        }
    }
}

/// `[pinning]`: flows stay where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PinningConfig {
    /// True if established flows stay on their way while it works.
    pub enabled: bool,
    /// For how many flows there is room for certain; up to twice as many are remembered where they find it.
    pub size: u32,
    /// For how long after its last packet a client's Teams media has a way that new media joins.
    pub media_hold: Span,
    /// For how long after its last packet a TCP flow is remembered.
    pub tcp_idle: Span,
    /// The same for UDP.
    pub udp_idle: Span,
}

impl Default for PinningConfig {
    fn default() -> Self {
        PinningConfig {
            enabled: true,
            size: 65_536,
            media_hold: Span(Duration::from_secs(30)),
            tcp_idle: Span::hours(2),
            udp_idle: Span(Duration::from_secs(180)),
        }
    }
}
