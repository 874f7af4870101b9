//! Redirect mode with `masquerade = true`: the programs translate, and let only replies of live flows in.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::live::Connections;
use breakout_tests::netns::Namespace;
use breakout_tests::seen::{self, Counter};
use breakout_tests::server::Servers;
use breakout_tests::wire::{Ipv4Udp, Wire, checksum};

use crate::Test;
use crate::any_link::{bridge_the_lan, forwards_nothing, leave_by_the_egress};
use crate::links::Tunnel;
use crate::redirect::reason;
use crate::several::second_link;

pub(crate) const TESTS: &[Test] = &[
    ("redirect_translates_by_xdp", || translates("lan")),
    ("redirect_translates_by_tc", || translates("br1")),
    ("a_link_without_neighbours_translates", point_to_point),
    ("redirect_translates_fragments", fragments),
    ("clients_hear_that_a_port_is_closed", closed_port),
    ("strangers_do_not_get_in_by_a_public_port", strangers),
    ("translated_flows_keep_their_public_ports", keeps_ports),
    ("public_ports_stay_over_a_failover", fails_over),
    ("a_new_public_address_is_used_at_once", new_address),
    ("public_ports_that_run_out_are_an_alert", run_out),
    ("a_translating_egress_leaves_others_alone", others),
    ("masquerading_moves_from_the_kernel_to_the_programs", moves),
];

const MEDIA: &str = "52.113.0.1";

fn media() -> Flow {
    Flow::new(Transport::Udp, MEDIA, 3478)
}

fn mail() -> Flow {
    Flow::new(Transport::Tcp, "52.98.1.1", 443)
}

/// The configuration of a gateway that translates, from a LAN interface.
fn config(lan: &str) -> String {
    CONFIG
        .replace("MODE", "redirect")
        .replace("probes", "masquerade = true\nprobes")
        .replace("\"lan\"", &format!("\"{lan}\""))
}

/// A lab in which the internet knows no way to the clients' addresses.
fn private() -> Result<Lab> {
    let lab = Lab::build()?;
    lab.internet.ip("route del 10.1.0.0/24")?;
    Ok(lab)
}

fn start<'a>(site: &'a Site, lab: &'a Lab) -> Result<Daemon<'a>> {
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
    Ok(daemon)
}

/// A socket of the client that talks to a remote.
fn socket(client: &Namespace, remote: SocketAddr) -> Result<UdpSocket> {
    client.enter(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(remote)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    })
}

/// Who answers a datagram of so many bytes. Answers to others, which were late, do not count.
fn ask(socket: &UdpSocket, bytes: usize) -> Result<String> {
    let mut answer = vec![0; bytes + 100];
    socket.send(&vec![b'x'; bytes])?;
    loop {
        let count = socket.recv(&mut answer).context("no answer")?;
        let text = String::from_utf8_lossy(&answer[..count]);
        let (identity, rest) = text.split_once('\n').context("no identity")?;
        if rest.len() == bytes {
            return Ok(identity.to_owned());
        }
    }
}

/// The public addresses and ports of clients' flows, by the flows.
fn public(site: &Site, lab: &Lab) -> Result<BTreeMap<String, String>> {
    let report = site.json(&lab.gateway, &["flows"])?;
    let flows = report["flows"].as_array().context("no flows")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let translated = flows.iter().filter(|flow| flow["public"].is_string());
    Ok(translated
        .map(|flow| {
            let (from, to) = (text(&flow["source"]), text(&flow["destination"]));
            (format!("{from} {to}"), text(&flow["public"]))
        })
        .collect())
}

