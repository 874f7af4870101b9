//! Real conversations in both modes, and where they come out.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport, bulk};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::seen;
use breakout_tests::server::Servers;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("bulk_tcp_in_route_mode", || bulk_tcp("route")),
    ("bulk_tcp_in_redirect_mode", || bulk_tcp("redirect")),
    ("trace_logs_decisions_only_when_asked", trace),
    (
        "without_a_gateway_in_the_config_it_is_learnt",
        learnt_gateway,
    ),
];

/// 100 MB there and back over IPv4 and 10 MB over IPv6, every byte compared, no bad checksum at the receiver.
fn bulk_tcp(mode: &str) -> Result<()> {
    let v4 = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    let v6 = Flow::new(Transport::Tcp, "2603:1006::1", 443);
    let lab = Lab::build()?;
    let flows = [v4.clone(), v6.clone()];
    let _servers = lab.serve(&flows)?;
    let site = Site::new(&CONFIG.replace("MODE", mode))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| mode == "route" || site.next_hops_known(&lab.gateway))?;
    let transfers: [(SocketAddr, usize); 2] =
        [(v4.destination, 100_000_000), (v6.destination, 10_000_000)];
    for (destination, size) in transfers {
        let identity = bulk(&lab.client, destination, size)?;
        ensure!(
            identity == "internet",
            "{destination} came out at {identity}"
        );
    }
    seen::no_bad_headers(&lab.internet)?;
    if mode == "redirect" {
        let stats = site.json(&lab.gateway, &["stats"])?;
        let reasons = stats["reasons"].as_array().into_iter().flatten();
        let by_kernel = reasons
            .filter(|reason| {
                reason["reason"]
                    .as_str()
                    .is_some_and(|r| r.starts_with("kernel_"))
            })
            .map(|reason| reason["packets"].as_u64().unwrap_or(0))
            .sum::<u64>();
        ensure!(
            by_kernel == 0,
            "{by_kernel} packets were not redirected: {stats}"
        );
    }
    daemon.stop()?;
    Ok(())
}

fn trace() -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    lab.own([flow.destination.ip()])?;
    let _internet = Servers::start(&lab.internet, "internet", std::slice::from_ref(&flow))?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let quiet = Daemon::start(&site, &lab.gateway)?;
    ensure!(flow.talk(&lab.client)? == "internet");
    let log = quiet.stop()?;
    ensure!(!log.contains("tc: "), "{log}");
    let mut daemon = Daemon::start_with(&site, &lab.gateway, &["--trace"])?;
    ensure!(flow.talk(&lab.client)? == "internet");
    daemon.wait_until(|daemon| daemon.log().contains("tc: steered"))?;
    daemon.stop()?;
    Ok(())
}

fn learnt_gateway() -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    lab.own([flow.destination.ip()])?;
    let _internet = Servers::start(&lab.internet, "internet", std::slice::from_ref(&flow))?;
    lab.gateway
        .ip("route add default via 10.3.0.2 dev inet metric 500")?;
    let config = CONFIG.replace("MODE", "route");
    let without: String = config
        .lines()
        .filter(|line| !line.starts_with("gateway"))
        .map(|line| format!("{line}\n"))
        .collect();
    let site = Site::new(&without)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(
        status["egress"]["local"]["v4"]["gateway"] == "10.3.0.2",
        "{status}"
    );
    ensure!(status["egress"]["local"]["v6"]["up"] == false, "{status}");
    ensure!(flow.talk(&lab.client)? == "internet");
    let v6 = [
        "explain",
        "2603:1063::1",
        "--proto",
        "udp",
        "--port",
        "3478",
    ];
    let answer = site.json(&lab.gateway, &v6)?;
    ensure!(
        answer["verdict"] == "pass" && answer["reason"] == "egress_down",
        "{answer}"
    );
    daemon.stop()?;
    Ok(())
}
