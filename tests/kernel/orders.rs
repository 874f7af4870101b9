//! Orders are carried out as a whole or not at all, whatever fails on the way; and at the right time, whatever the clock says.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Daemon;
use breakout_tests::flow::{Flow, Transport};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::Test;
use crate::follow::{Office, list};

pub(crate) const TESTS: &[Test] = &[
    ("an_order_that_fails_at_any_step_changes_nothing", faults),
    ("what_is_due_follows_no_clock_that_jumps", clock),
    (
        "former_routing_numbers_are_removed_after_failed_starts",
        former_numbers,
    ),
    ("a_broken_file_leaves_a_controller_in_command", broken_file),
    (
        "what_is_not_written_down_holds_and_is_written_later",
        unwritten,
    ),
];

const ALWAYS: &str = "40.96.0.1";
const FIRST: &str = "40.97.0.1";
const SECOND: &str = "52.112.0.1";
pub(crate) const LENIENT: &str = "max_removed = \"100 %\"\ngrace = \"0s\"";

/// An order, and how packets go before and after it: which of the three addresses are steered.
struct Case {
    name: &'static str,
    prepare: fn(&Office) -> Result<()>,
    order: &'static [&'static str],
    before: [bool; 3],
    after: [bool; 3],
}

const CASES: &[Case] = &[
    Case {
        name: "bypass on",
        prepare: |_| Ok(()),
        order: &["bypass", "on", "--for", "1h"],
        before: [true, true, false],
        after: [false, false, false],
    },
    Case {
        name: "bypass off",
        prepare: |office| order(office, &["bypass", "on"]),
        order: &["bypass", "off"],
        before: [false, false, false],
        after: [true, true, false],
    },
    Case {
        name: "reload of a policy",
        prepare: |office| {
            edit(
                office,
                "[[policy]]\nsets = 1\nports = \"udp 443\"\naction = \"local\"\n",
            )
        },
        order: &["reload"],
        before: [true, true, false],
        after: [false, false, false],
    },
    Case {
        name: "reload of an egress",
        prepare: |office| {
            edit(
                office,
                "[pinning]\nenabled = false\n[[policy]]\nsets = 2\naction = \"local\"\n",
            )
        },
        order: &["reload"],
        before: [true, true, false],
        after: [false, false, false],
    },
    Case {
        name: "apply of a configuration and a list",
        prepare: |office| {
            wait(office, "2026080100", &["40.96.0.0/16", "52.112.0.0/14"])?;
            edit(
                office,
                "[[custom]]\nname = \"own\"\nprefixes = \"40.97.0.0/16\"\n[[policy]]\ncustom = \"own\"\naction = \"local\"\n[[policy]]\nsets = 1\naction = \"local\"\n",
            )
        },
        order: &["apply"],
        before: [true, true, false],
        after: [true, true, true],
    },
    Case {
        name: "accept",
        prepare: |office| refuse(office, "2026080100"),
        order: &["list", "accept", "2026080100"],
        before: [true, true, false],
        after: [false, false, true],
    },
    Case {
        name: "rollback",
        prepare: |office| {
            wait(office, "2026080100", &["52.112.0.0/14"])?;
            order(office, &["apply"])
        },
        order: &["list", "rollback"],
        before: [false, false, true],
        after: [true, true, false],
    },
    Case {
        name: "release",
        prepare: |office| {
            wait(office, "2026080100", &["52.112.0.0/14"])?;
            order(office, &["apply"])?;
            order(office, &["list", "rollback"])
        },
        order: &["list", "release"],
        before: [true, true, false],
        after: [false, false, true],
    },
];

pub(crate) fn order(office: &Office, arguments: &[&str]) -> Result<()> {
    office.site.json(&office.lab.gateway, arguments).map(|_| ())
}

/// Appends to the configuration, before anything is ordered.
fn edit(office: &Office, more: &str) -> Result<()> {
    let text = fs::read_to_string(office.site.config())?;
    fs::write(office.site.config(), format!("{more}{text}")).context("the configuration")
}

/// Publishes a list, which waits for an order.
fn wait(office: &Office, version: &str, prefixes: &[&str]) -> Result<()> {
    office.service.publish(version, list(prefixes));
    let fetched = office.fetch()?;
    ensure!(fetched["outcome"] == "waiting", "{fetched}");
    Ok(())
}

/// Publishes a list that is refused because it overlaps a private network.
pub(crate) fn refuse(office: &Office, version: &str) -> Result<()> {
    office
        .service
        .publish(version, list(&["52.112.0.0/14", "10.77.0.0/16"]));
    let fetched = office.fetch()?;
    ensure!(fetched["outcome"] == "refused", "{fetched}");
    Ok(())
}

