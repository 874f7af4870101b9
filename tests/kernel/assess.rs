//! `breakout assess` in a lab whose names, front door and relay are real ones: each fault is told by its own test, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::fake_service::{Credentials, FakeService, Mood};
use breakout_tests::lab::{Lab, connect};
use breakout_tests::netns::Namespace;
use breakout_tests::running::Running;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Test;
use crate::coturn::Coturn;
use crate::office::{Office, address, config};

pub(crate) const TESTS: &[Test] = &[
    ("assess_tells_each_fault_and_nothing_else", faults),
    ("assess_in_redirect_mode_leaves_no_route", redirect),
];

const DOOR: &str = "52.112.0.10";
const RELAY: &str = "52.112.0.9";

/// Names, a front door and a relay.
struct Town {
    office: Office,
    /// The front door's place, behind a router.
    _far: Namespace,
    door: FakeService,
    _relays: Vec<Coturn>,
    _resolvers: [Running; 2],
}

impl Town {
    fn open(mode: &str, more: &str) -> Result<Self> {
        let office = Office::open("")?;
        let (lab, site) = (&office.lab, &office.site);
        lab.own(
            [RELAY, "52.112.0.12", "52.112.0.13"].map(|text| address(&format!("{text}:0")).ip()),
        )?;
        lab.wan.ip(&format!("addr add {DOOR}/32 dev lo"))?;
        let far = Namespace::create(lab.internet.name().replace("internet", "far"))?;
        connect(&lab.internet, "far", &far, "eth0")?;
        lab.internet.sysctl("net.ipv4.ip_forward", 1)?;
        lab.internet.ip_lines(&format!(
            "addr add 10.8.0.1/24 dev far
             route add {DOOR} via 10.8.0.2"
        ))?;
        far.ip_lines(&format!(
            "link set lo up
             addr add 10.8.0.2/24 dev eth0
             addr add {DOOR}/32 dev lo
             route add default via 10.8.0.1"
        ))?;
        let end = address(&format!("{DOOR}:443"));
        let door = far.enter(|| FakeService::start_at(end, Credentials::OtherHost))?;
        door.state().root = Some((302, "Microsoft-IIS/10.0".to_owned()));
        fs::write(site.path().join("ca.pem"), door.ca())?;
        let options = ["--lt-cred-mech", "--user=a:b", "--realm=r"];
        let relays =
            [&lab.internet, &lab.wan].map(|end| Coturn::start(end, site.path(), RELAY, &options));
        let resolvers = [resolver(&lab.wan)?, resolver(&lab.internet)?];
        site.configure(&config(&format!(
            "probes = []\nmode = \"{mode}\"\nresolver = \"10.3.0.2\"\n[health]\nca_file = \"ca.pem\"\n[assess]\nresolver = \"10.2.0.2\"\n{more}"
        )))?;
        Ok(Town {
            office,
            _far: far,
            door,
            _relays: relays.into_iter().collect::<Result<_>>()?,
            _resolvers: resolvers,
        })
    }

    /// Assesses, and returns the results.
    fn assess(&self, more: &[&str]) -> Result<Vec<Value>> {
        let (lab, site) = (&self.office.lab, &self.office.site);
        let arguments = [&["assess", "--call", "2s", "--json"], more].concat();
        let output = site.output(&lab.gateway, &arguments)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let parsed: Value = serde_json::from_str(&text)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let results = parsed["results"].as_array().context("no results")?.clone();
        let has_failed = results.iter().any(|result| result["verdict"] == "fail");
        let expected = if has_failed { 9 } else { 0 };
        ensure!(
            output.status.code() == Some(expected),
            "{:?}: {text}",
            output.status
        );
        Ok(results)
    }
}

/// The tests that do not pass: egress, test and verdict.
fn complaints(results: &[Value]) -> Vec<String> {
    let bad = results.iter().filter(|result| {
        ["warning", "fail"]
            .iter()
            .any(|verdict| result["verdict"] == *verdict)
    });
    bad.map(|result| {
        let text = |key: &str| result[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text("egress"), text("test"), text("verdict"))
    })
    .collect()
}

const NAMES: &str = "targets = [\"tls:elsewhere.example\", \"turn:relay.example\"]\n";

/// A fault of the lab.
struct Fault<'a> {
    what: &'a str,
    /// Commands that make it at the internet's end.
    make: &'a [&'a str],
    unmake: &'a [&'a str],
    /// Arguments of the command.
    more: &'a [&'a str],
    expected: &'a [&'a str],
}

