//! Formats that know destinations only.

use std::collections::BTreeMap;
use std::fmt::Write;

use ipnet::IpNet;

use super::{Format, Line, Source, prefixes};
use crate::config::EgressConfig;

/// Each steered prefix once, with the egress of the first rule that has it.
fn steered<'a>(lines: &[Line<'a>]) -> BTreeMap<IpNet, &'a EgressConfig> {
    let mut routes = BTreeMap::new();
    for line in lines.iter().filter(|line| !line.choice.shadow) {
        for prefix in &line.rule.prefixes {
            if let Some((_, egress)) = line.egress {
                routes.entry(*prefix).or_insert(egress);
            }
        }
    }
    routes
}

/// The next hop of an egress for a prefix's family, if it is configured.
fn gateway(egress: &EgressConfig, prefix: &IpNet) -> Option<String> {
    match prefix {
        IpNet::V4(_) => egress.gateway.map(|gateway| gateway.to_string()),
        IpNet::V6(_) => egress.gateway6.map(|gateway| gateway.to_string()),
    }
}

pub(super) fn iproute2(source: &Source<'_>, lines: &[Line<'_>]) -> String {
    let mut text = source.header("#", lines, Format::Iproute2);
    for (prefix, egress) in steered(lines) {
        let via = gateway(egress, &prefix).map(|gateway| format!(" via {gateway}"));
        let _ = writeln!(
            text,
            "route replace {prefix}{} dev {}",
            via.unwrap_or_default(),
            egress.interface
        );
    }
    text
}

pub(super) fn bird(source: &Source<'_>, lines: &[Line<'_>]) -> String {
    let mut text = source.header("#", lines, Format::Bird);
    let routes = steered(lines);
    for (name, channel, is_v6) in [("breakout4", "ipv4", false), ("breakout6", "ipv6", true)] {
        let _ = writeln!(text, "protocol static {name} {{\n    {channel};");
        for (prefix, egress) in routes
            .iter()
            .filter(|(prefix, _)| prefix.addr().is_ipv6() == is_v6)
        {
            let via =
                gateway(egress, prefix).unwrap_or_else(|| format!("\"{}\"", egress.interface));
            let _ = writeln!(text, "    route {prefix} via {via};");
        }
        text.push_str("}\n");
    }
    text
}

pub(super) fn frr(source: &Source<'_>, lines: &[Line<'_>]) -> String {
    let mut text = source.header("!", lines, Format::Frr);
    for (prefix, egress) in steered(lines) {
        let command = if prefix.addr().is_ipv6() {
            "ipv6"
        } else {
            "ip"
        };
        let via = gateway(egress, &prefix).map(|gateway| format!("{gateway} "));
        let _ = writeln!(
            text,
            "{command} route {prefix} {}{}",
            via.unwrap_or_default(),
            egress.interface
        );
    }
    text
}

pub(super) fn edl(source: &Source<'_>, lines: &[Line<'_>]) -> String {
    let mut text = source.header("#", lines, Format::Edl);
    for prefix in prefixes(lines) {
        let _ = writeln!(text, "{prefix}");
    }
    text
}

pub(super) fn wireguard(source: &Source<'_>, lines: &[Line<'_>]) -> String {
    let mut text = source.header("#", lines, Format::Wireguard);
    text.push_str("# For the [Peer] that takes everything but what is steered.\n");
    let holes: Vec<IpNet> = prefixes(lines).into_iter().collect();
    let mut left = Vec::new();
    for everything in ["0.0.0.0/0", "::/0"] {
        if let Ok(everything) = everything.parse() {
            complement(everything, &holes, &mut left);
        }
    }
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "AllowedIPs = {}", left.join(", "));
    text
}

/// The largest prefixes within `net` that hold nothing of the holes.
fn complement(net: IpNet, holes: &[IpNet], left: &mut Vec<IpNet>) {
    if holes.iter().any(|hole| hole.contains(&net)) {
        return;
    }
    let inside: Vec<IpNet> = holes
        .iter()
        .copied()
        .filter(|hole| net.contains(hole))
        .collect();
    if inside.is_empty() {
        left.push(net);
        return;
    }
    if let Ok(halves) = net.subnets(net.prefix_len() + 1) {
        halves.for_each(|half| complement(half, &inside, left));
    }
}
