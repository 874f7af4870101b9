//! Restarts, upgrades and downgrades: a controller that leaves everything to the next one, and one that finds what another
//! version has pinned.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use breakout::datapath::{Asker, Clock};
use breakout::ruleset::{Ruleset, compile};
use breakout_common::path::{Flow as PinnedFlow, ORDINARY};
use breakout_common::table::Destination;
use breakout_tests::daemon::{Daemon, Site, binary, packaged};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::netns::run;
use breakout_tests::programs;
use breakout_tests::seen::Counter;

use crate::office::{Office, ways};
use crate::traffic::{Expected, under_traffic_with};
use crate::{Test, cleanup, setting};

pub(crate) const TESTS: &[Test] = &[
    ("upgrades_in_route_mode_lose_and_misplace_nothing", || {
        upgrades("route")
    }),
    (
        "upgrades_in_redirect_mode_lose_and_misplace_nothing",
        || upgrades("redirect"),
    ),
    ("what_a_controller_leaves_is_removed_by_unload", leave),
    ("a_program_that_is_taken_away_is_told_of", taken_away),
    ("pins_that_are_removed_are_put_back", unpinned),
    ("a_clsact_qdisc_that_is_deleted_is_put_back", without_clsact),
    ("flows_stay_through_an_upgrade", flows_stay),
    ("pins_of_a_version_before_are_carried_over", carried_over),
    (
        "half_a_table_of_flows_keeps_nobody_from_starting",
        half_a_table,
    ),
];

/// Layouts of versions before and after this one, and its own.
const LAYOUTS: [&str; 3] = ["v0", "v1000", "v2"];
/// So often all of them, unless BREAKOUT_TEST_SWITCHES asks for little.
const ROUNDS: usize = 3;

fn rounds() -> usize {
    setting("BREAKOUT_TEST_SWITCHES", 1000)
        .div_ceil(300)
        .min(ROUNDS)
}

/// Each round the controller leaves, what it has pinned is made to look like another version's, and the next one starts,
/// which is another build if there is one.
fn upgrades(mode: &str) -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", mode))?;
    let sentinels = [
        ("52.98.1.1", Expected::Internet),
        ("2603:1006::1", Expected::Internet),
        ("198.51.100.1", Expected::Wan),
        ("2001:db8::1", Expected::Wan),
    ];
    let sentinels = sentinels.map(|(address, way)| (Flow::new(Transport::Udp, address, 443), way));
    under_traffic_with(&lab, &site, &sentinels, &["--leave"], |office| {
        let builds: Vec<PathBuf> = packaged().into_iter().chain([binary()?]).collect();
        println!("between {} builds", builds.len());
        let rounds = LAYOUTS.iter().cycle().take(rounds() * LAYOUTS.len());
        for (layout, build) in rounds.zip(builds.iter().cycle()) {
            let pins = pins(&site)?;
            site.use_program(build);
            office.hand_over(|| pretend(&pins, layout))?;
            let status = site.json(&lab.gateway, &["status"])?;
            ensure!(status["adopted"] == true, "{status}");
            let left = layouts(&pins)?;
            ensure!(left == ["v2"], "beside ours there is {left:?}");
        }
        Ok(())
    })?;
    let output = site.output(&lab.gateway, &["unload"])?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// The directory of this site's pins.
fn pins(site: &Site) -> Result<PathBuf> {
    let marker = site
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let found = fs::read_dir("/sys/fs/bpf/breakout")?
        .flatten()
        .map(|entry| entry.path());
    let mut found = found.filter(|path| path.to_string_lossy().contains(&*marker));
    found.next().context("nothing is pinned")
}