/// Flows leave with the egress's address and come back, though the kernel forwards nothing between the two.
fn translates(lan: &str) -> Result<()> {
    let lab = private()?;
    if lan == "br1" {
        bridge_the_lan(&lab)?;
        // Merged packets without checksums, as of a virtual machine.
        lab.client.exec("ethtool -K eth0 tx on tso on gso on")?;
    }
    let flows = [
        mail(),
        media(),
        Flow::new(Transport::Tcp, "2603:1006::1", 443),
        Flow::new(Transport::Udp, "2603:1063::1", 3478),
    ];
    let _servers = lab.serve(&flows)?;
    forwards_nothing(&lab.gateway, lan, "inet")?;
    forwards_nothing_back(&lab.gateway, "inet", lan)?;
    let untranslated = Counter::start(&lab.internet, "private", "ip daddr 10.1.0.0/24")?;
    let public = "ip daddr 10.3.0.1 th dport 16384-32767";
    let translated = Counter::start(&lab.internet, "public", public)?;
    let site = Site::new(&config(lan))?;
    let daemon = start(&site, &lab)?;
    leave_by_the_egress(&lab, &flows, 3_000_000)?;
    seen::no_bad_headers(&lab.client)?;
    let (translated, untranslated) = (translated.packets()?, untranslated.packets()?);
    ensure!(
        translated > 20 && untranslated == 0,
        "{translated}, {untranslated}"
    );
    let status = site.json(&lab.gateway, &["status"])?;
    let address = &status["egress"]["local"]["public_address"];
    ensure!(*address == "10.3.0.1", "{status}");
    daemon.stop()?;
    Ok(())
}

/// Has netfilter drop what the kernel would forward as replies.
fn forwards_nothing_back(gateway: &Namespace, from: &str, to: &str) -> Result<()> {
    let rule = format!("iifname \"{from}\" oifname \"{to}\" ip saddr 52.0.0.0/8 drop");
    gateway.exec(&format!("nft add rule inet proof forward {rule}"))?;
    Ok(())
}

/// As over PPP, packets have no link header.
fn point_to_point() -> Result<()> {
    let lab = private()?;
    let _ends = [
        Tunnel::start(&lab.gateway, "10.9.0.1", "10.3.0.1", "10.3.0.2")?,
        Tunnel::start(&lab.internet, "10.9.0.2", "10.3.0.2", "10.3.0.1")?,
    ];
    let flows = [mail(), media()];
    let _servers = lab.serve(&flows)?;
    forwards_nothing(&lab.gateway, "lan", "ppp0")?;
    forwards_nothing_back(&lab.gateway, "ppp0", "lan")?;
    let site = Site::new(&config("lan").replace(
        "interface = \"inet\"\ngateway = \"10.3.0.2\"\ngateway6 = \"fd00:3::2\"",
        "interface = \"ppp0\"",
    ))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    leave_by_the_egress(&lab, &flows, 1_000_000)?;
    let socket = socket(&lab.client, media().destination)?;
    ensure!(ask(&socket, 3001)? == "internet");
    seen::no_bad_headers(&lab.client)?;
    let public = public(&site, &lab)?;
    let mut addresses = public.values();
    ensure!(
        addresses.all(|address| address.starts_with("10.9.0.1:")),
        "{public:?}"
    );
    daemon.stop()?;
    Ok(())
}

/// Datagrams that are longer than any link takes, in both directions.
fn fragments() -> Result<()> {
    let lab = private()?;
    let _servers = lab.serve(&[media()])?;
    let site = Site::new(&config("lan"))?;
    let daemon = start(&site, &lab)?;
    let socket = socket(&lab.client, media().destination)?;
    for bytes in [1, 1471, 3001, 9000] {
        let identity = ask(&socket, bytes).with_context(|| format!("{bytes} bytes"))?;
        ensure!(
            identity == "internet",
            "{bytes} bytes came out at {identity}"
        );
    }
    seen::no_bad_headers(&lab.internet)?;
    seen::no_bad_headers(&lab.client)?;
    daemon.stop()?;
    Ok(())
}

/// The far end has no such service, and says so.
fn closed_port() -> Result<()> {
    let lab = private()?;
    lab.own([media().destination.ip()])?;
    let site = Site::new(&config("lan"))?;
    let daemon = start(&site, &lab)?;
    let socket = socket(&lab.client, media().destination)?;
    socket.send(b"hello")?;
    let heard = socket.recv(&mut [0; 9]).map_err(|error| error.kind());
    ensure!(heard == Err(ErrorKind::ConnectionRefused), "{heard:?}");
    seen::no_bad_headers(&lab.client)?;
    daemon.stop()?;
    Ok(())
}

