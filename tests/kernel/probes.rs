//! Probes of each kind, and how many there are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::fake_service::{Credentials, FakeService};
use breakout_tests::seen::Counter;
use breakout_tests::server::{Relay, Web};
use serde_json::Value;

use crate::Test;
use crate::office::{Office, address};

pub(crate) const TESTS: &[Test] = &[
    ("probes_of_each_kind_are_answered", kinds),
    ("a_relay_that_is_silent_costs_the_media_only", silent_relay),
    ("probes_are_few", few),
];

/// What is known of each target, by its name.
fn targets(office: &Office, family: &str) -> Result<Vec<(String, Value)>> {
    let status = office.site.json(&office.lab.gateway, &["status"])?;
    let targets = &status["egress"]["local"][family]["standing"]["measure"]["targets"];
    let targets = targets.as_array().cloned().unwrap_or_default();
    let named = targets.into_iter().map(|target| {
        let name = target["target"].as_str().unwrap_or_default().to_owned();
        (name, target)
    });
    Ok(named.collect())
}

/// All of them go by the egress: at the WAN nobody answers.
fn kinds() -> Result<()> {
    let office = Office::open("")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own([
        "52.112.0.9".parse()?,
        "52.112.0.10".parse()?,
        "2603:1063::9".parse()?,
    ])?;
    let _relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    let _web = Web::start(&lab.internet, address("52.112.0.10:80"), "internet")?;
    let secure = lab
        .internet
        .enter(|| FakeService::start_at(address("52.112.0.10:443"), Credentials::Good))?;
    let probes = "probes = [\"stun:52.112.0.9\", \"icmp:52.112.0.9\", \"icmp:2603:1063::9\", \"tcp:52.98.1.1:443\", \
                  \"tls:52.112.0.10\", \"http://52.112.0.10/\", \"tls:52.98.1.1:443\"]\n";
    site.configure(&crate::office::config(probes))?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let is_proven = |target: &Value| target["proven"] == true;
    daemon.wait_until(|_| {
        let proven = |family| {
            targets(&office, family).map(|all| all.iter().filter(|(_, one)| is_proven(one)).count())
        };
        proven("v4").is_ok_and(|count| count == 5) && proven("v6").is_ok_and(|count| count == 1)
    })?;
    // What speaks no TLS is no front door, though it takes the connection.
    let all = targets(&office, "v4")?;
    let (_, plain) = all
        .iter()
        .find(|(name, _)| name == "tls:52.98.1.1:443")
        .context("the target")?;
    ensure!(
        !is_proven(plain) && plain["last_error"].is_string(),
        "{plain}"
    );
    drop(secure);
    daemon.stop()?;
    Ok(())
}

/// Teams' relays do not answer any more, but mail does.
fn silent_relay() -> Result<()> {
    let office = Office::open(
        "probes = [\"stun:52.112.0.9:3478\", \"tcp:52.98.1.1:443\"]\n[health]\nhold_down = \"500ms\"\n",
    )?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own(["52.112.0.9".parse()?])?;
    let relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(|_| {
        targets(&office, "v4").is_ok_and(|all| all.iter().all(|(_, one)| one["proven"] == true))
    })?;
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    lab.internet.exec("nft add table ip mute")?;
    lab.internet
        .exec("nft add chain ip mute in { type filter hook prerouting priority -300 ; }")?;
    lab.internet
        .exec("nft add rule ip mute in ip daddr 52.112.0.9 drop")?;
    daemon.wait_until(office.is_in_state("v4", "degraded"))?;
    std::thread::sleep(Duration::from_secs(2));
    let status = site.json(&lab.gateway, &["status"])?;
    let standing = &status["egress"]["local"]["v4"]["standing"];
    ensure!(
        standing["state"] == "degraded"
            && standing["standard"] == true
            && standing["media"] == false,
        "{standing}"
    );
    ensure!(
        standing["why"]
            .to_string()
            .contains("no STUN or ICMP probe"),
        "{standing}"
    );
    ensure!(office.new_way()? == "internet");
    ensure!(
        !daemon.log().contains("egress local is down for IPv4"),
        "{}",
        daemon.log()
    );
    lab.internet.exec("nft delete table ip mute")?;
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    drop(relay);
    daemon.stop()?;
    Ok(())
}

/// As docs/health.md has it: four small packets a second, whatever the number of targets.
fn few() -> Result<()> {
    let office = Office::open(
        "probes = [\"stun:52.112.0.9:3478\", \"icmp:52.112.0.9\", \"icmp:52.113.0.1\"]\n",
    )?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own(["52.112.0.9".parse()?])?;
    let _relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    let sent = Counter::start(
        &lab.gateway,
        "probes",
        "oifname \"inet\" ip daddr { 52.112.0.9, 52.113.0.1 }",
    )?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    let (count, seconds) = (sent.packets()?, started.elapsed().as_secs_f64());
    let rate = count as f64 / seconds;
    ensure!((2.0..=5.0).contains(&rate), "{rate} probes a second");
    daemon.stop()?;
    Ok(())
}
