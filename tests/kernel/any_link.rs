//! Redirect mode on interfaces that XDP does not forward to or from: TC does, past netfilter and the kernel's routes.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakout::datapath::Asker;
use breakout::ruleset::{Ruleset, compile};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::netns::Namespace;
use breakout_tests::programs;
use breakout_tests::seen;
use breakout_tests::wire::{Ipv4Udp, Wire};

use crate::Test;
use crate::links::Tunnel;
use crate::redirect::reason;

pub(crate) const TESTS: &[Test] = &[
    ("redirect_to_a_bridge", to_a_bridge),
    ("redirect_to_a_macvlan", to_a_macvlan),
    ("redirect_from_a_bridge", from_a_bridge),
    ("redirect_from_a_virtual_mac", from_a_virtual_mac),
    ("redirect_from_a_lan_that_refuses_xdp", refused),
    ("redirect_beside_an_xdp_program_of_others", beside_another),
    ("redirect_goes_through_a_shaper", through_a_shaper),
    ("a_link_without_neighbours_is_redirected_to", point_to_point),
    ("redirect_fails_open_without_a_controller", vanishes),
    ("redirect_by_tc_says_what_it_leaves", leaves),
];

/// A gateway with other links than network cards.
struct Office<'a> {
    lan: &'a str,
    egress: &'a str,
    /// Why TC forwards there, as the status says.
    why: &'a str,
}

impl Office<'_> {
    /// Steered flows leave by the egress and nothing else does, although netfilter forwards nothing from the LAN to there. Merged
    /// packets are taken apart again.
    fn redirects(&self, lab: &Lab) -> Result<()> {
        let Office { lan, egress, why } = self;
        let flows = [
            Flow::new(Transport::Tcp, "52.98.1.1", 443),
            Flow::new(Transport::Udp, "52.113.0.1", 3478),
            Flow::new(Transport::Tcp, "2603:1006::1", 443),
            Flow::new(Transport::Udp, "2603:1063::1", 3478),
            Flow::new(Transport::Tcp, "198.51.100.7", 443),
        ];
        let _servers = lab.serve(&flows)?;
        forwards_nothing(&lab.gateway, lan, egress)?;
        let config = CONFIG.replace("MODE", "redirect");
        let config = config.replace("\"lan\"", &format!("\"{lan}\""));
        let site = Site::new(&config.replace("\"inet\"", &format!("\"{egress}\"")))?;
        let daemon = Daemon::start(&site, &lab.gateway)?;
        let local = site.json(&lab.gateway, &["status"])?["egress"]["local"].clone();
        ensure!(local["hook"] == "tc", "{local}");
        ensure!(local["why_tc"].to_string().contains(why), "{local}");
        let [steered @ .., other] = &flows;
        leave_by_the_egress(lab, steered, 3_000_000)?;
        let identity = other.talk(&lab.client)?;
        ensure!(identity == "wan", "{other:?} came out at {identity}");
        let log = daemon.stop()?;
        let mut warnings = log.lines().filter(|line| line.contains("WARN"));
        ensure!(warnings.all(|line| line.contains(why)), "{log}");
        Ok(())
    }
}

/// Has each flow talk, and those by TCP send so many bytes. All come out at the internet with good headers.
pub(crate) fn leave_by_the_egress(lab: &Lab, flows: &[Flow], bytes: usize) -> Result<()> {
    for flow in flows {
        let identity = flow
            .talk(&lab.client)
            .with_context(|| format!("{flow:?}"))?;
        ensure!(identity == "internet", "{flow:?} came out at {identity}");
    }
    let by_tcp = flows.iter().filter(|flow| flow.transport == Transport::Tcp);
    for flow in by_tcp {
        let identity = bulk(&lab.client, flow.destination, bytes)?;
        ensure!(identity == "internet", "{flow:?} came out at {identity}");
    }
    seen::no_bad_headers(&lab.internet)
}

/// Has netfilter drop what the kernel forwards from one interface to another.
pub(crate) fn forwards_nothing(gateway: &Namespace, from: &str, to: &str) -> Result<()> {
    gateway.exec("nft add table inet proof")?;
    gateway.exec("nft add chain inet proof forward { type filter hook forward priority 0 ; }")?;
    let rule = format!("iifname \"{from}\" oifname \"{to}\" drop");
    gateway.exec(&format!("nft add rule inet proof forward {rule}"))?;
    Ok(())
}

/// Moves the addresses of an interface to another one.
fn move_addresses(namespace: &Namespace, from: &str, to: &str, [v4, v6]: [&str; 2]) -> Result<()> {
    namespace.ip_lines(&format!(
        "addr flush dev {from}
         link set {to} up
         addr add {v4}/24 dev {to}
         addr add {v6}/64 dev {to} nodad"
    ))
}

