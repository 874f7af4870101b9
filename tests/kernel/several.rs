//! Several egresses: in order, by weights, and one that comes later.

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::lab::{Lab, connect};
use breakout_tests::live::Stream;

use crate::Test;
use crate::office::{MEDIA, Office, address, config, ways};

pub(crate) const TESTS: &[Test] = &[
    ("the_first_egress_that_works_is_taken", in_order),
    ("weights_share_clients_out", weighted),
    ("an_egress_that_is_missing_at_the_start_comes_later", late),
    ("a_link_in_place_of_another_is_proven_first", replaced),
];

/// A second internet link, `lte`, to the WAN's far end, whose servers say `wan`.
pub(crate) fn second_link(lab: &Lab) -> Result<()> {
    connect(&lab.gateway, "wwan0", &lab.wan, "eth1")?;
    lab.gateway.ip("addr add 10.4.0.1/24 dev wwan0")?;
    lab.gateway.sysctl("net.ipv4.conf.wwan0.rp_filter", 0)?;
    lab.wan.ip("addr add 10.4.0.2/24 dev eth1")?;
    Ok(())
}

const LTE: &str = "probes = []\n[egress.lte]\ninterface = \"wwan0\"\ngateway = \"10.4.0.2\"\nmasquerade = true\nprobes = []\n\
                   [health]\nhold_down = \"500ms\"\n";

/// How many connections the kernel has masqueraded to the second link's address.
fn by_lte(lab: &Lab) -> Result<usize> {
    let entries = lab
        .gateway
        .exec("conntrack -L -p tcp --reply-dst 10.4.0.1")?;
    Ok(entries
        .lines()
        .filter(|line| line.contains("dport=443"))
        .count())
}

/// The same of UDP.
fn by_lte_udp(lab: &Lab) -> Result<usize> {
    let entries = lab
        .gateway
        .exec("conntrack -L -p udp --reply-dst 10.4.0.1")?;
    Ok(entries
        .lines()
        .filter(|line| line.contains("dport=3478"))
        .count())
}

fn in_order() -> Result<()> {
    let rule = "[[policy]]\ncategory = \"optimize\"\naction = [\"local\", \"lte\"]\n";
    let office = Office::open(&format!("{LTE}{rule}"))?;
    let (lab, site) = (&office.lab, &office.site);
    second_link(lab)?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    let explained = |lab: &Lab| {
        site.json(
            &lab.gateway,
            &["explain", "52.98.1.1", "--proto", "tcp", "--port", "443"],
        )
    };
    let answer = explained(lab)?;
    ensure!(
        answer["egress"] == "local" && answer["preference"] == "local > lte",
        "{answer}"
    );
    let call = Stream::start(&lab.client, address(MEDIA))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("internet"))?;
    lab.internet.ip("link set eth0 down")?;
    daemon.wait_until(office.is_up(false))?;
    daemon.wait_until(|_| call.now().as_deref() == Some("wan"))?;
    ensure!(office.new_way()? == "wan");
    ensure!(by_lte(lab)? > 0, "the second link was not taken");
    ensure!(explained(lab)?["egress"] == "lte");
    // A flow that began on the first one goes on by the second; without any egress it takes the ordinary path.
    ensure!(
        call.now().as_deref() == Some("wan") && by_lte_udp(lab)? > 0,
        "the call is not on the second link"
    );
    lab.gateway.ip("link set wwan0 down")?;
    daemon.wait_until(|_| explained(lab).is_ok_and(|answer| answer["egress"].is_null()))?;
    let tracked = by_lte(lab)?;
    ensure!(
        office.new_way()? == "wan" && by_lte(lab)? == tracked,
        "by a link that is down"
    );
    lab.gateway.ip("link set wwan0 up")?;
    lab.internet.ip("link set eth0 up")?;
    daemon.wait_until(office.is_up(true))?;
    ensure!(office.new_way()? == "internet");
    daemon.stop()?;
    Ok(())
}

/// A reload gives the egress another interface. That the one before worked says nothing of it.
fn replaced() -> Result<()> {
    let office = Office::open("probes = [\"icmp:10.3.0.2\"]\n[health]\nhold_down = \"500ms\"\n")?;
    let (lab, site) = (&office.lab, &office.site);
    second_link(lab)?;
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    daemon.wait_until(office.is_up(true))?;
    let reload = |probe: &str| -> Result<()> {
        let health = "[health]\nhold_down = \"500ms\"\n";
        let settings = config(&format!("probes = [\"icmp:{probe}\"]\n{health}"))
            .replace("\"inet\"", "\"wwan0\"")
            .replace("10.3.0.2", "10.4.0.2")
            .replace("gateway6 = \"fd00:3::2\"\n", "");
        site.configure(&settings)?;
        let output = site.output(&lab.gateway, &["reload"])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    };
    reload("10.4.0.9")?;
    for _ in 0..5 {
        ensure!(office.new_way()? == "wan");
    }
    ensure!(by_lte(lab)? == 0, "nobody has answered there");
    reload("10.4.0.2")?;
    daemon.wait_until(office.is_up(true))?;
    ensure!(office.new_way()? == "wan" && by_lte(lab)? == 1);
    daemon.stop()?;
    Ok(())
}

fn weighted() -> Result<()> {
    let rule = "[[policy]]\ncategory = \"optimize\"\naction = { local = 75, lte = 25 }\n";
    let office = Office::open(&format!("{LTE}{rule}"))?;
    let (lab, site) = (&office.lab, &office.site);
    second_link(lab)?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    let (mut clients, mut flows, mut open) = (0, 0, Vec::new());
    for client in 10..74 {
        lab.client.ip_lines(&format!(
            "addr add 10.1.0.{client}/24 dev eth0
             route replace default via 10.1.0.1 src 10.1.0.{client}"
        ))?;
        let connections = office.connections(4)?;
        connections.rounds(2)?;
        let [local, lte, ended] = ways(&connections);
        ensure!(ended == 0 && [0, 4].contains(&lte), "{local} and {lte}");
        (clients, flows) = (clients + lte / 4, flows + lte);
        open.push(connections);
    }
    ensure!((6..=28).contains(&clients), "{clients} of 64");
    let tracked = by_lte(lab)?;
    ensure!(
        tracked == flows,
        "{tracked} tracked, {flows} at its far end"
    );
    daemon.stop()?;
    Ok(())
}

/// A USB stick that is plugged in later. Until then the other egress works, and it is an alert.
fn late() -> Result<()> {
    let rule = "[[policy]]\ncategory = \"optimize\"\naction = [\"lte\", \"local\"]\n";
    let office = Office::open(&format!("{LTE}{rule}"))?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(
        daemon.log().contains("no interface wwan0"),
        "{}",
        daemon.log()
    );
    ensure!(office.new_way()? == "internet");
    let alerts = site.json(&lab.gateway, &["status"])?["alerts"].to_string();
    ensure!(alerts.contains("egress lte is down"), "{alerts}");
    second_link(lab)?;
    daemon.wait_until(|_| {
        let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
        status["egress"]["lte"]["v4"]["up"] == true
    })?;
    ensure!(office.new_way()? == "wan" && by_lte(lab)? > 0);
    daemon.stop()?;
    Ok(())
}
