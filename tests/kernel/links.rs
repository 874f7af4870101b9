//! Links that change: next hops, interfaces, addresses.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::lab::{Lab, connect};
use breakout_tests::live::Stream;
use breakout_tests::netns::{Namespace, run};
use breakout_tests::running::Running;

use crate::Test;
use crate::office::{MEDIA, MEDIA6, Office, address, config};
use crate::redirect::reason;

pub(crate) const TESTS: &[Test] = &[
    ("a_next_hop_with_another_mac_is_followed", other_mac),
    (
        "a_next_hop_whose_mac_changes_unannounced_is_found",
        unannounced_mac,
    ),
    (
        "an_egress_interface_that_comes_back_is_used_again",
        vanishing,
    ),
    ("a_new_address_by_dhcp_is_used_at_once", dhcp),
    (
        "an_address_that_changes_in_place_ends_nothing_else",
        readdressed,
    ),
    ("a_link_without_neighbours_is_an_egress", point_to_point),
    (
        "a_gateway_beyond_the_prefix_is_reached_by_its_route",
        beyond,
    ),
    ("a_next_hop_is_learnt_from_every_kind_of_route", route_kinds),
];

/// The operator names no gateway, and has a default route over the egress that is not the usual kind.
fn route_kinds() -> Result<()> {
    const ROUTES: [&str; 3] = [
        "nexthop add id 7 via 10.3.0.2 dev inet\nroute add default nhid 7 metric 500",
        "nexthop add id 7 via 10.3.0.2 dev inet\nnexthop add id 8 group 7\nroute add default nhid 8 metric 500",
        // Everything is a neighbour then.
        "route add default dev inet metric 500",
    ];
    for commands in ROUTES {
        let office = Office::open("probes = []\n")?;
        let (lab, site) = (&office.lab, &office.site);
        site.configure(&config("probes = []\n").replace("gateway = \"10.3.0.2\"\n", ""))?;
        for command in commands.lines() {
            lab.gateway.ip(command)?;
        }
        let daemon = Daemon::start(site, &lab.gateway)?;
        let way = office.new_way()?;
        ensure!(way == "internet", "{commands}: {way}");
        daemon.stop()?;
    }
    // One that is not supported takes no packet, and the other family goes on.
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    site.configure(&config("probes = []\n").replace("gateway = \"10.3.0.2\"\n", ""))?;
    lab.gateway
        .ip("-4 route add default via inet6 fd00:3::2 dev inet metric 500")?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    let status = site.json(&lab.gateway, &["status"])?;
    let why = &status["egress"]["local"]["v4"]["standing"]["why"];
    let expected = "has the next hop fd00:3::2 of another address family";
    ensure!(
        why.as_str().is_some_and(|why| why.contains(expected)),
        "{why}"
    );
    ensure!(office.new_way()? == "wan" && office.new_way6()? == "internet");
    daemon.stop()?;
    Ok(())
}

fn other_mac() -> Result<()> {
    for mode in ["route", "redirect"] {
        let office = Office::open("probes = []\n")?;
        let (lab, site) = (&office.lab, &office.site);
        site.configure(
            &config("probes = []\n").replace("masquerade = true", &format!("mode = \"{mode}\"")),
        )?;
        lab.internet.ip("route add 10.1.0.0/24 via 10.3.0.1")?;
        lab.internet.ip("route add fd00:1::/64 via fd00:3::1")?;
        let mut daemon = Daemon::start(site, &lab.gateway)?;
        daemon.wait_until(|_| mode == "route" || site.next_hops_known(&lab.gateway))?;
        let stream = Stream::start(&lab.client, address(MEDIA))?;
        daemon.wait_until(|_| stream.now().as_deref() == Some("internet"))?;
        let counted =
            |name: &str| -> Result<u64> { Ok(reason(&site.json(&lab.gateway, &["stats"])?, name)) };
        let changed = Instant::now();
        lab.internet
            .ip("link set dev eth0 address 02:00:00:00:be:ef")?;
        // What a router does that takes over an address; the neighbours' entries are then of the new one.
        lab.internet
            .exec("arping -A -c 1 -I eth0 10.3.0.2")
            .context("arping")?;
        let told = Instant::now();
        let (steered, by_kernel) = (counted("steered")?, counted("tc_next_hop")?);
        daemon.wait_until(|_| told.elapsed() > Duration::from_secs(2))?;
        ensure!(
            stream.who_since(changed) == ["internet"],
            "{mode}: {:?}",
            stream.who_since(changed)
        );
        // Until the new address was told nothing could be right; a packet may have been on its way just then.
        let lost = stream.lost_since(told);
        ensure!(
            lost <= 1,
            "{mode}: {lost} packets were lost after the new address was told"
        );
        ensure!(
            counted("steered")? > steered + 50,
            "{mode}: nothing is steered"
        );
        ensure!(
            counted("tc_next_hop")? <= by_kernel + 2,
            "{mode}: XDP left packets to the kernel"
        );
        daemon.stop()?;
    }
    Ok(())
}

