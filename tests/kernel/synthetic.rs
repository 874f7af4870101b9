//! `breakout doctor` shows the way of packets by sending some: faults that lose or mislead them, and gateways where all is well.

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::Lab;
use breakout_tests::wire::Wire;
use serde_json::Value;

use crate::Test;
use crate::any_link::bridge_the_lan;
use crate::office::{Office, config};

pub(crate) const TESTS: &[Test] = &[
    ("doctor_sends_packets_and_nothing_leaves", well),
    ("doctor_shows_where_packets_are_lost", faults),
];

/// What doctor finds.
fn examine(lab: &Lab, site: &Site) -> Result<Vec<Value>> {
    let json = site.output(&lab.gateway, &["doctor", "--json"])?;
    serde_json::from_slice(&json.stdout)
        .with_context(|| String::from_utf8_lossy(&json.stderr).into_owned())
}

/// Fails unless doctor says that it has sent so many packets.
fn sends(lab: &Lab, site: &Site, packets: usize) -> Result<()> {
    let output = site.output(&lab.gateway, &["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = format!("{packets} synthetic packets were sent");
    ensure!(text.contains(&said), "{text}");
    Ok(())
}

/// Packets of both protocols go by both modes, and to translation, from a card and from a bridge. Nothing is found, nothing comes to
/// the other end, and nothing stays.
fn well() -> Result<()> {
    for (mode, lan) in [("route", "lan"), ("redirect", "lan"), ("redirect", "br1")] {
        let what = format!("{mode}, {lan}");
        let office = Office::open("probes = []\n")?;
        let (lab, site) = (&office.lab, &office.site);
        if lan == "br1" {
            bridge_the_lan(lab)?;
        }
        // Over IPv6 nothing is translated in redirect mode.
        let settings = config(&format!("mode = \"{mode}\"\nprobes = []\n"))
            .replace("\"lan\"", &format!("\"{lan}\""))
            .replace("gateway6 = \"fd00:3::2\"\n", "");
        site.configure(&settings)?;
        lab.gateway.ip("addr flush dev inet to fd00:3::/64")?;
        let mut daemon = Daemon::start(site, &lab.gateway)?;
        daemon.wait_until(office.is_up(true))?;
        let far_ends = [&lab.internet, &lab.wan].map(|end| Wire::listen(end, "eth0"));
        let findings = examine(lab, site).context(what.clone())?;
        let serious: Vec<_> = (findings.iter())
            .filter(|finding| finding["level"] != "note")
            .collect();
        ensure!(serious.is_empty(), "{what}: {findings:?}");
        sends(lab, site, 2).context(what.clone())?;
        for wire in far_ends {
            let wire = wire?;
            while let Some(frame) = wire.receive() {
                // From the port of the client that does not exist, or to a service.
                let is_ours = frame.get(12..14) == Some(&[8, 0])
                    && matches!(frame.get(30), Some(52))
                    && matches!(frame.get(23), Some(6 | 17));
                ensure!(!is_ours, "{what}: {frame:?}");
            }
        }
        let (_, programs) = (lab.gateway)
            .enter(|| Ok(SchedClassifier::query_tcx("inet", TcAttachType::Egress)?))?;
        let names: Vec<_> = programs
            .iter()
            .filter_map(|program| program.name_as_str())
            .collect();
        ensure!(!names.contains(&"breakout_catch"), "{names:?}");
        let tracked = lab.gateway.exec("conntrack -L -d 52.0.0.0/8")?;
        ensure!(!tracked.contains("dport=443"), "{what}: {tracked}");
        daemon.stop()?;
    }
    Ok(())
}

/// Each fault, and what doctor says of packets.
const FAULTS: &[(&[&str], &str)] = &[
    (
        &["nft add rule inet faults forward iifname lan oifname \"inet\" drop"],
        "left by no interface",
    ),
    (
        &["nft add rule inet faults forward tcp dport 443 drop"],
        "left by no interface",
    ),
    (
        // The static look does not know how long packets are.
        &["nft add rule inet faults forward oifname \"inet\" meta length gt 20 drop"],
        "left by no interface",
    ),
    (
        &["nft add rule inet faults pre iifname lan meta mark set 0"],
        "left by wan",
    ),
    (
        &["ip rule add from 10.1.0.0/24 table main priority 1"],
        "left by wan",
    ),
    (
        &[
            "nft add chain inet faults leave { type nat hook postrouting priority 90 ; }",
            "nft add rule inet faults leave oifname \"inet\" snat ip to 10.2.0.1",
        ],
        "with the source address 10.2.0.1",
    ),
    (
        &["nft add rule inet faults forward oifname \"inet\" ip dscp set cs1"],
        "left with DSCP 8 in the place of 46",
    ),
    (
        &["sysctl -qw net.ipv4.conf.lan.forwarding=0"],
        "left by no interface",
    ),
    (
        &["nft add rule inet faults pre iifname lan udp dport 3478 drop"],
        "left by no interface",
    ),
];

fn faults() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(office.is_up(true))?;
    for (commands, said) in FAULTS {
        lab.gateway.exec("nft add table inet faults")?;
        for chain in [
            "pre { type filter hook prerouting priority mangle ; }",
            "forward { type filter hook forward priority filter ; }",
        ] {
            lab.gateway
                .exec(&format!("nft add chain inet faults {chain}"))?;
        }
        for command in *commands {
            lab.gateway.exec(command)?;
        }
        let findings = examine(lab, site)?;
        let texts: Vec<String> = findings
            .iter()
            .filter_map(|finding| finding["what"].as_str().map(str::to_owned))
            .collect();
        ensure!(
            texts
                .iter()
                .any(|text| text.contains("synthetic") && text.contains(said)),
            "{commands:?}: {texts:#?}"
        );
        lab.gateway.exec("nft delete table inet faults")?;
        let _ = lab
            .gateway
            .exec("ip rule del from 10.1.0.0/24 table main priority 1");
        lab.gateway
            .exec("sysctl -qw net.ipv4.conf.lan.forwarding=1")?;
    }
    let findings = examine(lab, site)?;
    let is_about_packets = |finding: &Value| finding["what"].to_string().contains("synthetic");
    ensure!(!findings.iter().any(is_about_packets), "{findings:#?}");
    sends(lab, site, 4)?;
    daemon.stop()?;
    Ok(())
}
