//! What arrives at a far end, counted there by nftables for each destination, protocol and port.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
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
