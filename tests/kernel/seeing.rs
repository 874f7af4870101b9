//! What an operator sees: events, flows, metrics, the service manager's line, and what `doctor` finds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::Stream;
use breakout_tests::netns::run;
use nix::sys::signal::Signal;

use crate::Test;
use crate::office::{MEDIA, Office, address, config};

pub(crate) const TESTS: &[Test] = &[
    ("events_flows_and_metrics_tell_of_a_fail_over", fail_over),
    (
        "a_support_case_has_everything_but_secrets_and_clients",
        support_case,
    ),
    ("doctor_finds_what_stands_in_the_way", doctor),
    ("events_are_followed_behind_a_restart", followed),
];

const QUICK: &str =
    "probes = []\n[health]\nhold_down = \"500ms\"\n[metrics]\nlisten = \"127.0.0.1:9760\"\n";

fn fail_over() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let manager = UnixDatagram::bind(site.path().join("notify"))?;
    fs::set_permissions(
        site.path().join("notify"),
        fs::Permissions::from_mode(0o666),
    )?;
    manager.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut daemon = Daemon::start_notifying(site, &lab.gateway, &site.path().join("notify"))?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    let flows = site.json(&lab.gateway, &["flows"])?;
    let flow = &flows["flows"][0];
    ensure!(
        flows["pinned"] == 1 && flow["egress"] == "local" && flow["proto"] == "udp",
        "{flows}"
    );
    ensure!(
        flow["destination"] == MEDIA && flow["endpoint_set"] == "Worldwide 11",
        "{flows}"
    );
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let flows = site.json(&lab.gateway, &["flows"])?;
    ensure!(flows["flows"][0]["egress"].is_null(), "{flows}");
    let events = site.json(&lab.gateway, &["events"])?;
    let events = events["events"].as_array().context("events")?;
    let is_down = |event: &&serde_json::Value| {
        event["kind"] == "egress"
            && event["subject"] == "local IPv4"
            && event["what"] == "down, was up"
    };
    let down = events
        .iter()
        .find(is_down)
        .with_context(|| format!("{events:?}"))?;
    ensure!(
        down["why"]
            .as_str()
            .is_some_and(|why| why.contains("no carrier")),
        "{down}"
    );
    ensure!(
        events[0]["kind"] == "ruleset" && events[0]["what"] == "start",
        "{events:?}"
    );
    let text = lab.gateway.exec(
        "curl -sS --header Accept:application/openmetrics-text http://127.0.0.1:9760/metrics",
    )?;
    let same = lab.gateway.exec(&format!(
        "curl -sS --header Accept:application/openmetrics-text --unix-socket {} http://breakout/metrics",
        site.socket().display()
    ))?;
    for line in [
        "breakout_egress_state{egress=\"local\",family=\"ipv4\",state=\"down\"} 1.0",
        "breakout_egress_usable{egress=\"local\",family=\"ipv4\",class=\"media\"} 0.0",
        "breakout_egress_score{egress=\"local\",family=\"ipv4\"} 0.0",
        "breakout_pin_events_total{event=\"moved\"} 1.0",
        "breakout_pinned_flows 1.0",
        "breakout_packets_total{verdict=\"steer\",reason=\"steered\"} ",
        "# TYPE breakout_traffic_bytes counter",
        "# EOF",
    ] {
        ensure!(text.contains(line) && same.contains(line), "{line}: {text}");
    }
    ensure!(
        lab.gateway
            .exec("curl -sS -o /dev/null -w %{http_code} http://127.0.0.1:9760/v1/status")?
            == "404"
    );
    let mut told = Vec::new();
    let mut buffer = [0; 1024];
    while !told.iter().any(|line: &String| line.contains("local down")) {
        let count = manager
            .recv(&mut buffer)
            .with_context(|| format!("{told:?}"))?;
        told.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
    }
    ensure!(told.iter().any(|line| line.contains("READY=1")), "{told:?}");
    ensure!(
        told.iter()
            .any(|line| line.starts_with("STATUS=generation 1, 2 sets steered; local up")),
        "{told:?}"
    );
    let text = String::from_utf8(site.output(&lab.gateway, &["status"])?.stdout)?;
    ensure!(
        text.contains("IPv4 down since")
            && text.contains("no carrier")
            && text.contains("packets   steered "),
        "{text}"
    );
    daemon.stop()?;
    Ok(())
}

