//! What a user would build instead, with the settings that an expert gives it.

use std::fmt::Write as _;

use anyhow::Result;
use breakout_tests::lab::Lab;
use breakout_tests::netns::{Namespace, run};
use ipnet::IpNet;

/// The mark and the table of the peers that steer by them.
const MARK: &str = "0x10000";
const TABLE: &str = "100";

/// A kernel route for each prefix.
pub(crate) fn routes(gateway: &Namespace, prefixes: &[IpNet]) -> Result<()> {
    prefixes.iter().try_for_each(|prefix| {
        let via = if matches!(prefix, IpNet::V4(_)) {
            "10.3.0.2"
        } else {
            "fd00:3::2"
        };
        gateway
            .ip(&format!("route replace {prefix} via {via} dev inet"))
            .map(drop)
    })
}

/// An `ip rule` that sends marked packets out by the local link.
pub(crate) fn marked_way(gateway: &Namespace) -> Result<()> {
    for (family, via) in [("-4", "10.3.0.2"), ("-6", "fd00:3::2")] {
        gateway.ip(&format!(
            "{family} rule add fwmark {MARK}/{MARK} lookup {TABLE}"
        ))?;
        gateway.ip(&format!(
            "{family} route add default via {via} dev inet table {TABLE}"
        ))?;
    }
    Ok(())
}

/// nftables: an interval set for each family, looked up before routing, which marks.
pub(crate) fn nftables(gateway: &Namespace, prefixes: &[IpNet]) -> Result<()> {
    let set = |v6: bool| {
        let of_family = prefixes
            .iter()
            .filter(|prefix| matches!(prefix, IpNet::V6(_)) == v6);
        of_family.fold(String::new(), |mut text, prefix| {
            let _ = write!(text, "{prefix}, ");
            text
        })
    };
    nft(
        gateway,
        &format!(
            "table inet steer {{
                set local4 {{ type ipv4_addr; flags interval; elements = {{ {} }} }}
                set local6 {{ type ipv6_addr; flags interval; elements = {{ {} }} }}
                chain steer {{
                    type filter hook prerouting priority mangle;
                    iifname \"lan\" udp dport {{ 443, 3478-3481 }} ip daddr @local4 meta mark set {MARK};
                    iifname \"lan\" tcp dport {{ 80, 443 }} ip daddr @local4 meta mark set {MARK};
                    iifname \"lan\" udp dport {{ 443, 3478-3481 }} ip6 daddr @local6 meta mark set {MARK};
                    iifname \"lan\" tcp dport {{ 80, 443 }} ip6 daddr @local6 meta mark set {MARK};
                }}
            }}",
            set(false),
            set(true)
        ),
    )?;
    marked_way(gateway)
}

/// ipset and iptables, which mark likewise.
pub(crate) fn ipset(gateway: &Namespace, prefixes: &[IpNet]) -> Result<()> {
    gateway.exec("ipset create local4 hash:net family inet")?;
    gateway.exec("ipset create local6 hash:net family inet6")?;
    for prefix in prefixes {
        let set = if matches!(prefix, IpNet::V4(_)) {
            "local4"
        } else {
            "local6"
        };
        gateway.exec(&format!("ipset add {set} {prefix}"))?;
    }
    for (tables, set) in [("iptables", "local4"), ("ip6tables", "local6")] {
        for (protocol, ports) in [("udp", "443,3478:3481"), ("tcp", "80,443")] {
            gateway.exec(&format!(
                "{tables} -t mangle -A PREROUTING -i lan -p {protocol} -m multiport --dports {ports} \
                 -m set --match-set {set} dst -j MARK --set-xmark {MARK}/{MARK}"
            ))?;
        }
    }
    marked_way(gateway)
}

/// Source NAT on the local link, by the kernel's connection tracking.
pub(crate) fn masquerade(gateway: &Namespace) -> Result<()> {
    nft(
        gateway,
        "table inet nat { chain out { type nat hook postrouting priority srcnat; oifname \"inet\" masquerade; }; }",
    )
}

fn nft(namespace: &Namespace, script: &str) -> Result<()> {
    run(namespace.command("nft").arg(script)).map(drop)
}

/// Makes a lab ready for traffic at full rate: next hops that are always known, and a LAN interface that takes frames
/// from the generator with and without XDP.
pub(crate) fn prepare(lab: &Lab) -> Result<()> {
    lab.gateway.exec("ethtool -K lan gro on")?;
    for (far_end, interface, number) in [(&lab.wan, "wan", 2), (&lab.internet, "inet", 3)] {
        let mac = far_end.mac("eth0")?;
        let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let mac = mac.join(":");
        lab.gateway.ip_lines(&format!(
            "neigh replace 10.{number}.0.2 lladdr {mac} dev {interface} nud permanent
             neigh replace fd00:{number}::2 lladdr {mac} dev {interface} nud permanent"
        ))?;
    }
    Ok(())
}
