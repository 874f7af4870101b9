//! Rules, routes and marks: ours are right, everybody else's stay as they are.

use anyhow::{Result, ensure};
use breakout::explain::{Proto, Query};
use breakout::list::Instance;
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::testrun::TestBench;

use crate::Test;
use crate::office::Office;

pub(crate) const TESTS: &[Test] = &[
    (
        "an_egress_that_goes_down_and_comes_back_is_followed",
        link_down_and_up,
    ),
    (
        "a_link_that_is_down_at_the_start_is_waited_for",
        down_at_start,
    ),
    ("a_lan_interface_that_comes_back_is_attached_again", || {
        lan_comes_back("route")?;
        lan_comes_back("redirect")
    }),
    (
        "a_lan_interface_that_is_missing_holds_up_no_other",
        other_lan,
    ),
    (
        "an_egress_whose_route_the_kernel_refuses_is_left",
        refused_route,
    ),
    ("numbers_of_ones_own_are_used", own_numbers),
    ("an_egress_that_is_added_moves_nobody", added_egress),
    ("other_bits_of_the_mark_stay", other_mark_bits),
    ("rules_that_somebody_removes_come_back", removed_rules),
];

fn link_down_and_up() -> Result<()> {
    let flow = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    for mode in ["route", "redirect"] {
        let lab = Lab::build()?;
        let _servers = lab.serve(std::slice::from_ref(&flow))?;
        let site = Site::new(&CONFIG.replace("MODE", mode))?;
        let mut daemon = Daemon::start(&site, &lab.gateway)?;
        ensure!(flow.talk(&lab.client)? == "internet", "{mode}: at first");
        let is_up = |up: bool| {
            let (site, lab) = (&site, &lab);
            move |_: &Daemon<'_>| {
                let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
                status["egress"]["local"]["v4"]["up"] == up
            }
        };
        lab.internet.ip("link set eth0 down")?;
        daemon.wait_until(is_up(false))?;
        ensure!(flow.talk(&lab.client)? == "wan", "{mode}: without the link");
        lab.internet.ip("link set eth0 up")?;
        lab.internet.ip("route replace 10.1.0.0/24 via 10.3.0.1")?;
        daemon.wait_until(is_up(true))?;
        ensure!(
            flow.talk(&lab.client)? == "internet",
            "{mode}: with the link again"
        );
        let log = daemon.stop()?;
        ensure!(
            log.contains("egress local is down") && log.contains("egress local is up"),
            "{log}"
        );
    }
    Ok(())
}

fn down_at_start() -> Result<()> {
    let flow = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    let lab = Lab::build()?;
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    lab.internet.ip("link set eth0 down")?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    let problem = site.json(&lab.gateway, &["status"])?["egress"]["local"]["problem"].clone();
    ensure!(
        problem
            .as_str()
            .is_some_and(|text| text.contains("inet is down")),
        "{problem}"
    );
    ensure!(flow.talk(&lab.client)? == "wan");
    lab.internet.ip("link set eth0 up")?;
    lab.internet.ip("route replace 10.1.0.0/24 via 10.3.0.1")?;
    daemon.wait_until(|daemon| daemon.log().contains("egress local is up"))?;
    ensure!(flow.talk(&lab.client)? == "internet");
    daemon.stop()?;
    Ok(())
}

