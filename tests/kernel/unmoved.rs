//! Connections that changes of lists, rules and the controller itself must not move.

use std::time::Instant;

use anyhow::{Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::live::Connections;
use breakout_tests::seen::Counter;
use fastrand::Rng;

use crate::office::{MAIL, Office, address, config, list, ways};
use crate::{Test, setting};

pub(crate) const TESTS: &[Test] = &[("changes_of_list_and_policy_move_no_connection", unmoved)];

/// Connections on both ways go on where they are while lists and policies come and go, also those that a new list or rule
/// would put elsewhere.
fn unmoved() -> Result<()> {
    let (lists, policies) = (
        setting("BREAKOUT_TEST_LISTS", 1000),
        setting("BREAKOUT_TEST_LISTS", 1000) / 10,
    );
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    lab.gateway.exec("nft add table ip track")?;
    // The ordinary path's connections are tracked, as with any firewall that keeps states.
    lab.gateway
        .exec("nft add chain ip track forward { type filter hook forward priority 0 ; }")?;
    lab.gateway
        .exec("nft add rule ip track forward ct state established accept")?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    // Not a packet may go the other way, even if its answer would never be missed.
    let wrong = "oifname . ip daddr { \"wan\" . 52.98.1.1, \"inet\" . 203.0.113.1 }";
    let wrong = Counter::start(&lab.gateway, "wrong", wrong)?;
    let ends = [address(MAIL), address("203.0.113.1:443")];
    let connections = Connections::open(&lab.client, &ends, 200)?;
    connections.rounds(2)?;
    ensure!(
        ways(&connections) == [100, 100, 0],
        "{:?}",
        ways(&connections)
    );
    let mut rng = Rng::with_seed(7);
    let started = Instant::now();
    let mut changes = 0;
    for number in 0..lists + policies {
        if number % 11 == 10 {
            let rules = match rng.u8(0..4) {
                0 => "[[policy]]\nsets = 11\naction = \"local\"\n",
                1 => "[[policy]]\ncategory = \"optimize\"\naction = \"local\"\n",
                2 => "[[policy]]\ncategory = \"optimize\"\naction = \"pass\"\n",
                _ => "[[policy]]\nsets = 1\nsources = \"10.9.0.0/16\"\naction = \"local\"\n",
            };
            site.configure(&config(&format!("probes = []\n{rules}")))?;
        } else {
            // The ordinary path's destination is of the list or not; mail's disappears and comes back.
            let mut others: Vec<String> = (0..rng.u8(1..9))
                .map(|n| format!("198.18.{n}.0/24"))
                .collect();
            if rng.bool() {
                others.push("203.0.113.0/24".to_owned());
            }
            let text = list(&others);
            let text = if rng.bool() {
                text.replace("52.98.0.0/16", "52.99.0.0/16")
            } else {
                text
            };
            std::fs::write(site.path().join("list.json"), text)?;
        }
        let reloaded = site.json(&lab.gateway, &["reload"])?;
        changes += usize::from(reloaded["changed"] == true);
    }
    println!(
        "{lists} lists and {policies} policies, {changes} of them other rules, in {:?}",
        started.elapsed()
    );
    ensure!(changes > lists / 2, "only {changes} changed anything");
    let last = connections.rounds(3)?;
    ensure!(
        ways(&connections) == [100, 100, 0],
        "{:?} {:?}",
        ways(&connections),
        last.iter().find(|one| one.error.is_some())
    );
    ensure!(
        wrong.packets()? == 0,
        "{} packets went astray",
        wrong.packets()?
    );
    daemon.stop()?;
    Ok(())
}
