//! Settings of the kernel: forwarding, reverse path filters, connection tracking, offloads.

use std::fs;
use std::path::Path;

use super::{Finding, Level};
use breakout_common::nat::{FIRST_PORT, LAST_PORT};

use crate::config::Config;
use crate::tool;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = forwarding(config);
    findings.extend(reverse_path(config));
    findings.extend(conntrack(
        number("net/netfilter/nf_conntrack_count"),
        number("net/netfilter/nf_conntrack_max"),
    ));
    findings.extend(offloads(config).await);
    findings.extend(vrf(config));
    findings.extend(local_ports(config));
    findings
}

/// A number of an interface's settings. Its name may have a dot, as those of VLANs have.
fn of_interface(family: &str, interface: &str, setting: &str) -> Option<u64> {
    number(&format!("net/{family}/conf/{interface}/{setting}"))
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
        .any(|egress| egress.gateway6.is_some() || has_v6_route(&egress.interface));
    for lan in &config.lan {
        let interface = &lan.interface;
        if of_interface("ipv4", interface, "forwarding") == Some(0) {
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

/// The name of an interface's IPv4 setting as sysctl(8) takes it: with slashes where the interface's has a dot.
fn setting(interface: &str, name: &str) -> String {
    let path = format!("net/ipv4/conf/{interface}/{name}");
    if interface.contains('.') {
        path
    } else {
        path.replace('/', ".")
    }
}

/// Returns whether a default route leads over an interface (proc(5), /proc/net/ipv6_route: destination, prefix length, ..., interface).
fn has_v6_route(interface: &str) -> bool {
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    routes.lines().any(|route| {
        let mut words = route.split_whitespace();
        words.nth(1) == Some("00") && words.next_back() == Some(interface)
    })
}

/// Replies come in by the egress although the main table's route to where they come from is another. The kernel takes the
/// larger one of both settings (Documentation/networking/ip-sysctl.rst).
fn reverse_path(config: &Config) -> Vec<Finding> {
    let all = number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let strict = config.egress.values().filter_map(|egress| {
        let interface = &egress.interface;
        let own = of_interface("ipv4", interface, "rp_filter")?;
        (all.max(own) == 1).then(|| {
            Finding::new(
                Level::Error,
                format!(
                    "strict reverse path filtering drops the replies that come in by {interface}"
                ),
                format!("sysctl -w {}=2", setting(interface, "rp_filter")),
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

/// Interfaces on which XDP redirects.
async fn offloads(config: &Config) -> Vec<Finding> {
    let asks_for_vlans = config.policy.iter().any(|rule| !rule.vlan.is_empty());
    let lans = config.lan.iter().map(|lan| &lan.interface);
    let egresses = config.egress.values();
    let replies = egresses.filter(|egress| egress.returns || egress.is_translated());
    let interfaces = lans.chain(replies.map(|egress| &egress.interface));
    let mut findings = Vec::new();
    for interface in interfaces.filter(|_| config.needs_xdp()) {
        match tool::output("ethtool", &["-k", interface]).await {
            Ok(features) => {
                let features = String::from_utf8_lossy(&features.stdout);
                findings.extend(offloads_of(interface, &features, asks_for_vlans));
            }
            Err(error) => findings.push(Finding::new(
                Level::Note,
                format!("the offloads of {interface} were not looked at: {error:#}"),
                "Install ethtool to have them looked at",
            )),
        }
    }
    findings
}

/// By what `ethtool -k` prints.
fn offloads_of(interface: &str, features: &str, asks_for_vlans: bool) -> Vec<Finding> {
    let is_on = |name: &str| {
        let on = format!("{name}: on");
        features.lines().any(|line| line.trim().starts_with(&on))
    };
    let mut findings = Vec::new();
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
    findings
}

/// The priority of the rule of VRFs (Documentation/networking/vrf.rst).
const VRF_PRIORITY: u32 = 1000;

fn vrf(config: &Config) -> Vec<Finding> {
    if config.routing.rule_priority < VRF_PRIORITY {
        return Vec::new();
    }
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

/// The ports of the gateway's own sockets, which must not be those of clients' flows.
fn local_ports(config: &Config) -> Option<Finding> {
    let read = |name: &str| {
        let path = Path::new("/proc/sys/net/ipv4").join(name);
        fs::read_to_string(path).ok()
    };
    let (range, reserved) = (
        read("ip_local_port_range").filter(|_| config.translates())?,
        read("ip_local_reserved_ports").unwrap_or_default(),
    );
    let (first, last) = taken(&range, &reserved)?;
    let mut all = reserved.trim().to_owned();
    all += if all.is_empty() { "" } else { "," };
    Some(Finding::new(
        Level::Warning,
        format!(
            "the gateway's own sockets may have ports {first} to {last}, which are those of translated flows: replies to one may go to \
             the other if both talk to the same address and port"
        ),
        format!(
            "sysctl -w net.ipv4.ip_local_reserved_ports={all}{}-{}",
            PUBLIC.0, PUBLIC.1
        ),
    ))
}

/// The first and the last public port.
const PUBLIC: (u16, u16) = (FIRST_PORT, LAST_PORT);

/// Returns which public ports sockets may get: the first and the last one, by the settings as the kernel prints them.
fn taken(range: &str, reserved: &str) -> Option<(u16, u16)> {
    let mut ends = range.split_whitespace().filter_map(|end| end.parse().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    let is_reserved = |port: &u16| {
        let mut parts = reserved.trim().split(',');
        parts.any(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let ends = from.parse().ok().zip(to.parse().ok());
            ends.is_some_and(|(from, to)| (from..=to).contains(port))
        })
    };
    let mut free = (PUBLIC.0.max(first)..=PUBLIC.1.min(last)).filter(|port| !is_reserved(port));
    let lowest = free.next()?;
    Some((lowest, free.next_back().unwrap_or(lowest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_sockets_that_flows_have_are_found() {
        assert_eq!(taken("32768\t60999\n", "\n"), None);
        assert_eq!(taken("1024\t65535\n", "\n"), Some((16_384, 32_767)));
        assert_eq!(
            taken("20000 30000", "16384-29999,7"),
            Some((30_000, 30_000))
        );
        assert_eq!(taken("1024 65535", "16384-32767"), None);
    }

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

    #[test]
    fn settings_of_vlan_interfaces_are_named_so_that_sysctl_takes_them() {
        assert_eq!(setting("inet", "rp_filter"), "net.ipv4.conf.inet.rp_filter");
        assert_eq!(
            setting("lan.10", "rp_filter"),
            "net/ipv4/conf/lan.10/rp_filter"
        );
    }

    #[test]
    fn offloads_that_break_redirect_are_found() {
        let features = "Features for lan:\nrx-vlan-offload: on\n\tlarge-receive-offload: on\n";
        let advice = |vlans| -> Vec<String> {
            let findings = offloads_of("lan", features, vlans);
            findings.into_iter().map(|finding| finding.advice).collect()
        };
        assert_eq!(advice(false), ["ethtool -K lan lro off"]);
        assert_eq!(advice(true).len(), 2);
        assert!(offloads_of("lan", "large-receive-offload: off [fixed]", true).is_empty());
    }
}
