//! `breakout sysdump`: what a support case needs, in one archive. No packets, and no clients' addresses unless they are wanted.

mod mask;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::Config;
use crate::control::{Client, EventsQuery, FlowsQuery, in_time};
use crate::controller::{read_lists, summary};
use crate::doctor::examine;
use crate::durable::read_text;
use crate::events::Events;
use crate::journal;
use crate::links::Links;
use crate::private;
use crate::ruleset::Ruleset;
use crate::secrets::{masked, without_comments};
use crate::timestamp::Timestamp;
use mask::Mask;

/// Time that one program may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time that the controller may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Flows that are put in, if clients' addresses are wanted.
const FLOWS: usize = 10_000;

/// Programs whose output is put in. LAN and EGRESS stand for each of these interfaces.
const PROGRAMS: &[(&str, &str)] = &[
    ("system/uname.txt", "uname -a"),
    ("system/os-release.txt", "cat /etc/os-release"),
    ("system/memory.txt", "cat /proc/meminfo"),
    (
        "system/sysctl.txt",
        "sysctl -a --pattern ^net\\.(ipv4|ipv6)\\.(ip_forward|conf\\..*\\.(forwarding|rp_filter|src_valid_mark))$",
    ),
    ("system/sockets.txt", "cat /proc/net/sockstat"),
    (
        "system/service.txt",
        "systemctl status --no-pager --lines 0 breakout breakout-datapath",
    ),
    (
        "system/log.txt",
        "journalctl --no-pager --unit breakout --unit breakout-datapath --lines 2000",
    ),
    ("system/nft-version.txt", "nft --version"),
    (
        "system/conntrack.txt",
        "cat /proc/sys/net/netfilter/nf_conntrack_count /proc/sys/net/netfilter/nf_conntrack_max",
    ),
    ("network/links.txt", "ip -details -statistics link show"),
    ("network/addresses.txt", "ip address show"),
    ("network/rules.txt", "ip rule show"),
    ("network/rules6.txt", "ip -6 rule show"),
    ("network/routes.txt", "ip route show table all"),
    ("network/routes6.txt", "ip -6 route show table all"),
    ("network/nft.txt", "nft list ruleset"),
    ("network/iptables.txt", "iptables-save"),
    ("network/LAN/qdisc.txt", "tc -statistics qdisc show dev LAN"),
    (
        "network/LAN/filters.txt",
        "tc -statistics filter show dev LAN ingress",
    ),
    ("network/LAN/driver.txt", "ethtool -i LAN"),
    ("network/LAN/offloads.txt", "ethtool -k LAN"),
    ("network/EGRESS/driver.txt", "ethtool -i EGRESS"),
    ("network/EGRESS/offloads.txt", "ethtool -k EGRESS"),
    ("ebpf/programs.json", "bpftool --json prog show"),
    ("ebpf/maps.json", "bpftool --json map show"),
    ("ebpf/links.json", "bpftool --json link show"),
    ("ebpf/net.json", "bpftool --json net show"),
    ("ebpf/pins.txt", "find /sys/fs/bpf -mindepth 1"),
];

/// Summary of an archive.
#[derive(Debug, Default)]
pub struct Summary {
    /// Its files.
    pub files: Vec<String>,
    /// Missing parts, and why.
    pub missing: Vec<String>,
}

/// Configuration and ruleset that an archive is made of.
pub struct Case<'a> {
    /// The configuration file.
    pub config_path: &'a Path,
    /// Configuration, or the defaults if it cannot be used.
    pub config: &'a Config,
    /// Reason why it cannot be used, if so.
    pub problem: Option<&'a str>,
    /// Ruleset that would be in force, if that can be told.
    pub ruleset: Option<&'a Ruleset>,
}

