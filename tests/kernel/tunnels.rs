//! LAN interfaces whose packets have no link header: remote workers and branches come in by tunnels.

use std::collections::BTreeSet;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::netns::Namespace;
use breakout_tests::seen;
use breakout_tests::wire::Wire;

use crate::Test;
use crate::links::Tunnel;
use crate::mtu::{connected, segment_size};

pub(crate) const TESTS: &[Test] = &[
    ("a_link_without_neighbours_is_a_lan", by_tun),
    (GRE, by_gre),
];

pub(crate) const GRE: &str = "a_gre_tunnel_is_a_lan_like_any_other";

/// The wire below the tunnel: the gateway's end and the client's.
const WIRE: [&str; 2] = ["10.8.0.1", "10.8.0.2"];

/// The MTU of the gateway's end.
const NARROW: usize = 1300;

/// That of the egress.
const NARROWER: usize = 1290;

/// A tunnel in the place of the lab's LAN: the addresses of both ends are the tunnel's, and the wire has others.
fn tunnel(lab: &Lab, name: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let ends = [(&lab.gateway, "lan"), (&lab.client, "eth0")];
    for ((namespace, wire), address) in ends.iter().zip(WIRE) {
        namespace.ip_lines(&format!(
            "addr flush dev {wire}\naddr add {address}/24 dev {wire}"
        ))?;
    }
    make()?;
    for ((namespace, _), host) in ends.iter().zip([1, 2]) {
        namespace.ip_lines(&format!(
            "link set {name} up
             addr add 10.1.0.{host}/24 dev {name}
             addr add fd00:1::{host}/64 dev {name} nodad"
        ))?;
    }
    lab.client.ip_lines(&format!(
        "route replace default dev {name} src 10.1.0.2\nroute replace ::/0 dev {name} src fd00:1::2"
    ))
}

/// The client is told how long the packets may be that leave by the egress.
fn hears_of_narrow_egress(client: &Namespace, remote: IpAddr) -> Result<()> {
    let said = format!("mtu {NARROWER}");
    for _ in 0..10 {
        client.enter(move || {
            let socket = connected((remote, 3478).into())?;
            // An error is that it is known already. What is told is for a socket that is still there.
            let _ = socket.send(&[b'x'; NARROW]);
            thread::sleep(Duration::from_millis(100));
            Ok(())
        })?;
        if client.ip(&format!("route get {remote}"))?.contains(&said) {
            return Ok(());
        }
    }
    anyhow::bail!("nobody tells the client of an MTU of {NARROWER}")
}

/// Datagrams are answered by some that are too long for the gateway's end. They are lost until their sender knows how long they may be.
fn gets_long_answers(client: &Namespace, remote: SocketAddr) -> Result<()> {
    client.enter(move || {
        let socket = connected(remote)?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let sent = [b'x'; NARROW + 50];
        for _ in 0..10 {
            let mut answer = [0; 2 * NARROW];
            let received = socket.send(&sent).and_then(|_| socket.recv(&mut answer));
            if received.is_ok_and(|length| length > NARROW) {
                return Ok(());
            }
        }
        anyhow::bail!("no long answer came")
    })
}

fn by_tun() -> Result<()> {
    in_every_mode("ppp0", |lab| {
        let end = |namespace: &Namespace, own, local, remote| {
            Tunnel::start(namespace, own, local, remote)
        };
        let [gateway, client] = WIRE;
        Ok([
            end(&lab.gateway, "10.9.0.1", gateway, client)?,
            end(&lab.client, "10.9.0.2", client, gateway)?,
        ])
    })
}

fn by_gre() -> Result<()> {
    in_every_mode("gre7", |lab| {
        let [gateway, client] = WIRE;
        for (namespace, local, remote) in [
            (&lab.gateway, gateway, client),
            (&lab.client, client, gateway),
        ] {
            namespace.ip(&format!(
                "link add gre7 type gre local {local} remote {remote}"
            ))?;
        }
        Ok(())
    })
}