const RULES: [&str; 4] = [
    "nft add table ip fault",
    "nft add chain ip fault in { type filter hook input priority 0 ; }",
    "nft add chain ip fault through { type filter hook forward priority 0 ; }",
    "nft add chain ip fault pre { type nat hook prerouting priority dstnat ; }",
];

fn faults() -> Result<()> {
    let town = Town::open("route", NAMES)?;
    let (lab, site) = (&town.office.lab, &town.office.site);
    let _slow = Slow::start(&lab.internet, "52.112.0.12:3478", [80, 80])?;
    let _uneven = Slow::start(&lab.internet, "52.112.0.13:3478", [0, 45])?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    let clean = town.assess(&[])?;
    ensure!(complaints(&clean).is_empty(), "{:?}", complaints(&clean));
    for test in [
        "dns_time",
        "dns_local",
        "tcp_latency",
        "tls",
        "http",
        "segment_size",
        "tcp_options",
        "relay",
        "media_latency",
        "media_loss",
        "media_burst",
        "media_jitter",
        "media_reordering",
        "hairpin",
        "public_address",
    ] {
        let passes = clean
            .iter()
            .any(|result| result["test"] == test && result["verdict"] == "pass");
        ensure!(passes, "{test} has not passed: {clean:?}");
    }
    let public = clean
        .iter()
        .find(|result| result["test"] == "public_address" && result["egress"] == "local");
    ensure!(
        public.is_some_and(|result| result["found"] == "10.3.0.1"),
        "{public:?}"
    );

    let drop = "nft add rule ip fault in udp dport 3478 numgen inc mod 20 < 1 drop";
    let idle = "nft add rule ip fault through tcp dport 443 ct state invalid drop";
    for fault in [
        Fault {
            what: "5 % of the packets to relays are lost",
            make: &[drop],
            expected: &["local media_loss fail", "local media_burst warning"],
            ..Fault::NONE
        },
        Fault {
            what: "UDP does not get through",
            make: &["nft add rule ip fault in udp dport 3478 drop"],
            expected: &["local relay fail"],
            ..Fault::NONE
        },
        Fault {
            what: "a device lowers the segment size",
            make: &["nft add rule ip fault through tcp flags syn tcp option maxseg size set 1300"],
            expected: &["local segment_size warning"],
            ..Fault::NONE
        },
        Fault {
            what: "a device removes selective acknowledgements",
            make: &["nft add rule ip fault through tcp flags syn reset tcp option sack-perm"],
            expected: &["local tcp_options warning"],
            ..Fault::NONE
        },
        Fault {
            what: "the relay is far away",
            make: &["nft add rule ip fault pre udp dport 3478 dnat to 52.112.0.12"],
            expected: &["local media_latency warning"],
            ..Fault::NONE
        },
        Fault {
            what: "latencies vary, and answers overtake each other",
            make: &["nft add rule ip fault pre udp dport 3478 dnat to 52.112.0.13"],
            expected: &["local media_jitter fail", "local media_reordering fail"],
            ..Fault::NONE
        },
        Fault {
            what: "a perimeter forgets idle connections",
            make: &[
                "sysctl -q -w net.netfilter.nf_conntrack_tcp_loose=0 net.netfilter.nf_conntrack_tcp_timeout_established=2",
                idle,
            ],
            unmake: &["sysctl -q -w net.netfilter.nf_conntrack_tcp_timeout_established=432000"],
            more: &["--idle", "5s"],
            expected: &["local idle_connection fail"],
        },
    ] {
        for line in RULES.iter().chain(fault.make) {
            lab.internet.exec(line)?;
        }
        let results = town.assess(fault.more)?;
        ensure!(
            complaints(&results) == fault.expected,
            "{}: {:?} {results:?}",
            fault.what,
            complaints(&results)
        );
        lab.internet.exec("nft delete table ip fault")?;
        for line in fault.unmake {
            lab.internet.exec(line)?;
        }
    }

    for (status, server) in [(407, "any"), (403, "squid/6.13")] {
        town.door.state().root = Some((status, server.to_owned()));
        let results = town.assess(&[])?;
        ensure!(
            complaints(&results) == ["local http fail"],
            "{:?}",
            complaints(&results)
        );
    }
    town.door.state().root = Some((403, "Microsoft-IIS/10.0".to_owned()));
    ensure!(complaints(&town.assess(&[])?).is_empty());
    // Nobody has signed its certificate.
    fs::write(
        site.path().join("ca.pem"),
        FakeService::start(Credentials::Good)?.ca(),
    )?;
    ensure!(complaints(&town.assess(&[])?) == ["local tls fail"]);
    ensure!(complaints(&town.assess(&["--egress", "local"])?) == ["local tls fail"]);
    let unknown = site.output(&lab.gateway, &["assess", "--egress", "nobody"])?;
    let message = String::from_utf8_lossy(&unknown.stderr);
    ensure!(message.contains("there is no egress nobody"), "{message}");
    daemon.stop()?;
    Ok(())
}

