//! What the gateway and the routers behind it say about steered packets: TTL exceeded, unreachable, too big.

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{Lab, connect};
use breakout_tests::netns::Namespace;
use breakout_tests::seen::Counter;
use breakout_tests::server::Servers;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("traceroute_shows_the_gateway_in_route_mode", || {
        traceroute("route")
    }),
    ("traceroute_shows_the_gateway_in_redirect_mode", || {
        traceroute("redirect")
    }),
    (
        "tcp_finds_a_narrow_link_behind_a_masquerading_egress",
        || narrow("masquerade = true"),
    ),
    (
        "tcp_finds_a_narrow_link_behind_a_redirecting_egress",
        || narrow("mode = \"redirect\""),
    ),
    (
        "tcp_finds_a_narrow_link_behind_a_translating_egress",
        || narrow("mode = \"redirect\"\nmasquerade = true"),
    ),
    ("servers_hear_of_a_narrow_lan_in_route_mode", || {
        narrow_lan("masquerade = true")
    }),
    ("servers_hear_of_a_narrow_lan_in_redirect_mode", || {
        narrow_lan("mode = \"redirect\"")
    }),
    ("servers_hear_of_a_narrow_lan_through_translation", || {
        narrow_lan("mode = \"redirect\"\nmasquerade = true")
    }),
];

fn config(more: &str) -> String {
    format!(
        "[list]\nsource = \"builtin\"\n[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n\
         gateway = \"10.3.0.2\"\ngateway6 = \"fd00:3::2\"\nprobes = []\n{more}\n"
    )
}

fn start<'a>(lab: &'a Lab, site: &'a Site, redirects: bool) -> Result<Daemon<'a>> {
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(|_| !redirects || site.next_hops_known(&lab.gateway))?;
    Ok(daemon)
}

/// The first hop is the gateway, the second one the far end, which has no such service.
fn traceroute(mode: &str) -> Result<()> {
    let lab = Lab::build()?;
    lab.own(["52.113.0.1".parse()?, "2603:1063::1".parse()?])?;
    let site = Site::new(&config(&format!("mode = \"{mode}\"")))?;
    let daemon = start(&lab, &site, mode == "redirect")?;
    for (family, destination, gateway) in [
        ("-4", "52.113.0.1", "10.1.0.1"),
        ("-6", "2603:1063::1", "fd00:1::1"),
    ] {
        let command = format!("traceroute {family} -n -q 1 -w 2 -m 4 -U -p 3478 {destination}");
        let hops = lab.client.exec(&command)?;
        let hop = |number: &str| {
            hops.lines()
                .find(|line| line.trim().starts_with(number))
                .unwrap_or_default()
                .to_owned()
        };
        ensure!(hop("1 ").contains(gateway), "{mode}: {hops}");
        ensure!(hop("2 ").contains(destination), "{mode}: {hops}");
    }
    let stats = site.json(&lab.gateway, &["stats"])?;
    let count = |name: &str| {
        let reasons = stats["reasons"].as_array().into_iter().flatten();
        let of_name = reasons.filter(|reason| reason["reason"] == name);
        of_name
            .filter_map(|reason| reason["packets"].as_u64())
            .sum::<u64>()
    };
    ensure!(count("steered") >= 2, "{stats}");
    ensure!(mode == "route" || count("kernel_ttl") == 2, "{stats}");
    daemon.stop()?;
    Ok(())
}