fn lan_comes_back(mode: &str) -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let site = Site::new(&CONFIG.replace("MODE", mode))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(flow.talk(&lab.client)? == "internet");
    let is_attached_again = |times: usize| {
        move |daemon: &Daemon<'_>| {
            let log = daemon.log();
            log.matches("attached to lan again").count() == times
        }
    };
    // It was called something else for a time, and is the same interface again.
    lab.gateway.ip("link set lan down")?;
    lab.gateway.ip("link set lan name lan9")?;
    daemon.wait_until(|daemon| daemon.log().contains("no interface lan"))?;
    lab.gateway.ip("link set lan9 name lan")?;
    lab.gateway.ip("link set lan up")?;
    daemon.wait_until(is_attached_again(1))?;
    let way = flow.talk(&lab.client)?;
    ensure!(way == "internet", "{way}: {}", daemon.log());
    let checked = site.output(&lab.gateway, &["status", "--check"])?;
    ensure!(checked.status.success(), "{checked:?}");
    lab.gateway.ip("link del lan")?;
    daemon.wait_until(|daemon| daemon.log().matches("no interface lan").count() == 2)?;
    breakout_tests::lab::connect(&lab.client, "eth0", &lab.gateway, "lan")?;
    lab.gateway.ip("addr add 10.1.0.1/24 dev lan")?;
    lab.client
        .ip_lines("addr add 10.1.0.2/24 dev eth0\nroute add default via 10.1.0.1")?;
    lab.tune()?;
    daemon.wait_until(is_attached_again(2))?;
    let way = flow.talk(&lab.client)?;
    ensure!(way == "internet", "{way}: {}", daemon.log());
    daemon.stop()?;
    Ok(())
}