impl Fault<'_> {
    const NONE: Fault<'static> = Fault {
        what: "",
        make: &[],
        unmake: &[],
        more: &[],
        expected: &[],
    };
}

/// A full link in redirect mode; the routes are gone at the end.
fn redirect() -> Result<()> {
    let download = "download = \"https://elsewhere.example/endpoints/all?clientrequestid=1\"\n";
    let town = Town::open("redirect", &format!("{NAMES}{download}"))?;
    let (lab, site) = (&town.office.lab, &town.office.site);
    let daemon = Daemon::start(site, &lab.gateway)?;
    let before = routes(lab)?;
    town.door.state().endpoints_mood = Some(Mood::Huge(200 << 20));
    // Half a second of buffer at ten megabits per second.
    lab.internet
        .exec("tc qdisc add dev eth0 root tbf rate 4mbit burst 16k latency 500ms")?;
    let results = town.assess(&[])?;
    let complaints = complaints(&results);
    ensure!(
        complaints == ["local download fail", "local loaded_latency fail"],
        "{complaints:?} {results:?}"
    );
    ensure!(routes(lab)? == before, "{}", routes(lab)?);
    // Somebody has enough of it.
    let mut command = site.command(&lab.gateway, &["assess"])?;
    let assessment = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let started = Instant::now();
    while routes(lab)? == before && started.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(100));
    }
    let pid = Pid::from_raw(i32::try_from(assessment.id())?);
    kill(pid, Signal::SIGTERM)?;
    let output = assessment.wait_with_output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(message.contains("breakout: interrupted"), "{message}");
    ensure!(routes(lab)? == before, "{}", routes(lab)?);
    daemon.stop()?;
    let refused = site.output(&lab.gateway, &["assess"])?;
    ensure!(refused.status.code() == Some(6), "{refused:?}");
    Ok(())
}

fn routes(lab: &Lab) -> Result<String> {
    Ok([
        lab.gateway.ip("route show")?,
        lab.gateway.ip("-6 route show")?,
    ]
    .concat())
}

/// Starts dnsmasq at a far end.
fn resolver(namespace: &Namespace) -> Result<Running> {
    let mut command = namespace.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file",
    ]);
    command.arg(format!("--address=/elsewhere.example/{DOOR}"));
    command.arg(format!("--address=/relay.example/{RELAY}"));
    command.args(["--local=/elsewhere.example/", "--local=/relay.example/"]);
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Running(command.spawn().context("dnsmasq")?))
}

/// A relay far away: it answers binding requests after so many milliseconds, of every second one and the others. It ends with the handle.
struct Slow(Arc<AtomicBool>);

impl Slow {
    fn start(namespace: &Namespace, at: &str, delays: [u64; 2]) -> Result<Self> {
        let at: SocketAddr = address(at);
        let socket = namespace.enter(move || Ok(UdpSocket::bind(at)?))?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        thread::spawn(move || {
            let (mut buffer, mut count) = ([0; 1500], 0);
            let mut answers = BTreeMap::<(Instant, usize), (SocketAddr, Vec<u8>)>::new();
            while !flag.load(Ordering::Relaxed) {
                while let Some(answer) = answers
                    .first_entry()
                    .filter(|first| first.key().0 <= Instant::now())
                {
                    let (to, answer) = answer.remove();
                    // The client may have gone.
                    let _ = socket.send_to(&answer, to);
                }
                let Ok((length, client)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                if length >= 20 && buffer[..2] == [0, 1] {
                    count += 1;
                    let due = Instant::now() + Duration::from_millis(delays[count % 2]);
                    answers.insert(
                        (due, count),
                        (client, [&[1, 1, 0, 0], &buffer[4..20]].concat()),
                    );
                }
            }
        });
        Ok(Slow(stop))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
