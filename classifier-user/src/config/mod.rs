//! The configuration file: its shape, its defaults and what is checked without touching the system.

mod assess;
mod egress;
mod list;
mod parse;
mod policy;
mod preference;
mod validate;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use breakout_common::condition::MAX_GROUPS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use assess::AssessConfig;
pub use egress::{EgressConfig, HealthConfig, Mode, PinningConfig};
pub use list::{Apply, ListConfig, ListSource, SERVICE, UnknownNetworks};
pub use parse::{ConfigError, load, parse, places_of};
pub use policy::{Class, CustomConfig, Failback, PolicyConfig};
pub use preference::{PASS, Preference};
pub use values::{MonthlyVolume, OneOrMany, Ports, Share, Span};

/// Default path of the configuration.
pub const DEFAULT_PATH: &str = "/etc/breakout/breakout.toml";

/// Everything an operator can set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// True if everything is decided and counted, but nothing steered.
    #[serde(default)]
    pub shadow: bool,
    /// Lists, and how they are updated.
    #[serde(default)]
    pub list: ListConfig,
    /// The interfaces where the clients are.
    #[serde(default)]
    pub lan: Vec<Lan>,
    /// The ways out, by name.
    #[serde(default)]
    pub egress: BTreeMap<String, EgressConfig>,
    /// Limits at which an egress is good enough.
    #[serde(default)]
    pub health: HealthConfig,
    /// Table of flows that stay on their path.
    #[serde(default)]
    pub pinning: PinningConfig,
    /// Rules: what is steered, for whom, and to which egress. Without any, Optimize goes to the egress `local`.
    #[serde(default)]
    pub policy: Vec<PolicyConfig>,
    /// Endpoint sets of the operator's own.
    #[serde(default)]
    pub custom: Vec<CustomConfig>,
    /// Numbers that Breakout uses in the kernel's routing.
    #[serde(default)]
    pub routing: Routing,
    /// The control socket.
    #[serde(default)]
    pub control: Control,
    /// Whom `breakout assess` asks.
    #[serde(default)]
    pub assess: AssessConfig,
    /// Additional address for metrics, besides the control socket.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// State directory.
    #[serde(default)]
    pub state: State,
}

/// `[[lan]]`: an interface where clients are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lan {
    /// An interface where clients are: an Ethernet, or a tunnel of IP packets.
    pub interface: String,
    /// Mode of XDP if an egress has mode `redirect`: `native`, or `generic` for tests.
    #[serde(default)]
    pub xdp: XdpAttach,
}

/// The number by which conditions tell a `[[lan]]` from others, by its place. Those that no rule can name share one.
pub fn lan_number(place: usize) -> u8 {
    u8::try_from(place.min(MAX_GROUPS as usize)).unwrap_or(u8::MAX)
}

/// Mode in which an XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum XdpAttach {
    /// In the driver, or not at all.
    #[default]
    Native,
    /// In the network stack, after the socket buffer is made: slower than `mode = "route"`, for tests.
    Generic,
}

/// `[routing]`: numbers that must not be anybody else's on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// The bits of the firewall mark that belong to Breakout; at least five bits next to each other.
    pub mark_mask: u32,
    /// Priority of the `ip rule`s.
    pub rule_priority: u32,
    /// The first routing table; each egress takes one, up to 16.
    pub table: u32,
}

/// `[control]`: the socket by which commands reach the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The path of the control socket.
    pub socket: PathBuf,
}

/// `[metrics]`: for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// A TCP address to serve `/metrics` on, as in `127.0.0.1:9760`. Only the control socket when absent.
    pub listen: Option<SocketAddr>,
}

/// `[state]`: what has to survive a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// The directory of what survives a restart; its name also names the directory of the pins.
    pub directory: PathBuf,
}

impl Default for Routing {
    fn default() -> Self {
        Routing {
            mark_mask: 0x1f00_0000,
            rule_priority: 900,
            table: 5001,
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Control {
            socket: "/run/breakout/control.sock".into(),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            directory: "/var/lib/breakout".into(),
        }
    }
}

impl Config {
    /// The name of the egress that the default policy steers to.
    pub fn default_egress(&self) -> &str {
        if self.egress.contains_key("local") {
            return "local";
        }
        self.egress.keys().next().map_or("local", String::as_str)
    }

    /// Returns what the rules prefer, each once; without rules the default egress.
    pub fn preferences(&self) -> Vec<Preference> {
        let rules = self.policy.iter().map(|rule| rule.action.clone());
        let mut preferences: Vec<Preference> = rules.filter(|action| !action.is_pass()).collect();
        if self.policy.is_empty() {
            preferences.push(Preference::One(self.default_egress().to_owned()));
        }
        preferences.sort_unstable();
        preferences.dedup();
        preferences
    }

    /// Returns whether any egress is in redirect mode.
    pub fn needs_xdp(&self) -> bool {
        self.egress
            .values()
            .any(|egress| egress.mode == Mode::Redirect)
    }

    /// Tells whether the programs translate at any egress.
    pub fn translates(&self) -> bool {
        self.egress.values().any(EgressConfig::is_translated)
    }

    /// The directory of the configuration file makes relative paths in it absolute.
    fn resolve_paths(&mut self, base: &Path) {
        self.list.resolve_paths(base);
        if let Some(file) = &mut self.health.ca_file {
            *file = base.join(&*file);
        }
        for file in self
            .custom
            .iter_mut()
            .filter_map(|custom| custom.file.as_mut())
        {
            *file = base.join(&*file);
        }
        self.control.socket = base.join(&self.control.socket);
        self.state.directory = base.join(&self.state.directory);
    }
}
