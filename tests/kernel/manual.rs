//! The manual's commands, typed as a reader would: those for laboratories here, others where what they are about is tested.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::manual::{block, type_in};

use crate::Test;
use crate::follow::{Office, list};
use crate::redirect::reason;

pub(crate) const TESTS: &[Test] = &[
    ("the_manuals_generators_send_what_it_says", generators),
    ("the_manuals_iperf3_goes_by_the_egress", iperf3),
    ("the_manuals_policy_is_tried_and_applied", policy),
    ("the_manuals_export_of_routes_follows_the_list", export),
];

/// A lab in which the gateway has the manual's MAC address.
fn lab() -> Result<Lab> {
    let lab = Lab::build()?;
    lab.gateway
        .ip("link set dev lan address 02:00:00:00:00:02")?;
    Ok(lab)
}

fn generators() -> Result<()> {
    let lab = lab()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    // The first block is typed where there is nothing but the program.
    let counted = type_in(&site, &lab.client, &block("docs/lab.md", "sh", 1)?)?;
    ensure!(
        counted.contains("steered") && counted.contains("no_prefix"),
        "{counted}"
    );
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let steered =
        || -> Result<u64> { Ok(reason(&site.json(&lab.gateway, &["stats"])?, "steered")) };
    for (number, wanted) in [(2, 50_000), (3, 100_000)] {
        let before = steered()?;
        type_in(&site, &lab.client, &block("docs/lab.md", "sh", number)?)?;
        // The last ones may be on their way.
        let sent = Instant::now();
        while steered()? < before + wanted && sent.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let count = steered()? - before;
        // What the generator sends faster than veth takes it is lost before it is counted.
        ensure!(
            (wanted / 2..=wanted).contains(&count),
            "block {number}: {count} of {wanted}"
        );
    }
    daemon.stop()?;
    Ok(())
}

fn iperf3() -> Result<()> {
    let lab = lab()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let commands = block("docs/lab.md", "sh", 4)?;
    let (far, internet) = (Site::new("")?, &lab.internet);
    std::thread::scope(|scope| {
        let server = scope.spawn(move || type_in(&far, internet, &commands));
        let started = Instant::now();
        while !lab.internet.exec("ss -Hltn sport = :443")?.contains("443") {
            ensure!(
                started.elapsed() < Duration::from_secs(5),
                "iperf3 does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let report = type_in(&site, &lab.client, &block("docs/lab.md", "sh", 5)?)?;
        ensure!(report.contains("receiver"), "{report}");
        server.join().expect("the server does not panic")?;
        Ok(())
    })?;
    ensure!(reason(&site.json(&lab.gateway, &["stats"])?, "steered") > 100);
    daemon.stop()?;
    Ok(())
}

fn policy() -> Result<()> {
    let lab = lab()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    site.configure(&format!(
        "{}[[policy]]\nname = \"first\"\nsources = \"10.1.0.0/24\"\ncategory = \"optimize\"\naction = \"local\"\n",
        CONFIG.replace("MODE", "route")
    ))?;
    let printed = type_in(&site, &lab.gateway, &block("docs/policy.md", "sh", 1)?)?;
    ensure!(printed.contains("first"), "{printed}");
    daemon.stop()?;
    Ok(())
}

fn export() -> Result<()> {
    let office = Office::new("max_removed = \"100 %\"\ngrace = \"0 s\"")?;
    let (site, gateway) = (&office.site, &office.lab.gateway);
    let routes = || -> Result<String> {
        let output = gateway.command("ip").arg("route").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let daemon = Daemon::start(site, gateway)?;
    fs::write(site.path().join("routes.now"), "")?;
    for (version, prefixes, there, gone) in [
        (
            "2026070100",
            &["40.96.0.0/13", "52.112.0.0/14"][..],
            "52.112.0.0/14",
            "40.104.0.0/15",
        ),
        (
            "2026080100",
            &["40.96.0.0/13", "40.104.0.0/15"],
            "40.104.0.0/15",
            "52.112.0.0/14",
        ),
    ] {
        office.service.publish(version, list(prefixes));
        office.fetch()?;
        ensure!(office.version()? == version);
        type_in(site, gateway, &block("docs/policy.md", "sh", 3)?)?;
        let now = routes()?;
        ensure!(now.contains(there) && !now.contains(gone), "{now}");
    }
    daemon.stop()?;
    Ok(())
}
