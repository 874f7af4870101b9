//! Beside others: a transparent proxy on the same gateway, and another tool's marks, rules and tables.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::Lab;
use breakout_tests::manual::block;
use breakout_tests::server::Web;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::Test;
use crate::office::Office;

pub(crate) const TESTS: &[Test] = &[
    (
        "squid_by_redirect_sees_only_what_is_not_steered",
        by_redirect,
    ),
    ("squid_by_tproxy_sees_only_what_is_not_steered", by_tproxy),
    ("squid_sees_nothing_of_redirect_mode", by_redirect_mode),
    ("what_others_have_stays_as_it_is", others),
];

/// Real Squid on the gateway. It ends with the handle.
struct Squid {
    directory: TempDir,
    child: Child,
}

impl Squid {
    fn start(lab: &Lab, port_line: &str) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("breakout-squid-")
            .tempdir()?;
        // Squid gives up root, and its own user writes there.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        let path = directory.path().display();
        let config = format!(
            "http_port 3128\n{port_line}\nhttp_access allow all\ncache deny all\naccess_log stdio:{path}/access.log\n\
             logfile_rotate 0\nbuffered_logs off\ncache_log {path}/cache.log\npid_filename none\nvisible_hostname gateway\n\
             coredump_dir {path}\nnetdb_filename none\npinger_enable off\nicon_directory {path}\nhost_verify_strict off\n\
             client_dst_passthru on\nshutdown_lifetime 1 seconds\n"
        );
        let file = directory.path().join("squid.conf");
        fs::write(&file, config)?;
        let mut command = lab.gateway.command("squid");
        // By its name squid keeps its shared memory apart from that of others.
        let name = lab
            .gateway
            .name()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "");
        command.arg("-N").arg("-n").arg(name).arg("-f").arg(&file);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("squid")?;
        let squid = Squid { directory, child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !lab.gateway.exec("ss -Hltn sport = :3129")?.contains("3129") {
            if Instant::now() > deadline {
                let log = fs::read_to_string(squid.directory.path().join("cache.log"));
                bail!("squid does not start: {}", log.unwrap_or_default());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(squid)
    }

    /// What it has logged.
    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default()
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        // `ip netns exec` has become squid, which removes its shared memory when it is asked to end.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline
        {
            sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP server at both ends, for each address, which says where it stands.
fn web(lab: &Lab) -> Result<Vec<Web>> {
    let mut servers = Vec::new();
    for (namespace, identity) in [(&lab.internet, "internet"), (&lab.wan, "wan")] {
        for address in [STEERED, OTHER] {
            let address = SocketAddr::new(address.parse()?, 80);
            servers.push(Web::start(namespace, address, identity)?);
        }
    }
    Ok(servers)
}

const STEERED: &str = "52.98.1.1";
const OTHER: &str = "203.0.113.1";

/// Asks for a page; returns who has answered.
fn page(lab: &Lab, address: &str) -> Result<String> {
    let answer = lab.client.exec(&format!(
        "curl -sS --max-time 5 http://{address}/page-{address}"
    ))?;
    Ok(answer.trim().to_owned())
}

/// Waits for what the log should have, since it follows the answers. Returns whether it came.
fn logged(squid: &Squid, has: impl Fn(&str) -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !has(&squid.log()) {
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(20));
    }
    true
}

fn check(lab: &Lab, squid: &Squid) -> Result<()> {
    for round in 0..3 {
        ensure!(page(lab, STEERED)? == "internet", "round {round}");
        ensure!(page(lab, OTHER)? == "wan", "round {round}");
    }
    logged(squid, |log| log.lines().count() >= 3);
    let log = squid.log();
    ensure!(!log.contains(STEERED), "squid saw steered flows: {log}");
    let seen = log.lines().filter(|line| line.contains(OTHER)).count();
    ensure!(seen == 3, "squid saw {seen} of 3 ordinary requests: {log}");
    Ok(())
}

fn office(more: &str) -> Result<Office> {
    let office = Office::open("")?;
    let list =
        fs::read_to_string(office.site.path().join("list.json"))?.replace("\"443\"", "\"80,443\"");
    fs::write(office.site.path().join("list.json"), list)?;
    office.site.configure(&crate::office::config(more))?;
    Ok(office)
}

fn by_redirect() -> Result<()> {
    let office = office("probes = []\n")?;
    let lab = &office.lab;
    let _servers = web(lab)?;
    let squid = Squid::start(lab, "http_port 3129 intercept")?;
    lab.gateway.exec("nft add table ip squid")?;
    lab.gateway
        .exec("nft add chain ip squid pre { type nat hook prerouting priority dstnat ; }")?;
    lab.gateway
        .exec("nft add rule ip squid pre iifname lan tcp dport 80 redirect to :3129")?;
    let daemon = Daemon::start(&office.site, &lab.gateway)?;
    check(lab, &squid)?;
    // And by iptables, where that is what the operator has.
    lab.gateway.exec("nft delete table ip squid")?;
    lab.gateway.exec(
        "iptables -t nat -A PREROUTING -i lan -p tcp --dport 80 -j REDIRECT --to-ports 3129",
    )?;
    ensure!(page(lab, STEERED)? == "internet" && page(lab, OTHER)? == "wan");
    ensure!(
        logged(&squid, |log| log.matches(OTHER).count() >= 4) && !squid.log().contains(STEERED),
        "{}",
        squid.log()
    );
    daemon.stop()?;
    ensure!(
        page(lab, STEERED)? == "wan" && logged(&squid, |log| log.contains(STEERED)),
        "without us squid sees it"
    );
    Ok(())
}

/// XDP passes steered packets by all of netfilter.
fn by_redirect_mode() -> Result<()> {
    let office = office("probes = []\n")?;
    let lab = &office.lab;
    let config = crate::office::config("probes = []\n");
    office
        .site
        .configure(&config.replace("masquerade = true", "mode = \"redirect\""))?;
    lab.internet.ip("route add 10.1.0.0/24 via 10.3.0.1")?;
    lab.internet.ip("route add fd00:1::/64 via fd00:3::1")?;
    let _servers = web(lab)?;
    let squid = Squid::start(lab, "http_port 3129 intercept")?;
    lab.gateway.exec("nft add table ip squid")?;
    lab.gateway
        .exec("nft add chain ip squid pre { type nat hook prerouting priority dstnat ; }")?;
    lab.gateway
        .exec("nft add rule ip squid pre iifname lan tcp dport 80 redirect to :3129")?;
    let mut daemon = Daemon::start(&office.site, &lab.gateway)?;
    daemon.wait_until(|_| office.site.next_hops_known(&lab.gateway))?;
    check(lab, &squid)?;
    daemon.stop()?;
    Ok(())
}

/// Each line of the manual's is what doctor prints, and does what it says.
fn by_tproxy() -> Result<()> {
    let lines = block("docs/gateway.md", "sh", 1)?;
    for (table, line) in [
        ("nft", "nft insert rule"),
        ("iptables", "iptables -t mangle -I"),
    ] {
        let office = office("probes = []\n")?;
        let lab = &office.lab;
        let _servers = web(lab)?;
        let squid = Squid::start(lab, "http_port 3129 tproxy")?;
        lab.gateway
            .exec("ip rule add fwmark 1/0xff lookup 100 priority 100")?;
        lab.gateway
            .exec("ip route add local 0.0.0.0/0 dev lo table 100")?;
        let rules: &[&str] = if table == "nft" {
            &[
                "nft add table ip squid",
                "nft add chain ip squid prerouting { type filter hook prerouting priority mangle ; }",
                "nft add rule ip squid prerouting meta l4proto tcp socket transparent 1 meta mark set 1 accept",
                "nft add rule ip squid prerouting iifname lan tcp dport 80 tproxy to :3129 meta mark set 1 accept",
            ]
        } else {
            &[
                "iptables -t mangle -A PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 1/0xff",
                "iptables -t mangle -A PREROUTING -p tcp -m socket --transparent -j ACCEPT",
                "iptables -t mangle -A PREROUTING -i lan -p tcp --dport 80 -j TPROXY --on-port 3129 --tproxy-mark 1/0xff",
            ]
        };
        for rule in rules {
            lab.gateway.exec(rule)?;
        }
        let daemon = Daemon::start(&office.site, &lab.gateway)?;
        ensure!(
            daemon.log().contains("transparent proxy (TPROXY)"),
            "{}",
            daemon.log()
        );
        page(lab, STEERED)?;
        ensure!(
            logged(&squid, |log| log.contains(STEERED)),
            "{table}: without the line squid sees them"
        );
        let found = || -> Result<String> {
            let output = office.site.output(&lab.gateway, &["doctor"])?;
            Ok(String::from_utf8(output.stdout)?)
        };
        let text = found()?;
        let mut printed = text.lines().filter(|text| text.contains(line));
        let printed = printed.next().context("a line to paste")?.trim();
        ensure!(
            lines.lines().any(|line| line == printed),
            "{printed} is not in the manual"
        );
        lab.gateway.exec(printed)?;
        ensure!(!found()?.contains(line), "{}", found()?);
        fs::write(squid.directory.path().join("access.log"), "")?;
        check(lab, &squid)?;
        daemon.stop()?;
    }
    Ok(())
}

/// Another tool in the style of mwan3: its own marks, saved in the connections, its rules and tables.
fn others() -> Result<()> {
    let office = office("probes = []\n[health]\nhold_down = \"200ms\"\n")?;
    let lab = &office.lab;
    let _servers = web(lab)?;
    for command in [
        "ip rule add lookup main suppress_prefixlength 0 priority 2000",
        "ip rule add fwmark 0x100/0x3f00 lookup 1 priority 2001",
        "ip route add default via 10.2.0.2 table 1",
        "nft add table inet mwan",
        "nft add chain inet mwan pre { type filter hook prerouting priority mangle ; }",
        "iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x3f00 --ctmask 0x3f00",
        // All that has no mark of its own yet gets one, as mwan3's default rule does it.
        "nft add rule inet mwan pre iifname lan meta mark and 0x3f00 == 0 meta mark set meta mark and 0xffffc0ff or 0x100",
        "iptables -t mangle -A POSTROUTING -j CONNMARK --save-mark --nfmask 0x3f00 --ctmask 0x3f00",
        "nft add chain inet mwan seen { type filter hook postrouting priority 0 ; }",
        "nft add rule inet mwan seen meta l4proto tcp oifname \"inet\" meta mark and 0xe0ffffff != 0x100 counter drop",
        "nft add rule inet mwan seen meta l4proto tcp oifname \"wan\" meta mark != 0x100 counter drop",
    ] {
        lab.gateway.exec(command)?;
    }
    let theirs = || -> Result<String> {
        let mut text = String::new();
        for command in [
            "nft -s list table inet mwan",
            "iptables-save",
            "ip6tables-save",
            "ip rule show",
            "ip -6 rule show",
            "ip route show table 1",
            "ip route show table main",
            "ip -6 route show table main",
        ] {
            // Comments have the time, chains of iptables their counters, and routes flags of the carrier.
            let text_of = lab.gateway.exec(command)?;
            let lines = text_of.lines().filter(|line| !line.starts_with(['#', ':']));
            for line in lines {
                text.push_str(line.trim_end_matches(" linkdown").trim_end());
                text.push('\n');
            }
        }
        Ok(text)
    };
    let (before, ours) = (theirs()?, |text: &str| {
        text.lines()
            .filter(|line| !line.contains("proto 76"))
            .collect::<Vec<_>>()
            .join("\n")
    });
    let mut daemon = Daemon::start(&office.site, &lab.gateway)?;
    for _ in 0..3 {
        ensure!(page(lab, STEERED)? == "internet");
        ensure!(page(lab, OTHER)? == "wan");
        ensure!(Flow::new(Transport::Tcp, OTHER, 443).talk(&lab.client)? == "wan");
    }
    // Work: a reload, a link that fails, a controller that is killed.
    ensure!(
        office
            .site
            .output(&lab.gateway, &["reload"])?
            .status
            .success()
    );
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(office.is_up(false))?;
    ensure!(page(lab, STEERED)? == "wan");
    lab.internet.ip("link set eth0 up")?;
    daemon.kill()?;
    let mut daemon = Daemon::start(&office.site, &lab.gateway)?;
    daemon.wait_until(office.is_up(true))?;
    ensure!(page(lab, STEERED)? == "internet");
    ensure!(
        ours(&before) == ours(&theirs()?),
        "while we run:\n{before}\n---\n{}",
        theirs()?
    );
    let dropped = lab.gateway.exec("nft list chain inet mwan seen")?;
    ensure!(
        dropped.matches("counter packets 0").count() == 2,
        "marks beyond our mask: {dropped}"
    );
    daemon.stop()?;
    ensure!(
        before == theirs()?,
        "after we stopped:\n{before}\n---\n{}",
        theirs()?
    );
    Ok(())
}