fn faults() -> Result<()> {
    for case in CASES {
        let started = Instant::now();
        let mut failed = 0;
        let mut warned = 0;
        let mut first = 1;
        // What fails has changed nothing, so the next step can be tried; what succeeds takes another office.
        'office: loop {
            let office = office(case)?;
            let fault = fault_file(&office)?;
            let daemon = Daemon::start_with_file(
                &office.site,
                &office.lab.gateway,
                "BREAKOUT_FAULT",
                "fault",
            )?;
            begin(&office)?;
            (case.prepare)(&office)?;
            let before = Seen::now(&office)?;
            ensure!(
                before.steered == case.before,
                "{}: {:?}",
                case.name,
                before.steered
            );
            for step in first.. {
                fs::write(&fault, step.to_string())?;
                let output = office.site.output(&office.lab.gateway, case.order)?;
                let left = fs::read_to_string(&fault)?;
                fs::write(&fault, "0")?;
                let after = Seen::now(&office)?;
                let message = String::from_utf8_lossy(&output.stderr).into_owned();
                if output.status.success() {
                    ensure!(
                        after.steered == case.after,
                        "{} at {step}: {:?}",
                        case.name,
                        after.steered
                    );
                    ensure!(
                        after.status != before.status,
                        "{} at {step}: {}",
                        case.name,
                        after.status
                    );
                    daemon.stop()?;
                    if left.trim() != "0" {
                        break 'office;
                    }
                    warned += 1;
                    first = step + 1;
                    continue 'office;
                }
                failed += 1;
                ensure!(
                    message.contains("a test has this step fail"),
                    "{} at {step}: {message}",
                    case.name
                );
                let place = format!("{} at {step} ({})", case.name, message.trim());
                ensure!(
                    after.steered == before.steered,
                    "{place}: {:?}",
                    after.steered
                );
                ensure!(
                    after.status == before.status,
                    "{place}: {}\n{}",
                    before.status,
                    after.status
                );
                ensure!(
                    after.kernel == before.kernel,
                    "{place}: {}\n{}",
                    before.kernel,
                    after.kernel
                );
                let differs = |(one, other): &(&(String, String), &(String, String))| one != other;
                let file = before.files.iter().zip(&after.files).find(differs);
                ensure!(before.files == after.files, "{place}: {file:?}");
            }
        }
        println!(
            "{}: {failed} steps fail and change nothing, {warned} come after the switch and warn ({:.0?})",
            case.name,
            started.elapsed()
        );
        ensure!(failed > 1, "{} has hardly a step that fails", case.name);
    }
    Ok(())
}

/// The file that says which step fails. The controller, which is another user, counts in it.
fn fault_file(office: &Office) -> Result<PathBuf> {
    let file = office.site.path().join("fault");
    fs::write(&file, "0")?;
    fs::set_permissions(&file, Permissions::from_mode(0o666))?;
    Ok(file)
}

fn office(case: &Case) -> Result<Office> {
    let is_manual = matches!(
        case.name,
        "apply of a configuration and a list" | "rollback" | "release"
    );
    Office::new(&format!(
        "{LENIENT}\n{}",
        if is_manual { "apply = \"manual\"" } else { "" }
    ))
}

/// Has a first list in force.
pub(crate) fn begin(office: &Office) -> Result<()> {
    office
        .service
        .publish("2026070100", list(&["40.96.0.0/15"]));
    let fetched = office.fetch()?;
    if fetched["outcome"] == "waiting" {
        order(office, &["apply"])?;
    }
    ensure!(office.version()? == "2026070100");
    Ok(())
}

/// What an order must leave alone when it fails.
struct Seen {
    steered: [bool; 3],
    status: Value,
    /// Rules, routes, translation, programs.
    kernel: String,
    /// The files of the state directory, and what they hold.
    files: Vec<(String, String)>,
}

impl Seen {
    fn now(office: &Office) -> Result<Self> {
        let gateway = &office.lab.gateway;
        let mut steered = [false; 3];
        for (place, address) in [ALWAYS, FIRST, SECOND].into_iter().enumerate() {
            let answer = office.site.json(
                gateway,
                &["explain", address, "--proto", "tcp", "--port", "443"],
            )?;
            steered[place] = answer["verdict"] == "steer";
        }
        let all = office.site.json(gateway, &["status"])?;
        let mut status = json!({});
        for key in [
            "generation",
            "ruleset",
            "lists",
            "bypass",
            "shadow",
            "alerts",
            "lan",
        ] {
            status[key] = all[key].clone();
        }
        for key in ["held", "waiting", "refused", "withdrawn"] {
            status[key] = all["follow"][0][key].clone();
        }
        let mut kernel = String::new();
        for arguments in [
            &["rule"][..],
            &["route", "show", "table", "5001"],
            &["-6", "rule"],
        ] {
            let output = gateway.command("ip").args(arguments).output()?;
            kernel += &String::from_utf8_lossy(&output.stdout);
        }
        let mut files = Vec::new();
        read(&office.site.path().join("state"), &mut files)?;
        files.sort();
        Ok(Seen {
            steered,
            status,
            kernel,
            files,
        })
    }
}

