//! The branch office of the tests of egresses: masquerading, and an internet that answers only to the gateway's address.

use std::net::SocketAddr;

use anyhow::Result;
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::Lab;
use breakout_tests::live::Connections;
use breakout_tests::server::Servers;

/// Mail, and a Teams call.
pub(crate) const MAIL: &str = "52.98.1.1:443";
pub(crate) const MEDIA: &str = "52.113.0.1:3478";
/// The same by IPv6.
pub(crate) const MAIL6: &str = "[2603:1006::1]:443";
pub(crate) const MEDIA6: &str = "[2603:1063::1]:3478";

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("tests name valid addresses")
}

/// A lab with masquerading and servers for mail and media at both ends. The internet has no route to the clients: it
/// answers only to what has the gateway's address.
pub(crate) struct Office {
    pub(crate) lab: Lab,
    pub(crate) site: Site,
    _servers: [Servers; 2],
}

const EGRESS: &str = "\n[egress.local]\ninterface = \"inet\"\ngateway = \"10.3.0.2\"\ngateway6 = \"fd00:3::2\"\n\
                      masquerade = true\n";

pub(crate) fn config(more: &str) -> String {
    format!("[list]\nfile = \"list.json\"\n[[lan]]\ninterface = \"lan\"\n{EGRESS}{more}")
}

/// A list with mail and media, and other sets to change at will.
pub(crate) fn list(others: &[String]) -> String {
    let others: Vec<String> = (others.iter())
        .map(|prefix| format!("\"{prefix}\""))
        .collect();
    let others = if others.is_empty() {
        String::new()
    } else {
        format!(
            r#",{{"id":31,"serviceArea":"SharePoint","ips":[{}],"tcpPorts":"443","category":"Optimize"}}"#,
            others.join(",")
        )
    };
    format!(
        r#"[{{"id":1,"serviceArea":"Exchange","ips":["52.98.0.0/16","2603:1006::/40"],"tcpPorts":"443","category":"Optimize"}},
            {{"id":11,"serviceArea":"Skype","ips":["52.112.0.0/14","2603:1063::/38"],"udpPorts":"3478-3481","category":"Optimize"}}{others}]"#
    )
}

impl Office {
    pub(crate) fn open(more: &str) -> Result<Self> {
        let lab = Lab::build()?;
        let flows = [
            Flow::new(Transport::Tcp, "52.98.1.1", 443),
            Flow::new(Transport::Tcp, "203.0.113.1", 443),
            Flow::new(Transport::Udp, "52.113.0.1", 3478),
            Flow::new(Transport::Tcp, "2603:1006::1", 443),
            Flow::new(Transport::Udp, "2603:1063::1", 3478),
        ];
        let servers = lab.serve(&flows)?;
        lab.internet.ip("route del 10.1.0.0/24")?;
        lab.internet.ip("route del fd00:1::/64")?;
        let site = Site::new(&config(more))?;
        std::fs::write(site.path().join("list.json"), list(&[]))?;
        Ok(Office {
            lab,
            site,
            _servers: servers,
        })
    }

    pub(crate) fn connections(&self, count: usize) -> Result<Connections> {
        Connections::open(&self.lab.client, &[address(MAIL)], count)
    }

    pub(crate) fn is_up(&self, up: bool) -> impl FnMut(&Daemon<'_>) -> bool + '_ {
        move |_| {
            let status = self.site.json(&self.lab.gateway, &["status"]);
            status.unwrap_or_default()["egress"]["local"]["v4"]["up"] == up
        }
    }

    /// The same for one address family, with the state's name.
    pub(crate) fn is_in_state(
        &self,
        family: &'static str,
        state: &'static str,
    ) -> impl FnMut(&Daemon<'_>) -> bool + '_ {
        move |_| {
            let status = self.site.json(&self.lab.gateway, &["status"]);
            let status = status.unwrap_or_default();
            status["egress"]["local"][family]["standing"]["state"] == state
        }
    }

    /// A new connection's way by IPv6.
    pub(crate) fn new_way6(&self) -> Result<String> {
        Flow::new(Transport::Tcp, "2603:1006::1", 443).talk(&self.lab.client)
    }

    /// A new connection's way.
    pub(crate) fn new_way(&self) -> Result<String> {
        Flow::new(Transport::Tcp, "52.98.1.1", 443).talk(&self.lab.client)
    }
}

/// Those at the internet's end, those at the WAN's, and those that have ended.
pub(crate) fn ways(connections: &Connections) -> [usize; 3] {
    let now = connections.now();
    let count = |identity: &str| {
        let alive = now.iter().filter(|one| one.error.is_none());
        alive.filter(|one| one.identity == identity).count()
    };
    let ended = now.iter().filter(|one| one.error.is_some()).count();
    [count("internet"), count("wan"), ended]
}
