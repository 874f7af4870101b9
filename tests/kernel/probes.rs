//! Probes of each kind, and how many there are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::fake_service::{Credentials, FakeService};
use breakout_tests::live::Stream;
use breakout_tests::seen::Counter;
use breakout_tests::server::{Relay, Web};
use serde_json::Value;

use crate::Test;
use crate::coturn::Coturn;
use crate::egress::discard;
use crate::office::{MEDIA, Office, address};

pub(crate) const TESTS: &[Test] = &[
    ("probes_of_each_kind_are_answered", || kinds("route")),
    ("probes_of_each_kind_are_answered_without_a_rule", || {
        kinds("redirect")
    }),
    ("a_relay_that_is_silent_costs_the_media_only", silent_relay),
    ("probes_are_few", few),
    ("probes_of_a_metered_link_are_fewer", metered),
    ("a_turn_relay_is_measured_without_a_password", turn_relay),
    ("a_turn_relay_tells_public_addresses", public_addresses),
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
fn kinds(mode: &str) -> Result<()> {
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
    let config = crate::office::config(probes);
    // Breakout does no translation in redirect mode.
    let config = match mode {
        "redirect" => config.replace("masquerade = true", "mode = \"redirect\""),
        _ => config,
    };
    site.configure(&config)?;
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
    // In redirect mode there are routes to them, which the next controller has too; but there is no rule.
    let routes = |family: &str| {
        let routes = lab
            .gateway
            .ip(&format!("{family} route show table main protocol 76"));
        routes.map(|routes| routes.lines().count())
    };
    let expected = if mode == "redirect" { [3, 1] } else { [0, 0] };
    let found = [routes("-4")?, routes("-6")?];
    ensure!(found == expected, "{found:?} routes of probes");
    for family in ["-4", "-6"] {
        let rules = lab.gateway.ip(&format!("{family} rule show"))?;
        ensure!(
            rules.contains("lookup 5001") == (mode == "route"),
            "{rules}"
        );
    }
    if mode == "redirect" {
        // Routes go with their targets, and one that somebody removes is made again.
        let fewer = config.replace(probes, "probes = [\"icmp:52.112.0.9\"]\n");
        site.configure(&fewer)?;
        site.json(&lab.gateway, &["reload"])?;
        let are_gone = |_: &_| {
            routes("-4").is_ok_and(|count| count == 1) && routes("-6").is_ok_and(|count| count == 0)
        };
        daemon.wait_until(are_gone)?;
        // Routers do not answer for addresses behind them.
        lab.internet.sysctl("net.ipv4.conf.all.arp_ignore", 1)?;
        lab.gateway.ip("route del 52.112.0.9/32 tos 0x0c")?;
        daemon.wait_until(are_gone)?;
    }
    daemon.stop()?;
    let found = [routes("-4")?, routes("-6")?];
    ensure!(found == [0, 0], "{found:?} routes of probes are left");
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
            .contains("no TURN, STUN or ICMP probe"),
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

/// A probe every thirteen seconds, and one at once when what was answered no longer is.
fn metered() -> Result<()> {
    let office = Office::open("metered = true\nprobes = [\"stun:52.112.0.9:3478\"]\n")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own(["52.112.0.9".parse()?])?;
    let _relay = Relay::start(&lab.internet, address("52.112.0.9:3478"))?;
    let sent = Counter::start(&lab.gateway, "probes", "ip daddr 52.112.0.9")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(office.is_in_state("v4", "up"))?;
    let stream = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| stream.now().as_deref() == Some("internet"))?;
    std::thread::sleep(Duration::from_secs(5));
    let count = sent.packets()?;
    ensure!(count <= 2, "{count} probes in five seconds");
    let cut = Instant::now();
    discard(&lab.internet, "")?;
    daemon.wait_until(|_| stream.now().as_deref() == Some("wan"))?;
    let gap = stream.gap_since(cut);
    println!("on the other way after {gap:?}, and {count} probes before");
    ensure!(
        gap < Duration::from_secs(6),
        "the stream was silent for {gap:?}"
    );
    daemon.stop()?;
    Ok(())
}

/// Teams' relays are silent to STUN bindings, and answer an allocation without a password with an error. So does coturn with
/// `no-stun`; one that asks nobody for a password gives out addresses, of which none is kept.
fn turn_relay() -> Result<()> {
    let office = Office::open("")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own([
        "52.112.0.9".parse()?,
        "52.112.0.10".parse()?,
        "52.112.0.11".parse()?,
    ])?;
    let like_teams = ["--no-stun", "--lt-cred-mech", "--user=a:b", "--realm=r"];
    let _relay = Coturn::start(&lab.internet, site.path(), "52.112.0.9", &like_teams)?;
    let open = Coturn::start(
        &lab.internet,
        site.path(),
        "52.112.0.10",
        &["--no-auth", "--verbose"],
    )?;
    let _binding = Relay::start(&lab.internet, address("52.112.0.11:3478"))?;
    let probes = "probes = [\"stun:52.112.0.9\", \"turn:52.112.0.9\", \"turn:52.112.0.10\", \"turn:52.112.0.11\"]\n";
    site.configure(&crate::office::config(probes))?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let proven = || {
        let all = targets(&office, "v4").unwrap_or_default();
        let proven = all
            .into_iter()
            .filter(|(_, target)| target["proven"] == true);
        proven.map(|(name, _)| name).collect::<Vec<_>>()
    };
    let relays = [
        "turn:52.112.0.10:3478",
        "turn:52.112.0.11:3478",
        "turn:52.112.0.9:3478",
    ];
    daemon.wait_until(|_| {
        let mut proven = proven();
        proven.sort_unstable();
        proven == relays
    })?;
    // Long enough for the latency that a relay has to be told from that of the one that is asked twice.
    let since = Instant::now();
    daemon.wait_until(|_| since.elapsed() > Duration::from_secs(3))?;
    for (name, target) in targets(&office, "v4")? {
        if relays.contains(&name.as_str()) {
            ensure!(target["loss"].as_f64() < Some(0.2), "{name}: {target}");
        } else {
            ensure!(target["proven"] == false, "{name} is answered: {target}");
        }
    }
    daemon.stop()?;
    let log = open.log()?;
    let (given, returned) = (
        log.matches("new, realm").count(),
        log.matches("refreshed, realm").count(),
    );
    ensure!(
        given > 0 && returned + 1 >= given,
        "{given} given out, {returned} given up:\n{log}"
    );
    Ok(())
}

/// The ledger of public addresses follows what the provider's translation makes of them, over a restart, and is written for Microsoft.
fn public_addresses() -> Result<()> {
    let office = Office::open("")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.own(["52.112.0.9".parse()?])?;
    let _relay = Coturn::start(&lab.internet, site.path(), "52.112.0.9", &["--no-auth"])?;
    site.configure(&crate::office::config("probes = [\"stun:52.112.0.9\"]\n"))?;
    let known = || -> Result<Vec<String>> {
        let ledger = site.json(&lab.gateway, &["addresses"])?;
        let entries = ledger.as_array().context("no entries")?.iter();
        let texts = entries.map(|entry| {
            Some(format!(
                "{} {}",
                entry["egress"].as_str()?,
                entry["address"].as_str()?
            ))
        });
        texts
            .collect::<Option<_>>()
            .context("an entry lacks a text")
    };
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(|_| known().is_ok_and(|known| known == ["local 10.3.0.1"]))?;
    let graph = ["addresses", "--format", "graph", "--site", "Berlin"];
    let output = site.output(&lab.gateway, &graph)?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(message.contains("no public address, so"), "{message}");
    ensure!(
        message.contains("there is no address to register"),
        "{message}"
    );
    daemon.stop()?;

    let mut daemon = Daemon::start(site, &lab.gateway)?;
    // Answers are routed before they are translated back.
    lab.internet.ip("route add 198.51.100.77 via 10.3.0.1")?;
    lab.internet.exec("nft add table ip provider")?;
    lab.internet
        .exec("nft add chain ip provider nat { type nat hook input priority 100 ; }")?;
    lab.internet
        .exec("nft add rule ip provider nat udp dport 3478 snat to 198.51.100.77")?;
    lab.internet
        .exec("nft add chain ip provider back { type nat hook output priority -100 ; }")?;
    let both = ["local 10.3.0.1", "local 198.51.100.77"];
    daemon.wait_until(|_| known().is_ok_and(|known| known == both))?;
    let location: Value = serde_json::from_slice(&site.output(&lab.gateway, &graph)?.stdout)?;
    ensure!(location["displayName"] == "Berlin", "{location}");
    let ranges = &location["ipRanges"];
    ensure!(
        ranges[0]["cidrAddress"] == "198.51.100.77/32" && ranges[1].is_null(),
        "{location}"
    );
    let events = site.json(&lab.gateway, &["events"])?.to_string();
    ensure!(events.contains("public address 198.51.100.77"), "{events}");
    daemon.stop()?;
    Ok(())
}