fn to_a_bridge() -> Result<()> {
    let lab = Lab::build()?;
    lab.gateway
        .ip_lines("link add br0 type bridge\nlink set inet master br0")?;
    move_addresses(&lab.gateway, "inet", "br0", ["10.3.0.1", "fd00:3::1"])?;
    lab.gateway.sysctl("net.ipv4.conf.br0.rp_filter", 0)?;
    Office {
        lan: "lan",
        egress: "br0",
        why: "br0 is a bridge",
    }
    .redirects(&lab)
}

/// Clients send to the MAC address of VRRP, which keepalived's interface has: that they are not steered is an alert, and ends when the
/// interface is named.
fn from_a_virtual_mac() -> Result<()> {
    let lab = Lab::build()?;
    let flow = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    lab.gateway
        .ip("link add vrrp.51 link lan address 00:00:5e:00:01:33 type macvlan mode bridge")?;
    lab.gateway.ip("addr add 10.1.0.254/24 dev vrrp.51")?;
    lab.gateway.ip("link set vrrp.51 up")?;
    // As keepalived has it: the virtual address is answered for by its own interface only.
    lab.gateway.sysctl("net.ipv4.conf.all.arp_ignore", 1)?;
    lab.client.ip("route replace default via 10.1.0.254")?;
    let config = CONFIG.replace("MODE", "redirect");
    let site = Site::new(&config)?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    ensure!(flow.talk(&lab.client)? == "wan");
    let alerts =
        || -> Result<String> { Ok(site.json(&lab.gateway, &["status"])?["alerts"].to_string()) };
    daemon.wait_until(|_| {
        alerts().is_ok_and(|alerts| alerts.contains("to the addresses of vrrp.51"))
    })?;
    site.configure(&format!("[[lan]]\ninterface = \"vrrp.51\"\n{config}"))?;
    daemon.stop()?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    ensure!(flow.talk(&lab.client)? == "internet");
    ensure!(!alerts()?.contains("vrrp.51"), "{}", alerts()?);
    daemon.stop()?;
    Ok(())
}

fn to_a_macvlan() -> Result<()> {
    let lab = Lab::build()?;
    lab.gateway
        .ip("link add link inet name mv0 type macvlan mode bridge")?;
    move_addresses(&lab.gateway, "inet", "mv0", ["10.3.0.1", "fd00:3::1"])?;
    lab.gateway.sysctl("net.ipv4.conf.mv0.rp_filter", 0)?;
    Office {
        lan: "lan",
        egress: "mv0",
        why: "mv0 is a macvlan",
    }
    .redirects(&lab)
}

/// The LAN is a bridge, which has no native XDP.
pub(crate) fn bridge_the_lan(lab: &Lab) -> Result<()> {
    lab.gateway
        .ip_lines("link add br1 type bridge\nlink set lan master br1")?;
    move_addresses(&lab.gateway, "lan", "br1", ["10.1.0.1", "fd00:1::1"])
}

fn from_a_bridge() -> Result<()> {
    let lab = Lab::build()?;
    bridge_the_lan(&lab)?;
    Office {
        lan: "br1",
        egress: "inet",
        why: "no LAN interface has native XDP",
    }
    .redirects(&lab)
}

/// A frame of its MTU is longer than XDP takes.
fn refused() -> Result<()> {
    let lab = Lab::build()?;
    lab.gateway.ip("link set lan mtu 9000")?;
    lab.client.ip("link set eth0 mtu 9000")?;
    Office {
        lan: "lan",
        egress: "inet",
        why: "the MTU of lan is too large for native XDP",
    }
    .redirects(&lab)
}

