//! Fail-over beside everything else that keeps a controller busy: what hangs, what floods, and what takes all descriptors.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::Stream;
use breakout_tests::netns::{Namespace, run};
use breakout_tests::running::Running;

use crate::Test;
use crate::office::{MEDIA, Office, address, config};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_silent_gateway_is_left_amid_a_changing_routing_table",
        routes,
    ),
    (
        "a_dead_link_is_left_while_neighbours_come_and_go",
        neighbours,
    ),
    ("a_dead_link_is_left_while_nft_and_ethtool_hang", hanging),
    (
        "a_dead_link_is_left_while_idle_connections_take_all_descriptors",
        idle,
    ),
    ("a_reload_without_descriptors_changes_nothing", descriptors),
];

/// Longer than any gap that fail-over may leave.
const GAP: Duration = Duration::from_secs(1);
const QUIET: &str = "probes = []\n[health]\nhold_down = \"500ms\"\n";

/// What goes on in the background until it is dropped.
struct Noise(#[expect(dead_code, reason = "it is held until it is dropped")] Running);

impl Noise {
    fn start(namespace: &Namespace, script: &str) -> Result<Self> {
        let mut command = namespace.command("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Noise(Running(command.spawn()?)))
    }
}

/// Cuts the link and sees that a call is at the WAN within a second.
fn fails_over(
    office: &Office,
    daemon: &mut Daemon<'_>,
    cut: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let call = Stream::start(&office.lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    let before = Instant::now();
    cut()?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    let gap = call.gap_since(before);
    ensure!(gap < GAP, "silent for {gap:?}\n{}", daemon.log());
    Ok(())
}

/// A routing table like that of a border router, in the gateway's main table, beside the links that are used here.
fn routes() -> Result<()> {
    let probes = "probes = [\"icmp:10.3.0.2\"]\n[health]\nhold_down = \"500ms\"\n";
    let office = Office::open(probes)?;
    let (lab, site) = (&office.lab, &office.site);
    let routes: String = (0..100_000u32)
        .map(|n| {
            format!(
                "route add 100.{}.{}.{}/32 via 10.2.0.2\n",
                n >> 16,
                n >> 8 & 255,
                n & 255
            )
        })
        .collect();
    lab.gateway.ip_lines(&routes)?;
    // Learnt from the routes, the gateway is looked for among all of them.
    lab.gateway
        .ip("route add default via 10.3.0.2 dev inet metric 500")?;
    let learnt = config(probes).replace("gateway = \"10.3.0.2\"\n", "");
    site.configure(&learnt)?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(office.is_up(true))?;
    let _churn = Noise::start(
        &lab.gateway,
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo route add 99.0.$((i%250)).0/24 via 10.2.0.2; \
         echo route del 99.0.$((i%250)).0/24; sleep 0.002; done | ip -force -batch -",
    )?;
    thread::sleep(Duration::from_secs(3));
    fails_over(&office, &mut daemon, || {
        lab.internet.sysctl("net.ipv4.icmp_echo_ignore_all", 1)
    })?;
    daemon.stop()?;
    Ok(())
}

fn neighbours() -> Result<()> {
    let office = Office::open(QUIET)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    let _churn = Noise::start(
        &lab.gateway,
        "for round in $(seq 2000); do for n in $(seq 200); do \
         echo neigh replace 10.2.1.$n lladdr 02:00:00:00:$(printf %02x $((round%256))):$(printf %02x $n) dev wan; \
         done; sleep 0.1; done | ip -force -batch -",
    )?;
    thread::sleep(Duration::from_secs(2));
    fails_over(&office, &mut daemon, || {
        lab.internet.ip("link set eth0 down").map(drop)
    })?;
    daemon.stop()?;
    Ok(())
}

/// Programs that hang, in the place of the real ones.
fn hanging() -> Result<()> {
    let office = Office::open(QUIET)?;
    let (lab, site) = (&office.lab, &office.site);
    let programs = site.path().join("hang");
    fs::create_dir(&programs)?;
    for program in ["nft", "ethtool"] {
        // It works at first, as it must for the table to be made.
        let script = format!(
            "#!/bin/sh\n[ -e {}/now ] && exec sleep 60\nexec /usr/sbin/{program} \"$@\"\n",
            programs.display()
        );
        let path = programs.join(program);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let redirecting = format!(
        "{}[egress.other]\ninterface = \"wan\"\ngateway = \"10.2.0.2\"\nmode = \"redirect\"\nprobes = []\n",
        config("probes = []\n")
    );
    site.configure(&redirecting)?;
    let mut daemon = Daemon::start_with_programs(site, &lab.gateway, &programs)?;
    fs::write(programs.join("now"), "")?;
    // Somebody else's nft still works: the controller wants to put its table back, and cannot.
    lab.gateway.exec("nft flush ruleset")?;
    lab.gateway.exec("nft add table inet office")?;
    lab.gateway
        .exec("nft add chain inet office post { type nat hook postrouting priority srcnat ; }")?;
    lab.gateway
        .exec("nft add rule inet office post oifname \"inet\" masquerade")?;
    thread::sleep(Duration::from_secs(1));
    fails_over(&office, &mut daemon, || {
        lab.internet.ip("link set eth0 down").map(drop)
    })?;
    let asked = Instant::now();
    site.json(&lab.gateway, &["status"])?;
    ensure!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    daemon.wait_until(|daemon| daemon.log().contains("nft did not answer within 5 s"))?;
    lab.internet.ip("link set eth0 up")?;
    lab.internet.ip("addr add 10.3.0.2/24 dev eth0").ok();
    fs::remove_file(programs.join("now"))?;
    daemon.wait_until(|daemon| daemon.log().contains("was made again"))?;
    daemon.stop()?;

    // A start is not held up either.
    fs::write(programs.join("now"), "")?;
    fs::remove_file(programs.join("nft"))?;
    let started = Instant::now();
    let daemon = Daemon::start_with_programs(site, &lab.gateway, &programs)?;
    ensure!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    daemon.stop()?;
    Ok(())
}

/// Anybody may connect to the metrics' address and say nothing.
fn idle() -> Result<()> {
    let settings = format!("{QUIET}[metrics]\nlisten = \"127.0.0.1:9763\"\n");
    let office = Office::open(&settings)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    limit_descriptors(&daemon, 256)?;
    let connections = lab.gateway.enter(|| {
        let connect = |_| TcpStream::connect("127.0.0.1:9763");
        let all = (0..600).map(connect).collect::<Result<Vec<_>, _>>();
        all.context("cannot connect to the metrics")
    })?;
    ensure!(descriptor_count(&daemon)? < 200);
    let asked = site.json(&lab.gateway, &["status"]);
    ensure!(asked.is_ok(), "{asked:?}");
    // Without any left at all, fail-over goes on.
    limit_descriptors(&daemon, descriptor_count(&daemon)?)?;
    fails_over(&office, &mut daemon, || {
        lab.internet.ip("link set eth0 down").map(drop)
    })?;
    drop(connections);
    limit_descriptors(&daemon, 1024)?;
    daemon.stop()?;
    Ok(())
}

/// By the controller's own account, which needs no privilege for that.
fn limit_descriptors(daemon: &Daemon<'_>, limit: usize) -> Result<()> {
    let pid = daemon.pid().to_string();
    let account = fs::metadata(format!("/proc/{pid}"))?;
    let (user, group) = (account.uid().to_string(), account.gid().to_string());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &group, "--clear-groups"]);
    command.args(["prlimit", "--pid", &pid]);
    run(command.arg(format!("--nofile={limit}:"))).map(drop)
}

fn descriptor_count(daemon: &Daemon<'_>) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count())
}

fn descriptors() -> Result<()> {
    let office = Office::open(QUIET)?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    // But for what packets change.
    let uncounted = || {
        let mut status = site.json(&lab.gateway, &["status"])?;
        for family in ["v4", "v6"] {
            status["egress"]["local"][family]["standing"]["answers"].take();
        }
        anyhow::Ok(status)
    };
    let before = uncounted()?;
    let other = config(QUIET).replace("[egress.local]", "[egress.another]");
    site.configure(&other)?;
    let mut refused = 0;
    // From just enough to answer a command on.
    let count = descriptor_count(&daemon)?;
    for spare in 1..12 {
        limit_descriptors(&daemon, count + spare)?;
        let Ok(output) = site.output(&lab.gateway, &["reload"]) else {
            continue;
        };
        if output.status.success() {
            break;
        }
        refused += 1;
        limit_descriptors(&daemon, 1024)?;
        let now = uncounted()?;
        ensure!(now["ruleset"] == before["ruleset"], "{spare}: {now}");
        ensure!(now["egress"] == before["egress"], "{spare}: {now}");
        ensure!(office.new_way()? == "internet", "with {spare} descriptors");
    }
    ensure!(refused > 3, "{refused} reloads were refused");
    limit_descriptors(&daemon, 1024)?;
    let output = site.output(&lab.gateway, &["reload"])?;
    ensure!(output.status.success(), "{output:?}");
    daemon.wait_until(|_| office.new_way().is_ok_and(|way| way == "internet"))?;
    let status = site.json(&lab.gateway, &["status"])?;
    status["egress"]
        .get("another")
        .context("the new egress is there")?;
    daemon.stop()?;
    Ok(())
}