fn read(directory: &Path, files: &mut Vec<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.display().to_string();
        if path.is_dir() {
            read(&path, files)?;
        } else if !name.ends_with("events.jsonl") && !name.ends_with("schedule.json") {
            files.push((
                name,
                String::from_utf8_lossy(&fs::read(&path)?).into_owned(),
            ));
        }
    }
    Ok(())
}

fn clock() -> Result<()> {
    const YEAR: i64 = 365 * 86_400;
    let office = Office::new(LENIENT)?;
    let set = |seconds: i64| fs::write(office.site.path().join("clock"), seconds.to_string());
    let start =
        || Daemon::start_with_file(&office.site, &office.lab.gateway, "BREAKOUT_CLOCK", "clock");
    let bypass = || -> Result<Value> {
        Ok(office.site.json(&office.lab.gateway, &["status"])?["bypass"].clone())
    };
    let mut daemon = start()?;
    begin(&office)?;
    // Years back: it ends in time all the same.
    order(&office, &["bypass", "on", "--for", "4s"])?;
    set(-3 * YEAR)?;
    daemon.wait_until(|daemon| daemon.log().contains("the time of the bypass is over"))?;
    // Years on, as when the time is learnt after a boot: it does not end at once.
    order(&office, &["bypass", "on", "--for", "1h"])?;
    let before = bypass()?;
    ensure!(
        before["since"].as_str().is_some_and(|since| since < "2026"),
        "{before}"
    );
    set(2 * YEAR)?;
    daemon.wait_until(|daemon| {
        daemon
            .log()
            .matches("the system's clock was set by")
            .count()
            == 2
    })?;
    thread::sleep(Duration::from_secs(3));
    let after = bypass()?;
    ensure!(
        after["until"].as_str().is_some_and(|until| until > "2028"),
        "{after}"
    );
    // While no controller runs.
    daemon.kill()?;
    set(-50 * YEAR)?;
    let mut daemon = start()?;
    let after = bypass()?;
    ensure!(
        after["until"].as_str().is_some_and(|until| until < "1980"),
        "{after}"
    );
    // The list is looked at in time: it is not stale, and the next look is within the interval.
    let status = office.site.json(&office.lab.gateway, &["status"])?;
    let follow = &status["follow"][0];
    ensure!(
        follow["is_stale"] == false && follow["age_seconds"].as_u64() < Some(600),
        "{follow}"
    );
    ensure!(
        follow["next"].as_str().is_some_and(|next| next < "1980"),
        "{follow}"
    );
    order(&office, &["bypass", "on", "--for", "2s"])?;
    daemon.wait_until(|daemon| daemon.log().contains("the time of the bypass is over"))?;
    daemon.stop()?;
    Ok(())
}