/// The program of somebody else stays where it is. Once it is gone, a reload brings XDP, which stays.
fn beside_another() -> Result<()> {
    const WHY: &str = "another XDP program is attached to lan";
    let lab = Lab::build()?;
    let mut other = Asker::load(programs::object(), &compile(&Ruleset::default())?)?;
    lab.gateway.enter(|| other.attach("pass_all", "lan"))?;
    Office {
        lan: "lan",
        egress: "inet",
        why: WHY,
    }
    .redirects(&lab)?;
    lab.gateway.exec("nft delete table inet proof")?;
    let link = lab.gateway.exec("ip link show lan")?;
    ensure!(link.contains("prog/xdp"), "{link}");
    let site = Site::new(&CONFIG.replace("MODE", "redirect"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let lan = || Ok::<_, anyhow::Error>(site.json(&lab.gateway, &["status"])?["lan"][0].clone());
    let reload = || site.json(&lab.gateway, &["reload"]);
    ensure!(reload()?["changed"] == false);
    let refused = lan()?;
    ensure!(
        refused["xdp"].is_null() && refused["why_no_xdp"].to_string().contains(WHY),
        "{refused}"
    );
    drop(other);
    ensure!(reload()?["changed"] == true);
    // Longer than it takes until the interfaces are looked at again.
    for _ in 0..13 {
        let found = lan()?;
        ensure!(
            found["xdp"] == "native" && found["why_no_xdp"].is_null(),
            "{found}"
        );
        thread::sleep(Duration::from_secs(1));
    }
    daemon.stop()?;
    Ok(())
}

/// A queueing discipline that the operator has set is not gone past.
fn through_a_shaper() -> Result<()> {
    let lab = Lab::build()?;
    lab.gateway
        .exec("tc qdisc replace dev inet root tbf rate 400mbit burst 256k latency 50ms")?;
    Office {
        lan: "lan",
        egress: "inet",
        why: "queueing discipline tbf",
    }
    .redirects(&lab)?;
    let sent = lab.gateway.exec("tc -s qdisc show dev inet")?;
    let bytes = sent
        .split("Sent ")
        .nth(1)
        .and_then(|sent| sent.split_whitespace().next())
        .and_then(|bytes| bytes.parse().ok());
    ensure!(bytes > Some(6_000_000u64), "{sent}");
    Ok(())
}

/// As by PPPoE: without gateway, without Ethernet, and over IPv4 only.
fn point_to_point() -> Result<()> {
    let lab = Lab::build()?;
    let _ends = [
        Tunnel::start(&lab.gateway, "10.9.0.1", "10.3.0.1", "10.3.0.2")?,
        Tunnel::start(&lab.internet, "10.9.0.2", "10.3.0.2", "10.3.0.1")?,
    ];
    let v4 = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    let v6 = Flow::new(Transport::Tcp, "2603:1006::1", 443);
    let _servers = lab.serve(&[v4.clone(), v6.clone()])?;
    forwards_nothing(&lab.gateway, "lan", "ppp0")?;
    let config = CONFIG.replace("MODE", "redirect").replace(
        "interface = \"inet\"\ngateway = \"10.3.0.2\"\ngateway6 = \"fd00:3::2\"",
        "interface = \"ppp0\"",
    );
    let site = Site::new(&config)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(bulk(&lab.client, v4.destination, 1_000_000)? == "internet");
    ensure!(v6.talk(&lab.client)? == "wan");
    let sent = lab
        .gateway
        .exec("cat /sys/class/net/ppp0/statistics/tx_packets")?;
    ensure!(sent.trim().parse::<u64>()? > 100, "{sent}");
    daemon.stop()?;
    Ok(())
}

/// An interface that goes while no controller runs takes its traffic along to the ordinary path, whichever program forwards.
fn vanishes() -> Result<()> {
    for lan in ["lan", "br1"] {
        let lab = Lab::build()?;
        if lan == "br1" {
            bridge_the_lan(&lab)?;
        }
        let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
        let _servers = lab.serve(std::slice::from_ref(&flow))?;
        let config = CONFIG.replace("MODE", "redirect");
        let site = Site::new(&config.replace("\"lan\"", &format!("\"{lan}\"")))?;
        let mut daemon = Daemon::start(&site, &lab.gateway)?;
        daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
        ensure!(flow.talk(&lab.client)? == "internet", "{lan}");
        daemon.kill()?;
        ensure!(flow.talk(&lab.client)? == "internet", "{lan}, killed");
        lab.gateway.ip("link del inet")?;
        ensure!(flow.talk(&lab.client)? == "wan", "{lan}, without the link");
        let output = site.output(&lab.gateway, &["unload"])?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(())
}

/// What TC forwards is counted by its kind, and what it leaves or answers by the reason.
fn leaves() -> Result<()> {
    let lab = Lab::build()?;
    bridge_the_lan(&lab)?;
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    lab.own([flow.destination.ip()])?;
    lab.gateway.ip("link set inet mtu 1400")?;
    lab.internet.ip("link set eth0 mtu 1400")?;
    let config = CONFIG.replace("MODE", "redirect");
    let site = Site::new(&config.replace("\"lan\"", "\"br1\""))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    seen::watch(&lab.internet, std::slice::from_ref(&flow))?;
    let media = || Ipv4Udp::new([52, 113, 0, 1], 3478);
    let ttl = Ipv4Udp { ttl: 1, ..media() };
    let options = Ipv4Udp {
        options: vec![1, 1, 1, 0],
        ..media()
    };
    let long = Ipv4Udp {
        payload: 1430,
        ..media()
    };
    let fragment = Ipv4Udp {
        fragment: 0x2000,
        payload: 800,
        ..media()
    };
    let cases = [
        ("steered", media()),
        ("kernel_ttl", ttl),
        ("tc_options", options),
        ("too_big", long),
        ("tc_fragment", fragment),
    ];
    for (counter, datagram) in cases {
        let mut frame = lab.ethernet(0x0800)?;
        // The bridge has the address of its port.
        frame.extend(datagram.to_bytes());
        Wire::open(&lab.client, "eth0")?.send(&frame)?;
        daemon.wait_until(|_| {
            let stats = site.json(&lab.gateway, &["stats"]).unwrap_or_default();
            reason(&stats, counter) == 1
        })?;
    }
    // All but the one whose TTL ended, and the one that was too long.
    let arrived = seen::packets(&lab.internet)?.remove(&seen::key(&flow));
    ensure!(arrived == Some(3), "{arrived:?} arrived");
    daemon.stop()?;
    Ok(())
}
