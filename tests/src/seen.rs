//! What arrives at a far end, counted there by nftables for each destination, protocol and port.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::flow::{Flow, Transport};
use crate::netns::{Namespace, run};

/// Counts from now on what comes in at a far end.
///
/// # Errors
///
/// When nft fails.
pub fn watch(far_end: &Namespace, flows: &[Flow]) -> Result<()> {
    let mut rules = String::new();
    for flow in flows {
        let (address, port) = (flow.destination.ip(), flow.destination.port());
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        let protocol = match flow.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        rules.push_str(&format!(
            "{family} daddr {address} {protocol} dport {port} counter comment \"{}\"\n",
            key(flow)
        ));
    }
    let table = format!(
        "table inet seen\ndelete table inet seen\ntable inet seen {{\n\
         chain flows {{\n{rules}}}\n\
         chain seen {{ type filter hook prerouting priority raw; iifname eth0 jump flows; }}\n}}\n"
    );
    run(far_end.command("nft").arg(table)).map(drop)
}

/// Fails if a receiver has seen a wrong checksum or header.
///
/// # Errors
///
/// When it has, or its counters cannot be read.
pub fn no_bad_headers(receiver: &Namespace) -> Result<()> {
    let counters = "TcpInCsumErrors UdpInCsumErrors Ip6InHdrErrors IpInHdrErrors";
    let shown = receiver.exec(&format!("nstat -asz {counters}"))?;
    for line in shown.lines().filter(|line| !line.starts_with('#')) {
        let count = line.split_whitespace().nth(1);
        ensure!(count == Some("0"), "the receiver saw bad headers: {line}");
    }
    Ok(())
}

/// Packets that have come in since [`watch`], by flow.
///
/// # Errors
///
/// When nft fails.
pub fn packets(far_end: &Namespace) -> Result<HashMap<String, u64>> {
    let text = far_end.exec("nft -j list chain inet seen flows")?;
    let listing: Value = serde_json::from_str(&text).context("nft prints JSON")?;
    let mut counts = HashMap::new();
    for item in listing["nftables"].as_array().into_iter().flatten() {
        let rule = &item["rule"];
        let counter = rule["expr"].as_array().into_iter().flatten();
        let packets = counter
            .filter_map(|e| e["counter"]["packets"].as_u64())
            .next();
        if let (Some(flow), Some(packets)) = (rule["comment"].as_str(), packets) {
            counts.insert(flow.to_owned(), packets);
        }
    }
    Ok(counts)
}

/// The name under which a flow is counted.
pub fn key(flow: &Flow) -> String {
    let destination: SocketAddr = flow.destination;
    match flow.transport {
        Transport::Tcp => format!("tcp {destination}"),
        Transport::Udp => format!("udp {destination}"),
    }
}

/// A counter of packets that a namespace forwards, in an nftables table of its own. The table goes with the handle.
pub struct Counter<'a> {
    namespace: &'a Namespace,
    name: &'static str,
}

impl<'a> Counter<'a> {
    /// Counts from now on what an expression of nftables matches, as in `oifname "wan" tcp dport 443`.
    ///
    /// # Errors
    ///
    /// When nft fails.
    pub fn start(namespace: &'a Namespace, name: &'static str, expression: &str) -> Result<Self> {
        let table = format!(
            "table inet count-{name} {{\n\
             counter matched {{ }}\n\
             chain forward {{ type filter hook forward priority -1000; {expression} counter name matched; }}\n\
             chain output {{ type filter hook output priority -1000; {expression} counter name matched; }}\n}}\n"
        );
        run(namespace.command("nft").arg(table))?;
        Ok(Counter { namespace, name })
    }

    /// How many there were.
    ///
    /// # Errors
    ///
    /// When nft fails.
    pub fn packets(&self) -> Result<u64> {
        let name = self.name;
        let command = format!("nft -j list counter inet count-{name} matched");
        let listing: Value = serde_json::from_str(&self.namespace.exec(&command)?)?;
        let entries = listing["nftables"].as_array().into_iter().flatten();
        let mut counts = entries.filter_map(|entry| entry["counter"]["packets"].as_u64());
        counts.next().context("there is no counter")
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        let _ = self
            .namespace
            .exec(&format!("nft delete table inet count-{}", self.name));
    }
}