fn former_numbers() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let gateway = &office.lab.gateway;
    let rules = || -> Result<String> {
        let output = gateway.command("ip").arg("rule").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    Daemon::start(&office.site, gateway)?.kill()?;
    ensure!(rules()?.contains("900:"), "{}", rules()?);
    let text = fs::read_to_string(office.site.config())?;
    let fault = fault_file(&office)?;
    for (priority, table) in [(901, 6001), (902, 7001)] {
        let numbers = format!("[routing]\nrule_priority = {priority}\ntable = {table}\n");
        fs::write(office.site.config(), format!("{numbers}{text}"))?;
        // It fails once its rules are set.
        fs::write(&fault, "4")?;
        let failed = Daemon::start_with_file(&office.site, gateway, "BREAKOUT_FAULT", "fault");
        let error = failed.err().context("it has started")?.to_string();
        ensure!(
            error.contains("has this step fail: load programs"),
            "{error}"
        );
        ensure!(rules()?.contains(&format!("{priority}:")), "{}", rules()?);
    }
    let numbers = "[routing]\nrule_priority = 903\ntable = 8001\n";
    fs::write(office.site.config(), format!("{numbers}{text}"))?;
    let daemon = Daemon::start(&office.site, gateway)?;
    let ours: Vec<String> = (rules()?.lines())
        .filter(|line| line.contains("proto 76") || line.contains("lookup 5001"))
        .map(str::to_owned)
        .collect();
    ensure!(
        ours.iter().all(|line| line.starts_with("903:")) && !ours.is_empty(),
        "{ours:?}"
    );
    // Doctor sees those that nobody knows of.
    let add = [
        "rule",
        "add",
        "priority",
        "905",
        "fwmark",
        "0x1000000/0x1f000000",
        "table",
        "9001",
        "protocol",
        "76",
    ];
    ensure!(gateway.command("ip").args(add).status()?.success());
    let output = office.site.output(gateway, &["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        text.contains("priority 905") && text.contains("not of this configuration"),
        "{text}"
    );
    ensure!(
        gateway
            .command("ip")
            .args(["rule", "del", "priority", "905"])
            .status()?
            .success()
    );
    daemon.stop()?;
    let left = rules()?;
    ensure!(!left.contains("proto 76"), "{left}");
    Ok(())
}

fn broken_file() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    begin(&office)?;
    let text = fs::read_to_string(office.site.config())?;
    fs::write(office.site.config(), format!("[lan\n{text}"))?;
    let output = office.site.output(&office.lab.gateway, &["status"])?;
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success() && note.contains("goes on with what it read before"),
        "{note}"
    );
    order(&office, &["bypass", "on"])?;
    let flow = Flow::new(Transport::Tcp, ALWAYS, 443);
    let _servers = office.lab.serve(std::slice::from_ref(&flow))?;
    ensure!(flow.talk(&office.lab.client)? == "wan");
    let output = office.site.output(&office.lab.gateway, &["reload"])?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    for command in [
        "list show",
        "list pending",
        "list history",
        "history",
        "stats",
        "flows",
        "events",
        "list fetch",
    ] {
        fs::write(office.site.config(), format!("[lan\n{text}"))?;
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = office.site.output(&office.lab.gateway, &arguments)?;
        ensure!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // The interface is known by the configuration in force, whatever the file says now.
    fs::write(
        office.site.config(),
        text.replace("interface = \"lan\"", "interface = \"other\""),
    )?;
    let lan = [
        "explain", ALWAYS, "--proto", "tcp", "--port", "443", "--lan", "lan",
    ];
    order(&office, &lan)?;
    daemon.stop()?;
    Ok(())
}

/// A full disk keeps no order from being carried out, and no later one from knowing of it.
fn unwritten() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let state = office.site.path().join("state");
    fs::create_dir(&state)?;
    let none = MsFlags::empty();
    mount(
        Some("tmpfs"),
        &state,
        Some("tmpfs"),
        none,
        Some("size=512k"),
    )?;
    let outcome = unwritten_in(&office, &state);
    umount2(&state, MntFlags::MNT_DETACH)?;
    outcome
}

fn unwritten_in(office: &Office, state: &Path) -> Result<()> {
    let gateway = &office.lab.gateway;
    let mut daemon = Daemon::start(&office.site, gateway)?;
    begin(office)?;
    refuse(office, "2026080100")?;
    // Until nothing more goes in.
    let _ = fs::write(state.join("filler"), vec![0; 1 << 20]);
    let done = office
        .site
        .json(gateway, &["list", "accept", "2026080100"])?;
    ensure!(
        done["notes"]
            .to_string()
            .contains("could not be written down"),
        "{done}"
    );
    let done = office.site.json(gateway, &["bypass", "on"])?;
    ensure!(
        done["notes"]
            .to_string()
            .contains("the bypass may be as it was before"),
        "{done}"
    );
    let kept = office.site.json(gateway, &["list", "history"])?;
    let kept = kept.as_array().map_or(&[][..], Vec::as_slice);
    let marked: Vec<&Value> = kept
        .iter()
        .filter(|list| list["in_force"] == true)
        .collect();
    ensure!(
        marked.len() == 1 && marked[0]["version"] == "2026080100",
        "{marked:?}"
    );
    // Another interval is no reason to forget the list.
    let text = fs::read_to_string(office.site.config())?;
    fs::write(
        office.site.config(),
        text.replace("[list]\n", "[list]\ninterval = \"50m\"\n"),
    )?;
    order(office, &["reload"])?;
    ensure!(office.version()? == "2026080100");
    let alerts =
        || -> Result<String> { Ok(office.site.json(gateway, &["status"])?["alerts"].to_string()) };
    ensure!(alerts()?.contains("cannot write"), "{}", alerts()?);
    fs::remove_file(state.join("filler"))?;
    daemon.wait_until(|_| {
        let is_written =
            |alerts: String| !alerts.contains("cannot write") && !alerts.contains("written down");
        alerts().is_ok_and(is_written)
    })?;
    daemon.kill()?;
    let daemon = Daemon::start(&office.site, gateway)?;
    ensure!(office.version()? == "2026080100");
    let status = office.site.json(gateway, &["status"])?;
    ensure!(status["bypass"]["since"].is_string(), "{status}");
    ensure!(status["follow"][0]["refused"].is_null(), "{status}");
    daemon.stop()?;
    Ok(())
}