/// Steered flows of both families and all else go their ways, and answers come back and are noted.
fn in_every_mode<T>(name: &str, make: impl Fn(&Lab) -> Result<T>) -> Result<()> {
    let steered = [
        Flow::new(Transport::Tcp, "52.98.1.1", 443),
        Flow::new(Transport::Udp, "52.113.0.1", 3478),
        Flow::new(Transport::Tcp, "2603:1006::1", 443),
        Flow::new(Transport::Udp, "2603:1063::1", 3478),
    ];
    let others = [
        Flow::new(Transport::Tcp, "198.51.100.7", 443),
        Flow::new(Transport::Udp, "2001:db8::7", 443),
    ];
    for (mode, translates) in [("route", false), ("redirect", false), ("redirect", true)] {
        let what = format!("{name}, {mode}, masquerade = {translates}");
        let lab = Lab::build()?;
        let mut made = None;
        tunnel(&lab, name, || {
            made = Some(make(&lab)?);
            Ok(())
        })?;
        let _servers = lab.serve(&[steered.as_slice(), &others].concat())?;
        let mut config = CONFIG.replace("MODE", mode);
        if translates {
            lab.internet.ip("route del 10.1.0.0/24")?;
            config = config.replace("probes", "masquerade = true\nprobes");
        }
        let site = Site::new(&config.replace("\"lan\"", &format!("\"{name}\"")))?;
        lab.gateway.ip(&format!("link set {name} mtu {NARROW}"))?;
        let mut fitting = NARROW;
        if mode == "redirect" {
            fitting = NARROWER;
            lab.gateway.ip(&format!("link set inet mtu {NARROWER}"))?;
        }
        let wire = Wire::listen(&lab.internet, "eth0")?;
        let mut daemon = Daemon::start(&site, &lab.gateway)?;
        daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
        for (flows, way) in [(steered.as_slice(), "internet"), (&others, "wan")] {
            for flow in flows {
                let identity = flow
                    .talk(&lab.client)
                    .with_context(|| format!("{what}: {flow:?}"))?;
                ensure!(identity == way, "{what}: {flow:?} came out at {identity}");
            }
        }
        for flow in [&steered[0], &steered[2]] {
            let identity = bulk(&lab.client, flow.destination, 1_000_000)
                .with_context(|| format!("{what}: {flow:?}"))?;
            ensure!(
                identity == "internet",
                "{what}: {flow:?} came out at {identity}"
            );
        }
        let announced: BTreeSet<_> = (iter::from_fn(|| wire.receive()))
            .flat_map(|frame| [20, 40].map(|ip| segment_size(&frame, ip).map(|size| (ip, size))))
            .flatten()
            .collect();
        let expected = [20, 40].map(|ip| (ip, u16::try_from(fitting - ip - 20).unwrap_or(0)));
        ensure!(
            announced == BTreeSet::from(expected),
            "{what}: {announced:?}"
        );
        if mode == "redirect" {
            for flow in [&steered[1], &steered[3]] {
                hears_of_narrow_egress(&lab.client, flow.destination.ip())
                    .with_context(|| format!("{what}: {flow:?}"))?;
            }
        }
        // Without translation the kernel forwards answers, and sends what it has to say of them by the ordinary path.
        if translates {
            // The other end of a veth takes no longer ones.
            lab.gateway.ip("link set inet mtu 1500")?;
            gets_long_answers(&lab.client, steered[1].destination).context(what.clone())?;
        }
        seen::no_bad_headers(&lab.internet)?;
        seen::no_bad_headers(&lab.client)?;
        let status = || site.json(&lab.gateway, &["status"]);
        daemon
            .wait_until(|_| {
                status().is_ok_and(|status| {
                    let answers = &status["egress"]["local"]["v4"]["standing"]["answers"]["flows"];
                    answers.as_u64().is_some_and(|flows| flows >= 2)
                })
            })
            .with_context(|| format!("{what}: {}", status().unwrap_or_default()))?;
        daemon.stop()?;
        drop(made);
    }
    Ok(())
}
