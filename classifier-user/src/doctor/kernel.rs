//! Settings of the kernel: forwarding, reverse path filters, connection tracking, offloads.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Finding, Level};
use crate::config::{Config, Mode};

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = forwarding(config);
    findings.extend(reverse_path(config));
    findings.extend(conntrack(
        number("net/netfilter/nf_conntrack_count"),
        number("net/netfilter/nf_conntrack_max"),
    ));
    findings.extend(offloads(config));
    findings.extend(vrf(config));
    findings
}

/// A number from /proc/sys.
fn number(path: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
    text.trim().parse().ok()
}

fn forwarding(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let has_v6 = config
        .egress
        .values()
        .any(|egress| egress.gateway6.is_some());
    for lan in &config.lan {
        let interface = &lan.interface;
        if number(&format!("net/ipv4/conf/{interface}/forwarding")) == Some(0) {
            findings.push(Finding::new(
                Level::Error,
                format!("IPv4 packets from {interface} are not forwarded"),
                "sysctl -w net.ipv4.ip_forward=1",
            ));
        }
        if has_v6 && number("net/ipv6/conf/all/forwarding") == Some(0) {
            findings.push(Finding::new(
                Level::Error,
                format!("IPv6 packets from {interface} are not forwarded"),
                "sysctl -w net.ipv6.conf.all.forwarding=1",
            ));
        }
    }
    findings
}

/// Replies come in by the egress although the main table's route to where they come from is another. The kernel takes the
/// larger one of both settings (Documentation/networking/ip-sysctl.rst).
fn reverse_path(config: &Config) -> Vec<Finding> {
    let all = number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let strict = config.egress.values().filter_map(|egress| {
        let interface = &egress.interface;
        let own = number(&format!("net/ipv4/conf/{interface}/rp_filter"))?;
        (all.max(own) == 1).then(|| {
            Finding::new(
                Level::Error,
                format!(
                    "strict reverse path filtering drops the replies that come in by {interface}"
                ),
                format!("sysctl -w net.ipv4.conf.{interface}.rp_filter=2"),
            )
        })
    });
    strict.collect()
}

fn conntrack(count: Option<u64>, most: Option<u64>) -> Option<Finding> {
    let (count, most) = (count?, most?);
    (most > 0 && count * 10 >= most * 9).then(|| {
        Finding::new(
            Level::Error,
            format!("{count} of at most {most} connections are tracked; new ones are dropped when the table is full"),
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 2),
        )
    })
}

fn offloads(config: &Config) -> Vec<Finding> {
    let asks_for_vlans = config.policy.iter().any(|rule| !rule.vlan.is_empty());
    let redirects = config
        .egress
        .values()
        .any(|egress| egress.mode == Mode::Redirect);
    let mut findings = Vec::new();
    for lan in config.lan.iter().filter(|_| redirects) {
        let interface = &lan.interface;
        let features = Command::new("ethtool").args(["-k", interface]).output();
        let Ok(features) = features else { continue };
        let features = String::from_utf8_lossy(&features.stdout);
        let is_on = |name: &str| {
            features
                .lines()
                .any(|line| line.trim().starts_with(&format!("{name}: on")))
        };
        if is_on("large-receive-offload") {
            findings.push(Finding::new(
                Level::Error,
                format!("{interface} merges packets (LRO), and XDP would redirect what is longer than any link takes"),
                format!("ethtool -K {interface} lro off"),
            ));
        }
        if asks_for_vlans && is_on("rx-vlan-offload") {
            findings.push(Finding::new(
                Level::Warning,
                format!("{interface} takes VLAN tags out of frames before XDP sees them, so rules with vlan match nothing"),
                format!("ethtool -K {interface} rxvlan off"),
            ));
        }
    }
    findings
}

/// Rules of a VRF come before ours, with the priority 1000 (Documentation/networking/vrf.rst).
fn vrf(config: &Config) -> Vec<Finding> {
    let lans = config.lan.iter().map(|lan| &lan.interface);
    let interfaces = lans.chain(config.egress.values().map(|egress| &egress.interface));
    let in_vrf = interfaces.filter_map(|interface| {
        let uevent = fs::read_to_string(format!("/sys/class/net/{interface}/master/uevent")).ok()?;
        uevent.lines().any(|line| line == "DEVTYPE=vrf").then(|| {
            Finding::new(
                Level::Warning,
                format!("{interface} is in a VRF, whose rule decides before Breakout's"),
                "Set [routing] rule_priority below that of the l3mdev rule (see: ip rule show), as 900",
            )
        })
    });
    in_vrf.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nearly_full_connection_table_is_found() {
        assert_eq!(conntrack(Some(89), Some(100)), None);
        assert_eq!(conntrack(None, Some(100)), None);
        assert!(
            conntrack(Some(90), Some(100))
                .unwrap()
                .advice
                .contains("=200")
        );
    }
}