/// Writes the archive.
///
/// # Errors
///
/// When it cannot be written. What cannot be found out is told of in the archive instead.
pub async fn write(output: &Path, case: &Case<'_>, with_clients: bool) -> Result<Summary> {
    let config = case.config;
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(output)
        .with_context(|| format!("cannot make {}", output.display()))?;
    let (mask, are_known) = if with_clients {
        (Mask::default(), true)
    } else {
        clients(config).await
    };
    let mut archive = Archive {
        tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
        mask,
        summary: Summary::default(),
        now: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let text = fs::read_to_string(case.config_path);
    archive.text("config.toml", text.map_err(Into::into))?;
    if let Some(problem) = case.problem {
        archive.text("config-problem.txt", Ok(format!("{problem}\n")))?;
    }
    archive.text(
        "version.txt",
        Ok(format!(
            "breakout {}\ntaken {}\nclients' addresses: {}\n",
            env!("CARGO_PKG_VERSION"),
            Timestamp::now(),
            match (with_clients, are_known) {
                (true, _) => "as they are",
                (false, true) => "masked",
                (false, false) => "masked where they are private",
            }
        )),
    )?;
    if !are_known {
        let missing = &mut archive.summary.missing;
        missing.push(
            "the LANs' networks: private addresses are masked, public ones are not".to_owned(),
        );
    }
    archive.controller(config, with_clients).await?;
    let history = journal::read(&journal::path(&config.state.directory));
    archive.json(
        "history.json",
        history.map(|(entries, _)| entries).map_err(Into::into),
    )?;
    if let Some(ruleset) = case.ruleset {
        let findings = examine(config, ruleset).await;
        archive.json("doctor.json", findings)?;
    }
    for (name, line) in PROGRAMS {
        for (name, line) in for_interfaces(config, name, line) {
            let printed = run(&line).await;
            archive.text(&name, printed)?;
        }
    }
    archive.finish()
}

/// Masks what is in the networks of the LAN interfaces, or is routed to them, or is a source of the policy, and is not the
/// gateway's own. Where these are not known, as where an interface is gone, all private addresses are masked; the second value
/// tells. MAC addresses stay that are of this machine.
async fn clients(config: &Config) -> (Mask, bool) {
    let (mut networks, mut own) = (Vec::new(), Vec::new());
    let mut are_known = !config.lan.is_empty();
    if let Ok(links) = Links::open() {
        own = links.own_addresses().await.unwrap_or_default();
        let routes = links.routes().await.unwrap_or_default();
        for lan in &config.lan {
            match links.interface(&lan.interface).await {
                Ok(Some(interface)) if !interface.addresses.is_empty() => {
                    networks.extend(interface.addresses);
                }
                _ => are_known = false,
            }
            let routed = routes
                .iter()
                .filter(|route| route.interface == lan.interface);
            networks.extend(
                routed
                    .map(|route| route.prefix)
                    .filter(|net| net.prefix_len() > 0),
            );
        }
    }
    // Who is a neighbour by IPv6 is a client or a router; that is no address of anybody beyond the link.
    networks.retain(|net| !matches!(net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local()));
    are_known &= !networks.is_empty();
    networks.extend(
        config
            .policy
            .iter()
            .flat_map(|rule| rule.sources.iter().copied()),
    );
    if !are_known {
        networks.extend(private::networks());
    }
    (Mask::of_clients(&networks, own, own_macs()), are_known)
}

fn own_macs() -> BTreeSet<String> {
    let interfaces = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let macs = interfaces.filter_map(|one| fs::read_to_string(one.path().join("address")).ok());
    macs.map(|mac| mac.trim().to_lowercase()).collect()
}

/// The line once for each interface that it is about, or as it is.
fn for_interfaces(config: &Config, name: &str, line: &str) -> Vec<(String, String)> {
    let lans: BTreeSet<&str> = config
        .lan
        .iter()
        .map(|lan| lan.interface.as_str())
        .collect();
    let egresses = config
        .egress
        .values()
        .map(|egress| egress.interface.as_str());
    let (placeholder, interfaces) = if name.contains("LAN") {
        ("LAN", lans)
    } else if name.contains("EGRESS") {
        ("EGRESS", egresses.collect())
    } else {
        return vec![(name.to_owned(), line.to_owned())];
    };
    let each = interfaces.into_iter();
    each.map(|interface| {
        (
            name.replace(placeholder, interface),
            line.replace(placeholder, interface),
        )
    })
    .collect()
}

/// Returns what a program prints. One that fails has printed why.
async fn run(line: &str) -> Result<String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, output)
        .await
        .with_context(|| format!("{line}: took longer than {PATIENCE:?}"))?
        .with_context(|| format!("cannot run {program}"))?;
    let mut text = format!("$ {line}\n{}", String::from_utf8_lossy(&output.stdout));
    // JSON stays JSON.
    if line.contains("--json") {
        text = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    text += &String::from_utf8_lossy(&output.stderr);
    Ok(text)
}

struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    mask: Mask,
    summary: Summary,
    /// Seconds since 1970, for the files' times.
    now: u64,
}

impl Archive {
    /// Returns what the controller says, if there is one.
    async fn controller(&mut self, config: &Config, with_clients: bool) -> Result<()> {
        let mut client = match Client::connect(&config.control.socket).await {
            Ok(client) => client,
            Err(error) => {
                self.text("status.json", Err(error.into()))?;
                return self.left_behind(config);
            }
        };
        let status = in_time(ANSWER, client.status()).await;
        let is_silent = status.is_err();
        self.json("status.json", status)?;
        if is_silent {
            return self.left_behind(config);
        }
        self.json("stats.json", in_time(ANSWER, client.stats()).await)?;
        self.json("lists.json", in_time(ANSWER, client.list()).await)?;
        let events = client.events(EventsQuery { after: 0 });
        self.json("events.json", in_time(ANSWER, events).await)?;
        if with_clients {
            let flows = client.flows(FlowsQuery { limit: FLOWS });
            self.json("flows.json", in_time(ANSWER, flows).await)?;
        }
        Ok(())
    }

    /// Returns what the last controller has left on the disk.
    fn left_behind(&mut self, config: &Config) -> Result<()> {
        let directory = &config.state.directory;
        let state = read_text(&directory.join("state.json"));
        self.text("state.json", state.map_err(Into::into))?;
        self.json("events.json", Ok(Events::open(directory).after(0)))?;
        let lists = read_lists(config, None);
        let lists = lists.map(|lists| lists.iter().map(summary).collect::<Vec<_>>());
        self.json("lists.json", lists)
    }

    fn json(&mut self, name: &str, value: Result<impl Serialize>) -> Result<()> {
        let text = value.and_then(|value| Ok(serde_json::to_string_pretty(&value)?));
        self.text(name, text)
    }

    fn text(&mut self, name: &str, text: Result<String>) -> Result<()> {
        match text {
            Ok(text) => {
                let text = match name {
                    "network/nft.txt" | "network/iptables.txt" => without_comments(&text),
                    _ => text,
                };
                self.append(name, &self.mask.apply(&masked(&text)))
            }
            Err(error) => {
                self.summary.missing.push(format!("{name}: {error:#}"));
                Ok(())
            }
        }
    }

    fn append(&mut self, name: &str, text: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        let path = format!("breakout-sysdump/{name}");
        let written = self.tar.append_data(&mut header, path, text.as_bytes());
        written.with_context(|| format!("cannot write {name} into the archive"))?;
        self.summary.files.push(name.to_owned());
        Ok(())
    }

    fn finish(mut self) -> Result<Summary> {
        if !self.summary.missing.is_empty() {
            let missing = self.summary.missing.join("\n") + "\n";
            self.append("missing.txt", &self.mask.apply(&masked(&missing)))?;
        }
        let written: io::Result<File> = self.tar.into_inner().and_then(GzEncoder::finish);
        written
            .and_then(|file| file.sync_all())
            .context("cannot finish the archive")?;
        Ok(self.summary)
    }
}