/// `breakout events --follow`, of which the last line so far is asked for.
fn followed() -> Result<()> {
    let office = Office::open(QUICK)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let mut follow = site.command(
        &lab.gateway,
        &["events", "--follow", "--json", "--limit", "0"],
    )?;
    let file = site.path().join("events");
    let mut follow = follow
        .stdout(fs::File::create(&file)?)
        .stderr(Stdio::null())
        .spawn()?;
    let lines = || fs::read_to_string(&file).unwrap_or_default();
    let told = |text: &'static str| move |_: &Daemon<'_>| lines().contains(text);
    std::thread::sleep(Duration::from_millis(500));
    ensure!(lines().is_empty(), "{}", lines());
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(told("down, was up"))?;
    daemon.kill()?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(told("up, was down"))?;
    for line in lines().lines() {
        serde_json::from_str::<serde_json::Value>(line)?;
    }
    follow.kill()?;
    follow.wait()?;
    daemon.stop()?;
    Ok(())
}

fn doctor() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let found = || -> Result<(Option<i32>, String)> {
        let output = site.output(&lab.gateway, &["doctor"])?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (code, text) = found()?;
    ensure!(
        code == Some(0) && text.contains("nothing found"),
        "{code:?} {text}"
    );
    let trouble = [
        (
            "sysctl -qw net.ipv4.conf.inet.rp_filter=1",
            "sysctl -w net.ipv4.conf.inet.rp_filter=2",
        ),
        (
            "sysctl -qw net.ipv4.conf.lan.forwarding=0",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (
            "ip rule add fwmark 0x1000000/0x1000000 table 77 priority 950",
            "Set [routing] mark_mask",
        ),
        (
            "ip rule add from 10.1.0.0/24 table 78 priority 800",
            "Set [routing] rule_priority below 800",
        ),
        (
            "ip route add 10.99.0.0/24 dev wan table 5003",
            "Set [routing] table",
        ),
        ("nft add table ip proxy", ""),
        (
            "nft add chain ip proxy pre { type filter hook prerouting priority mangle ; }",
            "",
        ),
        (
            "nft add rule ip proxy pre tcp dport 80 tproxy to :3129 meta mark set 1 accept",
            "nft insert rule ip proxy pre",
        ),
        (
            "ip route add 52.98.7.0/24 via 10.2.0.2",
            "have a [[policy]] pass them",
        ),
    ];
    for (command, _) in trouble {
        lab.gateway.exec(command)?;
    }
    let (code, text) = found()?;
    ensure!(code == Some(9), "{code:?} {text}");
    for (command, advice) in trouble {
        ensure!(text.contains(advice), "after {command}: {text}");
    }
    let output = site.output(&lab.gateway, &["check", "--json"])?;
    ensure!(output.status.code() == Some(9), "{:?}", output.status);
    let checked: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        checked["findings"]
            .as_array()
            .is_some_and(|found| found.len() >= 7),
        "{checked}"
    );
    // What it says is enough: the line for the proxy makes the finding go away.
    let line = text
        .lines()
        .find(|line| line.contains("nft insert rule"))
        .context("the line to paste")?;
    lab.gateway.exec(line.trim())?;
    ensure!(!found()?.1.contains("nft insert rule"), "{}", found()?.1);
    // It is said at the start too.
    lab.gateway
        .exec("sysctl -qw net.ipv4.conf.lan.forwarding=1")?;
    site.configure(&config("probes = []\n"))?;
    let log = Daemon::start(site, &lab.gateway)?.stop()?;
    ensure!(log.contains("strict reverse path filtering"), "{log}");
    Ok(())
}