/// Behind the provider's router is a link that takes 1300 bytes only, and a server that knows nothing of that.
fn narrow(how: &str) -> Result<()> {
    let flows = [
        Flow::new(Transport::Tcp, "52.98.9.9", 443),
        Flow::new(Transport::Tcp, "2603:1006::9", 443),
    ];
    let lab = Lab::build()?;
    let name = lab.internet.name().replace("internet", "");
    let far = Namespace::create(format!("{name}far"))?;
    let server = Namespace::create(format!("{name}server"))?;
    connect(&lab.internet, "narrow", &far, "narrow")?;
    connect(&far, "wide", &server, "eth0")?;
    lab.internet.ip_lines(
        "link set narrow mtu 1300
         addr add 10.6.0.1/24 dev narrow
         addr add fd00:6::1/64 dev narrow nodad
         route add 52.98.9.9/32 via 10.6.0.2
         route add 2603:1006::9/128 via fd00:6::2",
    )?;
    far.ip_lines(
        "link set narrow mtu 1300
         addr add 10.6.0.2/24 dev narrow
         addr add fd00:6::2/64 dev narrow nodad
         addr add 10.7.0.1/24 dev wide
         addr add fd00:7::1/64 dev wide nodad
         route add 52.98.9.9/32 via 10.7.0.2
         route add 2603:1006::9/128 via fd00:7::2
         route add default via 10.6.0.1
         route add default via fd00:6::1",
    )?;
    server.ip_lines(
        "addr add 10.7.0.2/24 dev eth0
         addr add fd00:7::2/64 dev eth0 nodad
         addr add 52.98.9.9/32 dev lo
         addr add 2603:1006::9/128 dev lo nodad
         route add default via 10.7.0.1
         route add default via fd00:7::1",
    )?;
    for router in [&lab.internet, &far] {
        router.sysctl("net.ipv4.ip_forward", 1)?;
        router.sysctl("net.ipv6.conf.all.forwarding", 1)?;
    }
    let _server = Servers::start(&server, "internet", &flows)?;
    let site = Site::new(&config(how))?;
    let daemon = start(&lab, &site, how.contains("redirect"))?;
    for flow in flows {
        let identity = bulk(&lab.client, flow.destination, 2_000_000)?;
        ensure!(identity == "internet", "{identity}");
        // The client was told, through the gateway.
        let route = lab
            .client
            .ip(&format!("route get {}", flow.destination.ip()))?;
        ensure!(route.contains("mtu 1300"), "{route}");
    }
    daemon.stop()?;
    Ok(())
}

/// Behind a router of the LAN is a link that takes 1300 bytes only, and a client that knows nothing of that: the server hears of it from
/// the router, by the way of the flow.
fn narrow_lan(how: &str) -> Result<()> {
    let flows = [
        Flow::new(Transport::Tcp, "52.98.1.1", 443),
        Flow::new(Transport::Tcp, "2603:1006::1", 443),
    ];
    let lab = Lab::build()?;
    let _servers = lab.serve(&flows)?;
    let router = &lab.client;
    let desk = Namespace::create(router.name().replace("client", "desk"))?;
    connect(router, "narrow", &desk, "eth0")?;
    router.ip_lines(
        "link set narrow mtu 1300
         addr add 10.8.0.1/24 dev narrow
         addr add fd00:8::1/64 dev narrow nodad",
    )?;
    desk.ip_lines(
        "addr add 10.8.0.2/24 dev eth0
         addr add fd00:8::2/64 dev eth0 nodad
         route add default via 10.8.0.1
         route add default via fd00:8::1",
    )?;
    router.sysctl("net.ipv4.ip_forward", 1)?;
    router.sysctl("net.ipv6.conf.all.forwarding", 1)?;
    lab.gateway.ip_lines(
        "route add 10.8.0.0/24 via 10.1.0.2
         route add fd00:8::/64 via fd00:1::2",
    )?;
    // What is not translated: by the programs nothing of IPv6 is.
    if !how.contains("masquerade") {
        lab.internet.ip("route add 10.8.0.0/24 via 10.3.0.1")?;
    }
    if how.contains("redirect") {
        lab.internet.ip("route add fd00:8::/64 via fd00:3::1")?;
    }
    let site = Site::new(&config(how))?;
    let daemon = start(&lab, &site, how.contains("redirect"))?;
    let errors = "oifname \"wan\" icmp type destination-unreachable";
    let strays = Counter::start(&lab.gateway, "strays", errors)?;
    for flow in flows {
        let identity = bulk(&desk, flow.destination, 300_000)?;
        ensure!(identity == "internet", "{identity}");
    }
    ensure!(
        strays.packets()? == 0,
        "errors about steered flows left by the WAN"
    );
    daemon.stop()?;
    Ok(())
}
