//! Networks in which Microsoft's services are, and networks in which none can be.

use ipnet::IpNet;

use crate::list::{Category, Coverage, Family, Instance, List, embedded};

/// Networks that no public service is in (RFC 6890 and the registries it names): private, loopback, link-local, shared,
/// documentation, benchmarking, transition, multicast, reserved.
const SPECIAL: [&str; 27] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::/8",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3ffe::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// Blocks that Microsoft announces, or had in a list since 2018, beyond those of the built-in lists.
const MICROSOFT: &[&str] = &[
    "13.64.0.0/11",
    "13.96.0.0/13",
    "13.104.0.0/14",
    "20.0.0.0/8",
    "23.96.0.0/13",
    "40.64.0.0/10",
    "51.4.0.0/15",
    "51.8.0.0/16",
    "51.10.0.0/15",
    "51.12.0.0/15",
    "51.18.0.0/16",
    "51.51.0.0/16",
    "51.53.0.0/16",
    "51.103.0.0/16",
    "51.104.0.0/15",
    "51.107.0.0/16",
    "51.116.0.0/16",
    "51.120.0.0/16",
    "51.124.0.0/16",
    "51.132.0.0/16",
    "51.136.0.0/15",
    "51.138.0.0/16",
    "51.140.0.0/14",
    "51.144.0.0/15",
    "52.96.0.0/12",
    "52.112.0.0/12",
    "52.132.0.0/14",
    "52.136.0.0/13",
    "52.145.0.0/16",
    "52.146.0.0/15",
    "52.148.0.0/14",
    "52.152.0.0/13",
    "52.160.0.0/11",
    "52.224.0.0/11",
    "57.16.0.0/15",
    "57.150.0.0/15",
    "57.152.0.0/13",
    "57.160.0.0/14",
    "62.10.0.0/15",
    "64.4.0.0/18",
    "65.52.0.0/14",
    "70.37.0.0/16",
    "70.152.0.0/15",
    "72.144.0.0/12",
    "74.160.0.0/14",
    "74.176.0.0/14",
    "74.224.0.0/11",
    "94.245.64.0/18",
    "98.64.0.0/14",
    "98.70.0.0/15",
    "102.37.0.0/16",
    "102.133.0.0/16",
    "104.40.0.0/13",
    "104.146.0.0/15",
    "104.208.0.0/13",
    "108.140.0.0/14",
    "111.221.16.0/20",
    "111.221.64.0/18",
    "131.253.0.0/16",
    "132.245.0.0/16",
    "134.170.0.0/16",
    "135.149.0.0/16",
    "137.116.0.0/15",
    "137.135.0.0/16",
    "138.91.0.0/16",
    "150.171.0.0/16",
    "157.54.0.0/15",
    "157.56.0.0/14",
    "158.23.0.0/16",
    "158.158.0.0/16",
    "168.61.0.0/16",
    "168.62.0.0/15",
    "172.128.0.0/10",
    "172.192.0.0/12",
    "172.208.0.0/13",
    "191.232.0.0/13",
    "195.134.224.0/19",
    "204.79.135.0/24",
    "204.79.179.0/24",
    "204.79.181.0/24",
    "204.79.195.0/24",
    "204.79.196.0/23",
    "206.191.224.0/19",
    "207.46.0.0/16",
    "207.68.128.0/18",
    "209.240.192.0/19",
    "213.199.128.0/18",
    "216.32.180.0/22",
    "2001:489a::/32",
    "2001:df0:d9::/48",
    "2404:f800::/30",
    "2603:1000::/24",
    "2620:1ec::/36",
    "2a01:110::/31",
    "2a01:4180::/32",
];

/// Blocks of 21Vianet, which operates Microsoft 365 in China, beyond Microsoft's own and those of the built-in list.
const VIANET: &[&str] = &[
    "42.159.0.0/16",
    "52.130.0.0/15",
    "139.217.0.0/16",
    "139.219.0.0/16",
    "139.220.0.0/16",
    "143.64.0.0/16",
    "159.27.0.0/16",
    "163.228.0.0/16",
    "2406:e500::/32",
];

/// Beside a prefix of category Optimize others are expected in the network that is so many bits shorter, but no shorter than this.
const NEARBY: u8 = 8;
const BLOCK: [u8; 2] = [16, 32];

/// The special network that a prefix overlaps, if any.
pub(super) fn special(prefix: &IpNet) -> Option<IpNet> {
    let mut special = SPECIAL.iter().filter_map(|net| net.parse().ok());
    special.find(|net| overlap(net, prefix))
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The networks in which an instance's services are expected: Microsoft's blocks, those around what is built in of category
/// Optimize, and whatever else the built-in list and the list before have.
pub(super) struct Known([Coverage; 2]);

impl Known {
    pub(super) fn of(instance: Instance, before: &List) -> Self {
        let vianet = match instance {
            Instance::China => VIANET,
            _ => &[],
        };
        let named = MICROSOFT.iter().chain(vianet);
        let mut blocks: Vec<IpNet> = named.filter_map(|net| net.parse().ok()).collect();
        let built_in = embedded(instance);
        let optimize = built_in.sets.iter();
        let optimize = optimize.filter(|set| set.category == Category::Optimize);
        blocks.extend(optimize.flat_map(|set| &set.prefixes).map(block));
        let others = built_in.sets.iter().chain(&before.sets);
        blocks.extend(others.flat_map(|set| &set.prefixes));
        Known(Family::ALL.map(|family| Coverage::of(&blocks, family)))
    }

    pub(super) fn contains(&self, prefix: &IpNet) -> bool {
        self.0[Family::of(prefix) as usize].contains(prefix)
    }
}

/// The block around a prefix, or the prefix where that is shorter.
fn block(prefix: &IpNet) -> IpNet {
    let shortest = BLOCK[Family::of(prefix) as usize].min(prefix.prefix_len());
    let length = prefix.prefix_len().saturating_sub(NEARBY).max(shortest);
    IpNet::new(prefix.network(), length).map_or(*prefix, |net| net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_can_be_read() {
        let all = SPECIAL.iter().chain(MICROSOFT).chain(VIANET);
        for text in all {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(net, net.trunc(), "{text}");
        }
        let is_special = |text: &&&str| special(&text.parse().unwrap()).is_some();
        assert_eq!(MICROSOFT.iter().chain(VIANET).find(is_special), None);
    }

    #[test]
    fn blocks_are_around_what_is_known() {
        let before = crate::list::parse(
            br#"[{"id":1,"ips":["9.9.9.0/24"],"tcpPorts":"443","category":"Optimize"},
                {"id":2,"ips":["9.7.9.0/24"],"tcpPorts":"443","category":"Allow"}]"#,
            Instance::Worldwide,
            "test",
        )
        .unwrap();
        let known = Known::of(Instance::Worldwide, &before);
        for (prefix, is_known) in [
            ("9.9.9.128/25", true),
            ("9.9.8.0/24", false),
            ("9.8.0.0/24", false),
            ("9.7.9.128/25", true),
            ("9.7.200.0/24", false),
            ("52.112.0.0/14", true),
            ("8.8.8.8/32", false),
            ("2603:10ff::/32", true),
            ("2a00:1450::/32", false),
            ("42.159.0.0/24", false),
        ] {
            assert_eq!(
                known.contains(&prefix.parse().unwrap()),
                is_known,
                "{prefix}"
            );
        }
        let china = Known::of(Instance::China, &before);
        assert!(china.contains(&"42.159.0.0/24".parse().unwrap()));
        // In category Allow there are others as well.
        assert!(!china.contains(&"112.25.0.0/16".parse().unwrap()));
    }
}