/// Others than the flow's remote send to its public port, and the remote to others.
fn strangers() -> Result<()> {
    let lab = private()?;
    let _servers = lab.serve(&[media()])?;
    lab.own(["52.113.0.2".parse()?])?;
    let site = Site::new(&config("lan"))?;
    let daemon = start(&site, &lab)?;
    let socket = socket(&lab.client, media().destination)?;
    ask(&socket, 10)?;
    let flows = public(&site, &lab)?;
    let port: SocketAddr = flows.values().next().context("no mapping")?.parse()?;
    let arrived = Counter::start(&lab.gateway, "in", "oifname \"lan\" ip saddr 52.113.0.0/16")?;
    let wire = Wire::listen(&lab.client, "eth0")?;
    lab.internet.enter(move || {
        for from in ["52.113.0.2:3478", "52.113.0.1:3479", "52.113.0.2:443"] {
            let stranger = UdpSocket::bind(from)?;
            stranger.send_to(b"stranger", port)?;
            let _ = std::net::TcpStream::connect_timeout(&port, Duration::from_millis(100));
        }
        let stranger = UdpSocket::bind("52.113.0.2:5000")?;
        for other in (16_384..32_768)
            .step_by(7)
            .filter(|other| *other != port.port())
        {
            stranger.send_to(b"stranger", SocketAddr::new(port.ip(), other))?;
        }
        Ok(())
    })?;
    // What does get in comes behind all that.
    ensure!(ask(&socket, 11)? == "internet");
    let mut seen = 0;
    loop {
        let frame = wire.receive().context("not even the reply came in")?;
        let from_peer = frame.len() > 42 && frame[26..30] == [52, 113, 0, 1];
        let is_stranger = frame.windows(8).any(|part| part == b"stranger");
        ensure!(!is_stranger, "{frame:x?}");
        seen += usize::from(from_peer);
        if from_peer && frame[12..14] == [8, 0] && frame[34..36] == 3478u16.to_be_bytes() {
            break;
        }
    }
    ensure!(seen == 1 && arrived.packets()? == 0, "{seen}");
    daemon.stop()?;
    Ok(())
}

/// A restart, a kill, a reload and another list move no mapping.
fn keeps_ports() -> Result<()> {
    let lab = private()?;
    let _servers = lab.serve(&[media(), mail()])?;
    let site = Site::new(&config("lan"))?;
    let mut daemon = start(&site, &lab)?;
    let calls = Connections::open(&lab.client, &[mail().destination], 20)?;
    let socket = socket(&lab.client, media().destination)?;
    ask(&socket, 10)?;
    let before = public(&site, &lab)?;
    ensure!(before.len() == 21, "{before:?}");
    let check = |what: &str| -> Result<()> {
        let now = calls.rounds(3).context(what.to_owned())?;
        let ended = now.iter().find(|call| call.error.is_some());
        ensure!(ended.is_none(), "{what}: {ended:?}");
        ensure!(ask(&socket, 10)? == "internet", "{what}");
        let after = public(&site, &lab)?;
        ensure!(after == before, "{what}: {before:?} became {after:?}");
        Ok(())
    };
    check("nothing")?;
    site.configure(&config("lan").replace("[list]", "[pinning]\nsize = 20000\n[list]"))?;
    site.json(&lab.gateway, &["reload"])?;
    check("a reload with a table of flows of another size")?;
    daemon.kill()?;
    thread::sleep(Duration::from_millis(300));
    daemon = start(&site, &lab)?;
    check("a kill")?;
    site.configure(&config("lan").replace("worldwide", "china"))?;
    site.json(&lab.gateway, &["reload"])?;
    check("another list")?;
    daemon.stop()?;
    Ok(())
}