/// A router is replaced by one that says nothing. Probes notice, and the next hop is asked for before the link is taken for dead.
fn unannounced_mac() -> Result<()> {
    for mode in ["route", "redirect"] {
        let office = Office::open("")?;
        let (lab, site) = (&office.lab, &office.site);
        let probes = "probes = [\"icmp:52.98.1.1\", \"icmp:2603:1006::1\"]\n";
        let mode = format!("mode = \"{mode}\"");
        site.configure(&config(probes).replace("masquerade = true", &mode))?;
        lab.internet.ip("route add 10.1.0.0/24 via 10.3.0.1")?;
        lab.internet.ip("route add fd00:1::/64 via fd00:3::1")?;
        let mut daemon = Daemon::start(site, &lab.gateway)?;
        daemon.wait_until(office.is_in_state("v4", "up"))?;
        daemon.wait_until(office.is_in_state("v6", "up"))?;
        let streams = [MEDIA, MEDIA6].map(|to| Stream::start(&lab.client, address(to)));
        let [v4, v6] = streams;
        let (v4, v6) = (v4?, v6?);
        let is_at = |stream: &Stream, place: &str| stream.now().as_deref() == Some(place);
        daemon.wait_until(|_| is_at(&v4, "internet") && is_at(&v6, "internet"))?;
        // The kernel does not believe in two addresses within a second (`locktime`).
        let before = Instant::now();
        daemon.wait_until(|_| before.elapsed() > Duration::from_millis(1500))?;
        // Neither an announcement, nor a question to the gateway from the new address.
        lab.internet.sysctl("net.ipv4.conf.all.arp_notify", 0)?;
        lab.internet.sysctl("net.ipv6.conf.all.ndisc_notify", 0)?;
        let changed = Instant::now();
        lab.internet
            .ip("link set dev eth0 address 02:00:00:00:be:ef")?;
        daemon.wait_until(|_| changed.elapsed() > Duration::from_secs(4))?;
        for (family, stream) in [("IPv4", &v4), ("IPv6", &v6)] {
            let gap = stream.gap_since(changed);
            println!("{mode}, {family}: a gap of {gap:?}");
            ensure!(
                stream.who_since(changed) == ["internet"],
                "{mode}, {family}: {:?}: {}",
                stream.who_since(changed),
                daemon.log()
            );
            ensure!(
                gap < Duration::from_secs(2),
                "{mode}, {family}: a gap of {gap:?}"
            );
        }
        ensure!(!daemon.log().contains("is down"), "{}", daemon.log());
        daemon.stop()?;
    }
    Ok(())
}

