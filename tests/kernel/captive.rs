//! Networks that answer in Microsoft's place: captive portals, and devices that intercept TLS.

use std::fs;

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::fake_service::{Credentials, FakeService};
use breakout_tests::server::Relay;

use crate::Test;
use crate::office::{Office, address, config};

pub(crate) const TESTS: &[Test] = &[("a_captive_portal_is_no_way_out", portal)];

/// A server with a trusted certificate of its name, and another one whose certificate nobody knows, to which all connections are
/// led for a while.
fn portal() -> Result<()> {
    let office = Office::open("")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own([
        "52.112.0.9".parse()?,
        "52.112.0.10".parse()?,
        "52.112.0.11".parse()?,
    ])?;
    let serve = |at| {
        lab.internet
            .enter(|| FakeService::start_at(address(at), Credentials::OtherHost))
    };
    let genuine = serve("52.112.0.10:443")?;
    let _portal = serve("52.112.0.11:443")?;
    let _relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    fs::write(site.path().join("ca.pem"), genuine.ca())?;
    fs::write(
        site.path().join("hosts"),
        "52.112.0.10 elsewhere.example\n127.0.0.1 localhost\n",
    )?;
    let probes = |relay: &str| {
        let probes = format!(
            "probes = [\"tls:elsewhere.example\", \"tcp:52.98.1.1:443\"{relay}]\n\
             [health]\nca_file = \"ca.pem\"\nhold_down = \"500ms\"\nslow_interval = \"1s\"\n"
        );
        site.configure(&config(&probes))
    };
    probes("")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    ensure!(office.new_way()? == "internet");

    lab.internet.exec("nft add table ip portal")?;
    lab.internet
        .exec("nft add chain ip portal in { type nat hook prerouting priority dstnat ; }")?;
    let capture = "nft add rule ip portal in ip daddr 52.0.0.0/8 tcp dport 443 dnat to 52.112.0.11";
    lab.internet.exec(capture)?;
    daemon.wait_until(office.is_in_state("v4", "down"))?;
    let standing = || -> Result<_> {
        let status = site.json(&lab.gateway, &["status"])?;
        Ok(status["egress"]["local"]["v4"]["standing"].clone())
    };
    let found = standing()?;
    let why = found["why"].as_str().unwrap_or_default();
    let expected =
        "captive: tls:elsewhere.example:443: the certificate is not that of elsewhere.example";
    ensure!(
        found["captive"] == true && why.starts_with(expected),
        "{found}"
    );
    ensure!(office.new_way()? == "wan");

    // Where relays answer, only what goes by TLS is intercepted.
    probes(", \"stun:52.112.0.9\"")?;
    site.json(&lab.gateway, &["reload"])?;
    daemon.wait_until(office.is_in_state("v4", "degraded"))?;
    let found = standing()?;
    ensure!(
        found["captive"] == true && found["standard"] == false && found["media"] == true,
        "{found}"
    );
    ensure!(office.new_way()? == "wan");

    // A controller that begins behind a portal takes no connection there for an answer.
    daemon.stop()?;
    probes("")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(|_| standing().is_ok_and(|found| found["captive"] == true))?;
    ensure!(
        !daemon.log().contains("egress local is up for IPv4"),
        "{}",
        daemon.log()
    );

    lab.internet.exec("nft delete table ip portal")?;
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    ensure!(office.new_way()? == "internet");
    daemon.stop()?;
    Ok(())
}