/// A second link that is plugged in later translates too. A flow that goes over to it has the port that it had, with another address.
fn fails_over() -> Result<()> {
    let lab = private()?;
    lab.wan.ip("route del 10.1.0.0/24")?;
    let _servers = lab.serve(&[media()])?;
    let second = "[egress.lte]\ninterface = \"wwan0\"\ngateway = \"10.4.0.2\"\nmode = \"redirect\"\nmasquerade = true\nprobes = []\n\
                  [health]\nhold_down = \"500ms\"\n\
                  [[policy]]\ncategory = \"optimize\"\naction = [\"local\", \"lte\"]\n";
    let site = Site::new(&format!("{}{second}", config("lan")))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    second_link(&lab)?;
    let is_up = |name: &str| {
        let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
        status["egress"][name]["v4"]["up"] == true
    };
    daemon.wait_until(|_| is_up("local") && is_up("lte"))?;
    let socket = socket(&lab.client, media().destination)?;
    ensure!(ask(&socket, 10)? == "internet");
    let port = |address: &str| -> Result<String> {
        let mapping = public(&site, &lab)?;
        let public = mapping.values().next().context("no mapping")?;
        let port = public.strip_prefix(address).context("another address");
        Ok(port.with_context(|| public.clone())?.to_owned())
    };
    let before = port("10.3.0.1:")?;
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(|_| ask(&socket, 10).is_ok_and(|identity| identity == "wan"))?;
    ensure!(port("10.4.0.1:")? == before);
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(|_| is_up("local"))?;
    ensure!(ask(&socket, 20)? == "wan", "a flow that works was moved");
    lab.wan.ip("link set eth1 down")?;
    daemon.wait_until(|_| ask(&socket, 30).is_ok_and(|identity| identity == "internet"))?;
    ensure!(port("10.3.0.1:")? == before);
    daemon.stop()?;
    Ok(())
}