fn vanishing() -> Result<()> {
    let office = Office::open("probes = []\n[health]\nhold_down = \"500ms\"\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    lab.gateway.ip("link set inet down")?;
    lab.gateway.ip("link set inet name ppp7")?;
    daemon.wait_until(office.is_up(false))?;
    ensure!(office.new_way()? == "wan", "renamed");
    lab.gateway.ip("link del ppp7")?;
    connect(&lab.gateway, "inet", &lab.internet, "eth0")?;
    lab.gateway.ip("addr add 10.3.0.1/24 dev inet")?;
    lab.internet.ip("addr add 10.3.0.2/24 dev eth0")?;
    lab.gateway.sysctl("net.ipv4.conf.inet.rp_filter", 0)?;
    daemon.wait_until(office.is_up(true))?;
    ensure!(
        office.new_way()? == "internet",
        "a new interface with the old name"
    );
    lab.gateway.ip("addr del 10.3.0.1/24 dev inet")?;
    daemon.wait_until(office.is_up(false))?;
    ensure!(office.new_way()? == "wan", "without an address");
    lab.gateway.ip("addr add 10.3.0.1/24 dev inet")?;
    daemon.wait_until(office.is_up(true))?;
    // The neighbour goes silent: the kernel's own probes find that out.
    lab.internet.exec("nft add table arp mute")?;
    lab.internet
        .exec("nft add chain arp mute in { type filter hook input priority 0 ; policy drop ; }")?;
    lab.gateway.ip("neigh flush dev inet")?;
    daemon.wait_until(office.is_up(false))?;
    let status = site.json(&lab.gateway, &["status"])?;
    let why = status["egress"]["local"]["v4"]["standing"]["why"]
        .as_str()
        .unwrap_or_default();
    ensure!(why.contains("10.3.0.2 does not answer"), "{why}");
    ensure!(
        office.new_way()? == "wan",
        "without an answer from the gateway"
    );
    lab.internet.exec("nft delete table arp mute")?;
    daemon.wait_until(office.is_up(true))?;
    ensure!(
        office.new_way()? == "internet",
        "with a gateway that answers again"
    );
    daemon.stop()?;
    Ok(())
}

/// The provider gives the gateway another address at night.
fn dhcp() -> Result<()> {
    let office = Office::open("probes = []\n[health]\nhold_down = \"500ms\"\n")?;
    let (lab, site) = (&office.lab, &office.site);
    // Nothing is configured: the address and the gateway come by DHCP, and Breakout learns the gateway from the route.
    site.configure(
        &config("probes = []\n[health]\nhold_down = \"500ms\"\n").replace("gateway", "# gateway"),
    )?;
    lab.gateway.ip("addr flush dev inet")?;
    lab.internet.ip("addr add 10.5.0.2/24 dev eth0")?;
    let dhcp = Dhcp::start(office.site.path())?;
    dhcp.serve(lab, "10.3.0.20", "10.3.0.2")?;
    dhcp.ask(lab, "inet")?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    ensure!(masqueraded(lab, "10.3.0.20")? > 0);
    dhcp.release(lab, "inet")?;
    daemon.wait_until(office.is_up(false))?;
    ensure!(office.new_way()? == "wan", "without an address");
    dhcp.serve(lab, "10.5.0.77", "10.5.0.2")?;
    dhcp.ask(lab, "inet")?;
    daemon.wait_until(office.is_up(true))?;
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(
        status["egress"]["local"]["v4"]["gateway"] == "10.5.0.2",
        "{status}"
    );
    ensure!(office.new_way()? == "internet");
    ensure!(masqueraded(lab, "10.5.0.77")? > 0);
    daemon.stop()?;
    Ok(())
}

/// The provider's router stays, and only the address is another one: the lease was renewed with it.
fn readdressed() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet" && masqueraded(lab, "10.3.0.1")? > 0);
    let events = site.json(&lab.gateway, &["events"])?;
    lab.gateway.ip("addr add 10.3.0.30/24 dev inet")?;
    lab.gateway.ip("addr del 10.3.0.1/24 dev inet")?;
    // The kernel makes the second address of a network go with the first one, unless it is told to promote it.
    lab.gateway.ip("addr replace 10.3.0.30/24 dev inet")?;
    // It may be seen as up before it is seen without an address.
    daemon.wait_until(|_| {
        office.new_way().is_ok_and(|way| way == "internet")
            && masqueraded(lab, "10.3.0.30").is_ok_and(|count| count > 0)
    })?;
    let since = site.json(&lab.gateway, &["events"])?;
    let downs = |events: &serde_json::Value| events.to_string().matches("local IPv4").count();
    ensure!(downs(&since) <= downs(&events) + 2, "{since}");
    daemon.stop()?;
    Ok(())
}

/// A tunnel stands for PPP here: no neighbours, and the route has no gateway.
fn point_to_point() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let _ends = [
        Tunnel::start(&lab.gateway, "10.9.0.1", "10.3.0.1", "10.3.0.2")?,
        Tunnel::start(&lab.internet, "10.9.0.2", "10.3.0.2", "10.3.0.1")?,
    ];
    lab.gateway.sysctl("net.ipv4.conf.ppp0.rp_filter", 0)?;
    let settings = config("probes = []\n").replace(
        "interface = \"inet\"\ngateway = \"10.3.0.2\"\ngateway6 = \"fd00:3::2\"",
        "interface = \"ppp0\"",
    );
    site.configure(&settings)?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    ensure!(masqueraded(lab, "10.9.0.1")? > 0, "it left by another link");
    daemon.stop()?;
    Ok(())
}

/// An address without a network, as some providers give out: a route of its own leads to the gateway.
fn beyond() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.gateway.ip("addr del 10.3.0.1/24 dev inet")?;
    lab.gateway.ip("addr add 10.3.0.1/32 dev inet")?;
    lab.gateway.ip("route add 10.3.0.2 dev inet scope link")?;
    lab.gateway
        .ip("route add default via 10.3.0.2 dev inet metric 500")?;
    let configured = config("probes = []\n");
    let learnt = configured.replace("gateway = \"10.3.0.2\"\n", "");
    for settings in [&configured, &learnt] {
        site.configure(settings)?;
        let daemon = Daemon::start(site, &lab.gateway)?;
        let status = site.json(&lab.gateway, &["status"])?;
        let gateway = &status["egress"]["local"]["v4"]["gateway"];
        ensure!(gateway == "10.3.0.2", "{settings}: {gateway}");
        ensure!(office.new_way()? == "internet", "{settings}");
        daemon.stop()?;
    }
    // The network of the other end.
    lab.gateway.ip("addr del 10.3.0.1/32 dev inet")?;
    lab.gateway.ip("route flush dev inet")?;
    lab.gateway
        .ip("addr add 10.3.0.1 peer 10.3.0.2/32 dev inet")?;
    site.configure(&configured)?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet", "a peer");
    daemon.stop()?;
    Ok(())
}