/// The archive of a gateway with a client, who is in an nftables rule and has a pinned flow, and a proxy's password.
fn support_case() -> Result<()> {
    let office = Office::open(&format!(
        "{QUICK}# proxy = \"http://me:secret@10.2.0.9:8080\"\n"
    ))?;
    let (lab, site) = (&office.lab, &office.site);
    lab.gateway.exec("nft add table inet other")?;
    lab.gateway.exec("nft add chain inet other forward")?;
    // A client, and one behind a router in the LAN.
    for client in ["10.1.0.2", "10.77.3.4"] {
        lab.gateway.exec(&format!(
            "nft add rule inet other forward ip saddr {client} counter"
        ))?;
    }
    lab.gateway.ip("route add 10.77.0.0/16 via 10.1.0.2")?;
    let client_mac = lab.client.exec("cat /sys/class/net/eth0/address")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    let dump = |name: &str, more: &[&str]| -> Result<String> {
        let archive = site.path().join(format!("{name}.tar.gz"));
        let place = archive.to_string_lossy().into_owned();
        let output = site.output(
            &lab.gateway,
            &[&["sysdump", "--output", &place], more].concat(),
        )?;
        ensure!(output.status.success(), "{output:?}");
        let again = site.output(&lab.gateway, &["sysdump", "--output", &place])?;
        ensure!(!again.status.success(), "it wrote over {place}");
        let mode = fs::metadata(&archive)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "others may read it: {mode:o}");
        run(Command::new("tar")
            .args(["--extract", "--gzip", "--to-stdout", "--file"])
            .arg(&archive))
    };
    let masked = dump("masked", &[])?;
    for part in [
        "\"generation\"",
        "\"kind\": \"ruleset\"",
        "default via 10.2.0.2",
        "lookup 5001",
        "table inet breakout-5001",
        "inet 10.1.0.1/24",
        "ip saddr client-",
        "breakout_tc",
        "http://***@10.2.0.9:8080",
        "\"steered\"",
    ] {
        ensure!(
            masked.contains(part),
            "{part} is not in the archive:\n{masked}"
        );
    }
    for secret in [
        "10.1.0.2 ",
        "10.1.0.2\"",
        "10.1.0.2:",
        "10.77.3.4",
        client_mac.trim(),
        "secret",
    ] {
        ensure!(!masked.contains(secret), "{secret} is in the archive");
    }
    let whole = dump("whole", &["--clients"])?;
    ensure!(
        whole.contains("ip saddr 10.1.0.2") && whole.contains("\"source\": \"10.1.0.2:"),
        "--clients gives no clients:\n{whole}"
    );
    ensure!(!whole.contains("secret"), "the password is in the archive");
    // One that hangs is told of by what it has left on the disk.
    daemon.signal(Signal::SIGSTOP)?;
    let hung = dump("hung", &[])?;
    daemon.signal(Signal::SIGCONT)?;
    ensure!(
        hung.contains("status.json: no answer in 5s") && hung.contains("\"kind\": \"ruleset\""),
        "{hung}"
    );
    daemon.stop()?;
    // A configuration that is broken is what is looked for.
    let config = fs::read_to_string(site.config())?;
    fs::write(site.config(), format!("{config}\nintreface = \"lan\"\n"))?;
    let broken = dump("broken", &[])?;
    ensure!(
        broken.contains("unknown key \"intreface\"") && broken.contains("default via"),
        "{broken}"
    );
    ensure!(
        !broken.contains("10.77.3.4") && !broken.contains("secret"),
        "a secret is in the archive"
    );
    fs::write(site.config(), config)?;
    // It is wanted most where nothing runs.
    let without = dump("without", &[])?;
    ensure!(
        without.contains("status.json: no controller listens"),
        "{without}"
    );
    // Without the interface it is not known who the clients are, so no private address is in it.
    lab.gateway.ip("link del lan")?;
    let unknown = dump("unknown", &[])?;
    ensure!(
        unknown.contains("ip saddr client-")
            && unknown.contains("masked where they are private")
            && unknown.contains("private addresses are masked, public ones are not"),
        "the client is not masked"
    );
    ensure!(
        !unknown.contains("10.1.0.2"),
        "the client is in the archive"
    );
    Ok(())
}