/// The provider gives another address: datagrams go on with it at once, connections end rather than hang.
fn new_address() -> Result<()> {
    let lab = private()?;
    let _servers = lab.serve(&[media(), mail()])?;
    let site = Site::new(&config("lan"))?;
    let mut daemon = start(&site, &lab)?;
    let calls = Connections::open(&lab.client, &[mail().destination], 3)?;
    let socket = socket(&lab.client, media().destination)?;
    ask(&socket, 10)?;
    // Whoever gives a new address keeps the network.
    lab.gateway
        .sysctl("net.ipv4.conf.inet.promote_secondaries", 1)?;
    lab.gateway
        .ip_lines("addr add 10.3.0.9/24 dev inet\naddr del 10.3.0.1/24 dev inet")?;
    daemon.wait_until(|_| {
        let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
        status["egress"]["local"]["public_address"] == "10.3.0.9"
    })?;
    daemon.wait_until(|_| ask(&socket, 10).is_ok_and(|identity| identity == "internet"))?;
    let mapping = public(&site, &lab)?;
    ensure!(
        mapping
            .values()
            .all(|public| public.starts_with("10.3.0.9:")),
        "{mapping:?}"
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    while calls.now().iter().any(|call| call.error.is_none()) {
        ensure!(Instant::now() < deadline, "{:?}", calls.now());
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(bulk(&lab.client, mail().destination, 100_000)? == "internet");
    daemon.stop()?;
    Ok(())
}

/// More flows to one remote than there are public ports.
fn run_out() -> Result<()> {
    let lab = private()?;
    let _servers = lab.serve(&[media(), mail()])?;
    let site = Site::new(&config("lan"))?;
    let mut daemon = start(&site, &lab)?;
    let addresses = (10..110).map(|host| format!("addr add 10.1.0.{host}/24 dev eth0"));
    lab.client
        .ip_lines(&addresses.collect::<Vec<_>>().join("\n"))?;
    let wire = Wire::open(&lab.client, "eth0")?;
    let header = lab.ethernet(0x0800)?;
    let flows: Vec<Vec<u8>> = (0..18_000u16)
        .map(|at| -> Result<Vec<u8>> {
            let mut packet = Ipv4Udp::new([52, 113, 0, 1], 3478).to_bytes();
            packet[10..12].fill(0);
            packet[15] = 10 + u8::try_from(at % 100)?;
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum);
            packet[20..22].copy_from_slice(&(2000 + at / 100).to_be_bytes());
            Ok([header.clone(), packet].concat())
        })
        .collect::<Result<_>>()?;
    // Flows that are answered make no room for others. The server answers so many at a time.
    for number in [16_000, 16_000, flows.len()] {
        for some in flows[..number].chunks(40) {
            some.iter().try_for_each(|frame| wire.send(frame))?;
            thread::sleep(Duration::from_millis(3));
        }
    }
    let stats = site.json(&lab.gateway, &["stats"])?;
    let (full, steered) = (reason(&stats, "nat_full"), reason(&stats, "steered"));
    ensure!(
        full > 300 && steered > 40_000,
        "{full} full, {steered} steered"
    );
    daemon.wait_until(|_| {
        let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
        status["alerts"]
            .to_string()
            .contains("public ports run out")
            && status["nat"]["busiest"]["remote"] == "52.113.0.1:3478"
    })?;
    // Other remotes have ports of their own.
    ensure!(mail().talk(&lab.client)? == "internet");
    daemon.stop()?;
    Ok(())
}

/// The gateway's own sockets, and the operator's masquerading of other traffic, on the same interface.
fn others() -> Result<()> {
    let lab = private()?;
    let other = Flow::new(Transport::Tcp, "198.51.100.7", 443);
    let flows = [media(), mail(), other.clone()];
    lab.own(flows.iter().map(|flow| flow.destination.ip()))?;
    let _servers = Servers::start(&lab.internet, "internet", &flows)?;
    lab.gateway.ip("route add 198.51.100.7 via 10.3.0.2")?;
    lab.gateway.ip("route add 52.98.1.1 via 10.3.0.2")?;
    lab.gateway.exec("nft add table ip office")?;
    lab.gateway
        .exec("nft add chain ip office post { type nat hook postrouting priority srcnat ; }")?;
    lab.gateway
        .exec("nft add rule ip office post oifname \"inet\" masquerade")?;
    let site = Site::new(&config("lan"))?;
    let daemon = start(&site, &lab)?;
    for flow in &flows {
        ensure!(
            flow.talk(&lab.client)? == "internet",
            "{flow:?} of the client"
        );
    }
    for flow in [&mail(), &other] {
        ensure!(
            flow.talk(&lab.gateway)? == "internet",
            "{flow:?} of the gateway"
        );
    }
    let tracked = lab.gateway.exec("conntrack -L -s 10.1.0.2")?;
    ensure!(
        tracked.contains("198.51.100.7") && !tracked.contains("52.113.0.1"),
        "{tracked}"
    );
    daemon.stop()?;
    Ok(())
}

/// A gateway that has masqueraded by the kernel goes over to redirect mode: datagrams go on with another public port, connections end.
fn moves() -> Result<()> {
    let lab = private()?;
    let _servers = lab.serve(&[media(), mail()])?;
    let site = Site::new(&config("lan").replace("redirect", "route"))?;
    let daemon = start(&site, &lab)?;
    let calls = Connections::open(&lab.client, &[mail().destination], 3)?;
    let socket = socket(&lab.client, media().destination)?;
    ensure!(ask(&socket, 10)? == "internet");
    site.configure(&config("lan"))?;
    site.json(&lab.gateway, &["reload"])?;
    ensure!(ask(&socket, 10)? == "internet");
    let deadline = Instant::now() + Duration::from_secs(10);
    while calls.now().iter().any(|call| call.error.is_none()) {
        if Instant::now() > deadline {
            bail!("connections hang: {:?}", calls.now());
        }
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(mail().talk(&lab.client)? == "internet");
    let stats = site.json(&lab.gateway, &["stats"])?;
    ensure!(reason(&stats, "nat_unknown") > 0, "{stats}");
    daemon.stop()?;
    Ok(())
}
