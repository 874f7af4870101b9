//! Verdicts that must hold with the Worldwide list of November 2025, by whatever way they are asked.

/// Protocol, destination port, destination, and the id of the endpoint set if it is steered.
pub const GOLDEN: &[(&str, u16, &str, Option<u32>)] = &[
    ("tcp", 443, "52.98.1.1", Some(1)),
    ("tcp", 993, "52.98.1.1", None),
    ("udp", 443, "52.98.1.1", Some(1)),
    ("udp", 3478, "52.113.0.1", Some(11)),
    ("tcp", 443, "52.113.0.1", None),
    ("tcp", 443, "52.100.0.1", None),
    ("udp", 3482, "52.113.0.1", None),
    ("udp", 3478, "13.107.64.1", None),
    ("tcp", 443, "20.190.128.1", None),
    ("udp", 3479, "2603:1063:3ff:ffff::1", Some(11)),
    ("udp", 3479, "2603:1063:400::1", None),
];