fn layouts(pins: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(pins)?.flatten();
    Ok(entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

/// Makes pins look as if a version with another layout had made them: its counters are of another kind.
fn pretend(pins: &Path, layout: &str) -> Result<()> {
    if layout == "v2" {
        return Ok(());
    }
    let directory = pins.join(layout);
    fs::rename(pins.join("v2"), &directory)?;
    let counters = directory.join("REASONS");
    fs::remove_file(&counters)?;
    run(Command::new("bpftool")
        .args(["map", "create"])
        .arg(&counters)
        .args("type array key 4 value 24 entries 3 name other".split(' ')))?;
    Ok(())
}

fn leave() -> Result<()> {
    let lab = Lab::build()?;
    let before = cleanup::inventory(&lab)?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    Daemon::start_with(&site, &lab.gateway, &["--leave"])?.stop()?;
    ensure!(cleanup::inventory(&lab)? != before, "nothing was left");
    let output = site.output(&lab.gateway, &["unload"])?;
    ensure!(output.status.success(), "{output:?}");
    let after = cleanup::inventory(&lab)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

/// Connections that began on the WAN while the link was down, and others by the egress, with the same layout and with
/// another one, whose pins are not used.
fn flows_stay() -> Result<()> {
    let settings = "probes = []\n[health]\nhold_down = \"500ms\"\n";
    for layout in ["v2", "v0"] {
        let office = Office::open(settings)?;
        let (lab, site) = (&office.lab, &office.site);
        let mut daemon = Daemon::start_with(site, &lab.gateway, &["--leave"])?;
        lab.internet.ip("link set eth0 down")?;
        daemon.wait_until(office.is_up(false))?;
        let by_wan = office.connections(20)?;
        lab.internet.ip("link set eth0 up")?;
        daemon.wait_until(office.is_up(true))?;
        let local = office.connections(20)?;
        let wrong: Vec<String> = by_wan
            .now()
            .iter()
            .map(|one| one.port.to_string())
            .collect();
        let wrong = format!("oifname \"inet\" tcp sport {{ {} }}", wrong.join(", "));
        let wrong = Counter::start(&lab.gateway, "wrong", &wrong)?;
        daemon.stop()?;
        pretend(&pins(site)?, layout)?;
        let daemon = Daemon::start_with(site, &lab.gateway, &["--leave"])?;
        by_wan.rounds(5)?;
        local.rounds(5)?;
        ensure!(
            ways(&by_wan) == [0, 20, 0] && ways(&local) == [20, 0, 0],
            "{layout}: {:?} {:?}",
            ways(&by_wan),
            ways(&local)
        );
        ensure!(
            wrong.packets()? == 0,
            "{layout}: {} packets moved",
            wrong.packets()?
        );
        daemon.stop()?;
        ensure!(site.output(&lab.gateway, &["unload"])?.status.success());
    }
    Ok(())
}

/// Somebody detaches the XDP program, which the controller's link to it does not notice.
/// As scripts for traffic shaping do before they begin.
fn without_clsact() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    for again in 1..=2 {
        lab.gateway.exec("tc qdisc del dev lan clsact")?;
        if again == 2 {
            // Another one is in its place.
            lab.gateway.exec("tc qdisc add dev lan ingress")?;
        }
        ensure!(office.new_way()? == "wan");
        daemon.wait_until(|daemon| {
            daemon
                .log()
                .matches("the tc program on lan was attached again")
                .count()
                == again
        })?;
        ensure!(office.new_way()? == "internet");
    }
    // On that one, both sides are one.
    site.json(&lab.gateway, &["reload"])?;
    ensure!(office.new_way()? == "internet", "after a reload");
    daemon.kill()?;
    let daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet", "after a restart");
    daemon.stop()?;
    let filters = lab.gateway.exec("tc filter show dev lan ingress")?;
    ensure!(!filters.contains("breakout"), "{filters}");
    Ok(())
}

/// Somebody tidies up the BPF file system.
fn unpinned() -> Result<()> {
    let office = Office::open("probes = []\n")?;
    let (lab, site) = (&office.lab, &office.site);
    let mut daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(office.new_way()? == "internet");
    let pins = pins(site)?;
    run(Command::new("rm").arg("-r").arg(&pins))?;
    for command in ["stats", "flows", "status"] {
        site.json(&lab.gateway, &[command])?;
    }
    ensure!(office.new_way()? == "internet");
    daemon.wait_until(|daemon| daemon.log().contains("pins were put back"))?;
    ensure!(pins.join("v2").exists());
    let events = site.json(&lab.gateway, &["events"])?.to_string();
    ensure!(events.contains("pinned again"), "{events}");
    let before = site.json(&lab.gateway, &["flows"])?["pinned"].clone();
    daemon.kill()?;
    ensure!(office.new_way()? == "internet", "after a kill");
    let daemon = Daemon::start(site, &lab.gateway)?;
    ensure!(daemon.log().contains("took over"), "{}", daemon.log());
    let after = site.json(&lab.gateway, &["flows"])?["pinned"].clone();
    ensure!(
        after.as_u64() >= before.as_u64(),
        "{after}, before {before}"
    );
    daemon.stop()?;
    Ok(())
}

/// A start that was killed, or somebody who tidied up, has left a part of the maps.
fn half_a_table() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    for lost in [&["NOTES"][..], &["ADDRESSES"], &["FLOWS", "NOTES"], &[]] {
        Daemon::start_with(&site, &lab.gateway, &["--leave"])?.stop()?;
        let pins = pins(&site)?.join("v2");
        for map in lost {
            fs::remove_file(pins.join(map))?;
        }
        let daemon = Daemon::start(&site, &lab.gateway)?;
        let log = daemon.log();
        ensure!(log.contains("took over"), "without {lost:?}: {log}");
        let status = site.json(&lab.gateway, &["flows"])?;
        ensure!(status["pinned"] == 0, "{status}");
        daemon.kill()?;
    }
    let output = site.output(&lab.gateway, &["unload"])?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// What a version had whose pins were in a hash map: addresses, ports and kind; when the last and the first packet came, in
/// halves of a tick; the epoch, and the egress or 255.
fn carried_over() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    Daemon::start_with(&site, &lab.gateway, &["--leave"])?.stop()?;
    let pins = pins(&site)?.join("v2");
    for map in ["FLOWS", "NOTES", "ADDRESSES"] {
        fs::remove_file(pins.join(map))?;
    }
    let old = pins.join("PINS").display().to_string();
    let create = "type lru_hash key 40 value 16 entries 1024 name PINS";
    run(Command::new("bpftool")
        .args(["map", "create", &old])
        .args(create.split(' ')))?;
    // The controller is another user.
    let owner = format!("--reference={}", pins.display());
    run(Command::new("chown").args([&owner, &old]))?;
    let now = Clock::of_kernel().now() * 2;
    let halves = |address: &str| -> Result<(u64, u64)> {
        Ok(Destination::from(address.parse::<IpAddr>()?).to_halves())
    };
    let (source, destination) = (halves("fd00:1::2")?, halves("2603:1006::1")?);
    let tcp = PinnedFlow::ports(40_001, 443) | PinnedFlow::TCP;
    let flows = [
        [0, 0x0a01_0002, 0, 0x3462_0101, tcp],
        [
            source.0,
            source.1,
            destination.0,
            destination.1,
            tcp | PinnedFlow::V6,
        ],
    ];
    for key in flows {
        let value = [now, now, 1, u32::from(ORDINARY)];
        let hex = |bytes: &[u8]| -> Vec<String> {
            bytes.iter().map(|byte| format!("{byte:#04x}")).collect()
        };
        run(Command::new("bpftool")
            .args(["map", "update", "pinned", &old, "key"])
            .args(hex(key.map(u64::to_ne_bytes).as_flattened()))
            .arg("value")
            .args(hex(value.map(u32::to_ne_bytes).as_flattened())))?;
    }
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let report = site.json(&lab.gateway, &["flows"])?;
    ensure!(report["pinned"] == 2, "{report}");
    for source in ["10.1.0.2", "fd00:1::2"] {
        let listed = report["flows"].as_array().into_iter().flatten();
        let found = listed.filter(|flow| {
            flow["source"].to_string().contains(source)
                && flow["egress"].is_null()
                && flow["proto"] == "tcp"
        });
        ensure!(found.count() == 1, "{source}: {report}");
    }
    ensure!(!Path::new(&old).exists(), "the old map is still pinned");
    daemon.stop()?;
    Ok(())
}

fn taken_away() -> Result<()> {
    let lab = Lab::build()?;
    let site = Site::new(&CONFIG.replace("MODE", "redirect"))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    let programs = |site: &Site| {
        site.json(&lab.gateway, &["status"])
            .map(|status| status["programs"].clone())
    };
    daemon.wait_until(|_| {
        programs(&site).is_ok_and(|all| all.as_array().is_some_and(|all| all.len() == 3))
    })?;
    let all = programs(&site)?;
    let in_place = all
        .as_array()
        .into_iter()
        .flatten()
        .all(|program| program["in_place"] == true);
    ensure!(in_place, "{all}");
    let pins = pins(&site)?.join("v2");
    let links = fs::read_dir(&pins)?.flatten().map(|entry| entry.path());
    let is_xdp = |path: &PathBuf| path.to_string_lossy().contains("/xdp-");
    let link = links
        .into_iter()
        .find(is_xdp)
        .context("the XDP link is pinned")?;
    run(Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(&link))?;
    // Nobody else is there, so it is put back.
    daemon.wait_until(|daemon| {
        daemon
            .log()
            .contains("the xdp program on lan was attached again")
    })?;
    // Now there is.
    run(Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(&link))?;
    let empty = compile(&Ruleset::default())?;
    let other = lab.gateway.enter(|| {
        let mut asker = Asker::load(programs::object(), &empty)?;
        asker.attach("sink", "lan")?;
        Ok(asker)
    })?;
    daemon.wait_until(|_| {
        let status = site.json(&lab.gateway, &["status"]).unwrap_or_default();
        status["alerts"]
            .to_string()
            .contains("the xdp program on lan was detached")
    })?;
    let metrics = lab.gateway.exec(&format!(
        "curl --silent --unix-socket {} http://breakout/metrics",
        site.socket().display()
    ))?;
    for line in [
        "breakout_program_in_place{interface=\"lan\",hook=\"xdp\"} 0",
        "breakout_program_in_place{interface=\"lan\",hook=\"tc\"} 1",
        "breakout_program_in_place{interface=\"lan\",hook=\"answers\"} 1",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // Once the place is free it is put back.
    drop(other);
    daemon.wait_until(|daemon| daemon.log().matches("was attached again").count() == 2)?;
    daemon.kill()?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    daemon.wait_until(|_| {
        programs(&site).is_ok_and(|all| {
            all.as_array().is_some_and(|all| {
                all.len() == 3 && all.iter().all(|program| program["in_place"] == true)
            })
        })
    })?;
    daemon.stop()?;
    Ok(())
}
