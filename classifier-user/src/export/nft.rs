//! An nftables table that sets the marks that Breakout would set.

use std::fmt::Write;

use breakout_common::table::Transport;
use ipnet::IpNet;

use super::{Format, Line, Source};
use crate::controller::mark_of;
use crate::plain::plain;

/// The table; it replaces an earlier one of its name.
pub(super) fn write(source: &Source<'_>, lines: &[Line<'_>]) -> String {
    let mut text = source.header("#", lines, Format::Nft);
    text.push_str("add table inet breakout_export\ndelete table inet breakout_export\n");
    text.push_str("table inet breakout_export {\n");
    let mut rules = String::new();
    for (number, line) in lines.iter().enumerate() {
        let verdict = match line.choice.action {
            crate::policy::Action::Steer(index) if !line.choice.shadow => {
                let routing = &source.config.routing;
                let (mark, keep) = (mark_of(routing, index), !routing.mark_mask);
                format!("meta mark set (meta mark & {keep:#010x}) | {mark:#010x} return")
            }
            _ => "return".to_owned(),
        };
        for (family, address, is_v6) in [("v4", "ip", false), ("v6", "ip6", true)] {
            let elements = elements(line, is_v6);
            if elements.is_empty() {
                continue;
            }
            let name = format!("r{number}_{family}");
            let _ = writeln!(
                text,
                "    # {}: {} ({}, {})\n    set {name} {{\n        type {address}v{}_addr . inet_proto . inet_service\n        \
                 flags interval\n        elements = {{\n            {}\n        }}\n    }}",
                plain(line.policy),
                plain(&line.rule.key.to_string()),
                plain(&line.rule.service_area),
                line.rule.category,
                if is_v6 { 6 } else { 4 },
                elements.join(",\n            ")
            );
            let _ = writeln!(
                rules,
                "        {address} daddr . meta l4proto . th dport @{name} {verdict}"
            );
        }
    }
    let text = text.replace("ip6v6_addr", "ipv6_addr");
    format!(
        "{text}    chain prerouting {{\n        type filter hook prerouting priority mangle; policy accept;\n{rules}    }}\n}}\n"
    )
}

/// Prefix, protocol and ports of each element. Within one set, prefixes are brought together where that changes nothing.
fn elements(line: &Line<'_>, is_v6: bool) -> Vec<String> {
    let of_family = line.rule.prefixes.iter().copied();
    let of_family: Vec<IpNet> = of_family
        .filter(|net| net.addr().is_ipv6() == is_v6)
        .collect();
    let prefixes = IpNet::aggregate(&of_family);
    let ports = line.ports();
    let pairs = prefixes
        .iter()
        .flat_map(|prefix| ports.iter().map(move |ports| (prefix, ports)));
    pairs
        .map(|(prefix, ports)| {
            let protocol = match ports.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            format!("{prefix} . {protocol} . {}-{}", ports.first, ports.last)
        })
        .collect()
}