/// One end of a tunnel, `ppp0`, over UDP between two addresses. It goes with the handle.
pub(crate) struct Tunnel(#[expect(dead_code, reason = "it is held until it is dropped")] Running);

impl Tunnel {
    pub(crate) fn start(
        namespace: &Namespace,
        own: &str,
        local: &str,
        remote: &str,
    ) -> Result<Self> {
        let mut command = namespace.command("socat");
        command
            .arg(format!("TUN:{own}/30,tun-name=ppp0,iff-no-pi,iff-up"))
            .arg(format!("UDP-DATAGRAM:{remote}:9000,bind={local}:9000"));
        let tunnel = Tunnel(Running(command.spawn().context("socat")?));
        let started = Instant::now();
        while !namespace
            .ip("-o addr show up")
            .is_ok_and(|links| links.contains("ppp0"))
        {
            ensure!(
                started.elapsed() < Duration::from_secs(5),
                "there is no ppp0"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(tunnel)
    }
}

/// Tracked connections that have this address of the gateway.
fn masqueraded(lab: &Lab, address: &str) -> Result<usize> {
    let entries = lab
        .gateway
        .exec(&format!("conntrack -L -p tcp --reply-dst {address}"))?;
    Ok(entries
        .lines()
        .filter(|line| line.contains("dport=443"))
        .count())
}

/// dnsmasq at the provider, dhclient on the gateway. Both end with the handle.
struct Dhcp<'a> {
    directory: &'a Path,
    server: RefCell<Option<Child>>,
}

impl<'a> Dhcp<'a> {
    fn start(directory: &'a Path) -> Result<Self> {
        // What dhclient's own script does would touch the machine's resolv.conf.
        let script = directory.join("dhclient-script");
        let text = "#!/bin/sh\ncase $reason in\nBOUND|RENEW|REBIND|REBOOT)\n\
                    ip addr replace $new_ip_address/24 dev $interface\n\
                    ip route replace default via $new_routers dev $interface metric 500;;\n\
                    RELEASE|EXPIRE|STOP|FAIL)\nip addr flush dev $interface;;\nesac\n";
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        Ok(Dhcp {
            directory,
            server: RefCell::new(None),
        })
    }

    /// Has the provider give out one address and its router.
    fn serve(&self, lab: &Lab, address: &str, router: &str) -> Result<()> {
        self.end_server();
        let leases = self.directory.join("leases").display().to_string();
        let _ = std::fs::remove_file(&leases);
        let mut command = lab.internet.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--port=0",
            "--interface=eth0",
            "--bind-interfaces",
            "--conf-file=/dev/null",
        ]);
        command.arg(format!("--dhcp-range={address},{address},255.255.255.0,2m"));
        command.arg(format!("--dhcp-option=option:router,{router}"));
        command
            .arg(format!("--dhcp-leasefile={leases}"))
            .arg("--dhcp-authoritative")
            .arg("--no-ping");
        command.arg("--user=root").arg("--pid-file");
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("dnsmasq")?;
        *self.server.borrow_mut() = Some(child);
        Ok(())
    }

    fn dhclient(&self, lab: &Lab, interface: &str, more: &[&str]) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let (script, pid, leases) = (
            file("dhclient-script"),
            file("dhclient.pid"),
            file("dhclient.leases"),
        );
        let mut command = lab.gateway.command("dhclient");
        command.args([
            "-4",
            "-sf",
            &script,
            "-pf",
            &pid,
            "-lf",
            &leases,
            "-cf",
            "/dev/null",
        ]);
        run(command.args(more).arg(interface))?;
        Ok(())
    }

    fn ask(&self, lab: &Lab, interface: &str) -> Result<()> {
        self.dhclient(lab, interface, &["-1", "-q"])
    }

    fn release(&self, lab: &Lab, interface: &str) -> Result<()> {
        self.dhclient(lab, interface, &["-r", "-q"])
    }

    fn end_server(&self) {
        if let Some(mut server) = self.server.borrow_mut().take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Dhcp<'_> {
    fn drop(&mut self) {
        self.end_server();
        let pid = std::fs::read_to_string(self.directory.join("dhclient.pid"));
        if let Some(pid) = pid.ok().and_then(|text| text.trim().parse().ok()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
    }
}