/// The kernel refuses the route of an egress: its gateway's address is a broadcast address by now.
fn refused_route() -> Result<()> {
    let office = Office::open("probes = []\n[health]\nhold_down = \"500ms\"\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    lab.gateway
        .ip("addr add 10.3.0.9/24 brd 10.3.0.2 dev inet")?;
    lab.gateway.ip("route flush table 5001")?;
    daemon.wait_until(office.is_up(false))?;
    let status = site.json(&lab.gateway, &["status"])?;
    let why = &status["egress"]["local"]["v4"]["standing"]["why"];
    ensure!(
        why.as_str()
            .is_some_and(|why| why.contains("the kernel refuses its IPv4 route")),
        "{why}"
    );
    ensure!(office.new_way()? == "wan", "without its route");
    ensure!(office.new_way6()? == "internet", "IPv6 has its route");
    lab.gateway.ip("addr del 10.3.0.9/24 dev inet")?;
    daemon.wait_until(office.is_up(true))?;
    ensure!(office.new_way()? == "internet");
    daemon.stop()?;
    Ok(())
}

/// The configuration names a second LAN interface, which is not there at first.
fn other_lan() -> Result<()> {
    let flow = Flow::new(Transport::Udp, "52.113.0.1", 3478);
    let lab = Lab::build()?;
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let config = CONFIG.replace("MODE", "route");
    let site = Site::new(&format!("{config}\n[[lan]]\ninterface = \"lan2\"\n"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(flow.talk(&lab.client)? == "internet");
    let checked = site.output(&lab.gateway, &["status", "--check"])?;
    let message = String::from_utf8_lossy(&checked.stderr).into_owned();
    ensure!(
        checked.status.code() == Some(9) && message.contains("no interface lan2"),
        "{checked:?}"
    );
    // Who takes it out of the configuration hears no more of it.
    site.configure(&config)?;
    ensure!(site.output(&lab.gateway, &["reload"])?.status.success());
    let checked = site.output(&lab.gateway, &["status", "--check"])?;
    ensure!(checked.status.success(), "{checked:?}");
    lab.gateway
        .ip("link add lan2 type veth peer name lan2-peer")?;
    site.configure(&format!("{config}\n[[lan]]\ninterface = \"lan2\"\n"))?;
    ensure!(site.output(&lab.gateway, &["reload"])?.status.success());
    lab.gateway.ip("link del lan2")?;
    daemon.wait_until(|daemon| daemon.log().matches("no interface lan2").count() >= 2)?;
    // The first one is made anew while the other is still missing.
    lab.gateway.ip("link del lan")?;
    daemon.wait_until(|daemon| daemon.log().contains("no interface lan in"))?;
    breakout_tests::lab::connect(&lab.client, "eth0", &lab.gateway, "lan")?;
    lab.gateway.ip("addr add 10.1.0.1/24 dev lan")?;
    lab.client
        .ip_lines("addr add 10.1.0.2/24 dev eth0\nroute add default via 10.1.0.1")?;
    daemon.wait_until(|daemon| daemon.log().contains("attached to lan again"))?;
    ensure!(flow.talk(&lab.client)? == "internet");
    lab.gateway
        .ip("link add lan2 type veth peer name lan2-peer")?;
    daemon.wait_until(|daemon| daemon.log().contains("attached to lan2 again"))?;
    ensure!(
        site.output(&lab.gateway, &["status", "--check"])?
            .status
            .success()
    );
    daemon.stop()?;
    Ok(())
}

/// Marks, priority and tables that the operator has chosen, with traffic and with our own table of nftables.
fn own_numbers() -> Result<()> {
    let flow = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    let lab = Lab::build()?;
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let before = lab.gateway.exec("nft list ruleset")? + &lab.gateway.ip("rule show")?;
    let numbers =
        "masquerade = true\n[routing]\nmark_mask = 0x0003e000\nrule_priority = 777\ntable = 6001\n";
    let site = Site::new(&format!("{}{numbers}", CONFIG.replace("MODE", "route")))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    ensure!(flow.talk(&lab.client)? == "internet");
    let rules = lab.gateway.ip("rule show")?;
    ensure!(
        rules.contains("777:\tfrom all fwmark 0x2000/0x3e000 lookup 6001"),
        "{rules}"
    );
    ensure!(
        lab.gateway
            .exec("nft list tables")?
            .contains("breakout-6001")
    );
    let tracked = lab
        .gateway
        .exec("conntrack -L -p tcp --reply-dst 10.3.0.1")?;
    ensure!(
        tracked.contains("dport=443"),
        "it was not masqueraded: {tracked}"
    );
    daemon.stop()?;
    let after = lab.gateway.exec("nft list ruleset")? + &lab.gateway.ip("rule show")?;
    ensure!(before == after, "{after}");
    Ok(())
}

/// Its name sorts before the one that is in use.
fn added_egress() -> Result<()> {
    let lab = Lab::build()?;
    let config = CONFIG.replace("MODE", "route");
    let site = Site::new(&config)?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let mark = |status: &serde_json::Value| status["egress"]["local"]["mark"].clone();
    let before = mark(&site.json(&lab.gateway, &["status"])?);
    site.configure(&format!(
        "{config}\n[egress.backup]\ninterface = \"wan\"\ngateway = \"10.2.0.2\"\n"
    ))?;
    site.json(&lab.gateway, &["reload"])?;
    let after = site.json(&lab.gateway, &["status"])?;
    ensure!(mark(&after) == before, "{after}");
    ensure!(after["egress"]["backup"]["table"] == 5002, "{after}");
    let rules = lab.gateway.ip("rule show")?;
    ensure!(
        rules.contains("0x1000000/0x1f000000 lookup 5001"),
        "{rules}"
    );
    daemon.stop()?;
    Ok(())
}

/// A packet that comes with a mark keeps the bits outside of our mask. A program of the bench's own sets the mark, as test
/// runs take it from their context.
fn other_mark_bits() -> Result<()> {
    let mut bench = TestBench::new(Instance::Worldwide)?;
    let query = Query::new("52.113.0.1".parse()?, Proto::Udp, 3478);
    let mark = bench.mark_after(&query, 0x12ff_0034)?;
    ensure!(mark == 0x01ff_0034, "steered: {mark:#x}");
    let other = Query { port: 53, ..query };
    let mark = bench.mark_after(&other, 0x12ff_0034)?;
    ensure!(mark == 0x12ff_0034, "passed: {mark:#x}");
    Ok(())
}

fn removed_rules() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    lab.gateway.ip("rule del priority 900")?;
    lab.gateway.ip("-6 rule del priority 900")?;
    lab.gateway.ip("route flush table 5001")?;
    daemon.wait_until(|_| {
        let rules = lab.gateway.ip("rule show").unwrap_or_default();
        let v6 = lab.gateway.ip("-6 rule show").unwrap_or_default();
        let routes = lab.gateway.ip("route show table 5001").unwrap_or_default();
        rules.contains("lookup 5001") && v6.contains("lookup 5001") && routes.contains("default")
    })?;
    daemon.stop()?;
    Ok(())
}
