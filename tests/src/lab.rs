//! The branch office: client, gateway, WAN and internet.

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::flow::Flow;
use crate::netns::{Namespace, run};
use crate::server::Servers;

/// The namespaces of one lab, connected and addressed.
#[derive(Debug)]
pub struct Lab {
    /// A host in the office.
    pub client: Namespace,
    /// Where Breakout runs, with the interfaces `lan`, `wan` and `inet`.
    pub gateway: Namespace,
    /// What the ordinary path leads to.
    pub wan: Namespace,
    /// What the local internet link leads to.
    pub internet: Namespace,
}

/// The configuration that fits the lab, without the sections that differ from run to run.
pub const CONFIG: &str = r#"
[list]
instance = "worldwide"
source = "builtin"

[[lan]]
interface = "lan"

[egress.local]
interface = "inet"
gateway = "10.3.0.2"
gateway6 = "fd00:3::2"
mode = "MODE"
probes = []
"#;

/// The configuration for a mode, with a list from the file `list.json` beside it.
pub fn config_with_list(mode: &str) -> String {
    let config = CONFIG.replace("MODE", mode);
    config.replace("source = \"builtin\"", "file = \"list.json\"")
}

/// With this, packets go by the ruleset alone, also those of flows that have begun.
pub const UNPINNED: &str = "[pinning]\nenabled = false\n";

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// Builds a lab. Its namespaces have names of their own, so several labs can stand side by side.
    ///
    /// # Errors
    ///
    /// When the system refuses something.
    pub fn build() -> Result<Self> {
        Self::joined(|lab| {
            connect(&lab.client, "eth0", &lab.gateway, "lan")?;
            connect(&lab.gateway, "inet", &lab.internet, "eth0")
        })
    }

    /// Builds a lab whose LAN and local link are network cards of this namespace: the client's, the gateway's two, and the
    /// internet's, of which the first two and the last two are joined. They come back when the lab goes away.
    ///
    /// # Errors
    ///
    /// When the system refuses something.
    pub fn on_cards([client, lan, inet, internet]: [&str; 4]) -> Result<Self> {
        Self::joined(|lab| {
            for (card, namespace, name) in [
                (client, &lab.client, "eth0"),
                (lan, &lab.gateway, "lan"),
                (inet, &lab.gateway, "inet"),
                (internet, &lab.internet, "eth0"),
            ] {
                let mut ip = Command::new("ip");
                ip.args(["link", "set", card, "netns", namespace.name(), "name", name]);
                run(&mut ip)?;
                namespace.ip(&format!("link set {name} up"))?;
            }
            Ok(())
        })
    }

    /// Builds a lab whose LAN and local link a function makes.
    fn joined(join: impl FnOnce(&Lab) -> Result<()>) -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("bo{}-{number}", std::process::id());
        let lab = Lab {
            client: Namespace::create(format!("{prefix}-client"))?,
            gateway: Namespace::create(format!("{prefix}-gateway"))?,
            wan: Namespace::create(format!("{prefix}-wan"))?,
            internet: Namespace::create(format!("{prefix}-internet"))?,
        };
        join(&lab)?;
        connect(&lab.gateway, "wan", &lab.wan, "eth0")?;
        lab.address()?;
        lab.tune()?;
        Ok(lab)
    }

    fn address(&self) -> Result<()> {
        self.client.ip_lines(
            "addr add 10.1.0.2/24 dev eth0
             addr add fd00:1::2/64 dev eth0 nodad
             route add default via 10.1.0.1
             route add default via fd00:1::1",
        )?;
        self.gateway.ip_lines(
            "addr add 10.1.0.1/24 dev lan
             addr add fd00:1::1/64 dev lan nodad
             addr add 10.2.0.1/24 dev wan
             addr add fd00:2::1/64 dev wan nodad
             addr add 10.3.0.1/24 dev inet
             addr add fd00:3::1/64 dev inet nodad
             route add default via 10.2.0.2
             route add default via fd00:2::2",
        )?;
        for (far_end, number) in [(&self.wan, 2), (&self.internet, 3)] {
            far_end.ip_lines(&format!(
                "addr add 10.{number}.0.2/24 dev eth0
                 addr add fd00:{number}::2/64 dev eth0 nodad
                 route add 10.1.0.0/24 via 10.{number}.0.1
                 route add fd00:1::/64 via fd00:{number}::1"
            ))?;
        }
        Ok(())
    }

    /// Settings of the gateway, and of the links at its sides. An interface that is made anew needs them again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one.
    pub fn tune(&self) -> Result<()> {
        self.gateway.sysctl("net.ipv4.ip_forward", 1)?;
        self.gateway.sysctl("net.ipv6.conf.all.forwarding", 1)?;
        // Replies come in by the local link although the main table's route to their source is the WAN.
        self.gateway.sysctl("net.ipv4.conf.all.rp_filter", 0)?;
        self.gateway.sysctl("net.ipv4.conf.inet.rp_filter", 0)?;
        // A veth takes frames that XDP redirects only where its peer has an XDP program or GRO.
        self.internet.exec("ethtool -K eth0 gro on")?;
        // Packets as on a wire: full checksums, no segments beyond the MTU. XDP would forward what is unfinished as it is.
        self.client.exec("ethtool -K eth0 tx off tso off gso off")?;
        Ok(())
    }

    /// Gives the addresses to both far ends.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn own(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<()> {
        let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let lines: Vec<String> = (addresses.iter())
            .map(|address| {
                let length = if address.is_ipv4() { 32 } else { 128 };
                format!("addr add {address}/{length} dev lo nodad")
            })
            .collect();
        for far_end in [&self.wan, &self.internet] {
            far_end.ip_lines(&lines.join("\n"))?;
        }
        Ok(())
    }

    /// Gives the flows' destinations to both far ends and starts a server for each of them there.
    ///
    /// # Errors
    ///
    /// When `ip` fails, or a server cannot be started.
    pub fn serve(&self, flows: &[Flow]) -> Result<[Servers; 2]> {
        self.own(flows.iter().map(|flow| flow.destination.ip()))?;
        Ok([
            Servers::start(&self.internet, "internet", flows)?,
            Servers::start(&self.wan, "wan", flows)?,
        ])
    }

    /// All namespaces, with what they are.
    pub fn namespaces(&self) -> [(&'static str, &Namespace); 4] {
        [
            ("client", &self.client),
            ("gateway", &self.gateway),
            ("wan", &self.wan),
            ("internet", &self.internet),
        ]
    }

    /// Leaves the namespaces there when the lab goes away.
    pub fn keep(&mut self) {
        for namespace in [
            &mut self.client,
            &mut self.gateway,
            &mut self.wan,
            &mut self.internet,
        ] {
            namespace.keep();
        }
    }
}

/// Joins two namespaces by a pair of virtual Ethernets.
///
/// # Errors
///
/// When `ip` fails.
pub fn connect(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) -> Result<()> {
    a.ip_lines(&format!(
        "link add {a_name} type veth peer name {b_name} netns {}
         link set {a_name} up",
        b.name()
    ))?;
    b.ip(&format!("link set {b_name} up"))?;
    Ok(())
}
