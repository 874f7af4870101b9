//! Networks of private addresses.

use ipnet::IpNet;

/// RFC 1918, RFC 6598, RFC 4193.
const NETWORKS: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
];

/// All of them.
pub fn networks() -> impl Iterator<Item = IpNet> {
    NETWORKS.iter().filter_map(|net| net.parse().ok())
}
