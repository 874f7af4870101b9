//! Following a service that speaks real HTTPS: what is published, judged, refused, accepted and gone back to.

use std::fs;

use std::time::Duration;

use anyhow::{Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::fake_service::{Credentials, FakeService, Mood};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::manual::{block, type_in};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_published_list_is_followed", followed),
    ("a_bad_list_is_refused_and_can_be_accepted", refused),
    ("rollback_restores_the_ruleset_and_holds", rollback),
    ("what_is_withdrawn_goes_on_for_its_grace_time", grace),
    ("lists_wait_for_an_operator_if_they_should", manual),
    ("lists_are_fetched_without_a_controller", offline),
    ("a_watched_file_is_followed", watched),
    ("a_full_disk_stops_nothing", full_disk),
];

/// Addresses of the lists below: in each of them, in the second one only, and in none.
const ALWAYS: &str = "40.96.0.1";
const LATER: &str = "41.0.0.1";
const NEVER: &str = "42.0.0.1";

/// A gateway with a service that it follows.
pub(crate) struct Office {
    pub(crate) lab: Lab,
    pub(crate) service: FakeService,
    pub(crate) site: Site,
}

impl Office {
    /// With further lines in the section `[list]`.
    pub(crate) fn new(more: &str) -> Result<Self> {
        let lab = Lab::build()?;
        let service = lab
            .gateway
            .enter(|| FakeService::start(Credentials::Good))?;
        let site = Site::new(&config(&service, more))?;
        fs::write(site.path().join("ca.pem"), service.ca())?;
        Ok(Office { lab, service, site })
    }

    fn run(&self, arguments: &[&str]) -> Result<Value> {
        self.site.json(&self.lab.gateway, arguments)
    }

    /// Fetches now. Returns the outcome for the one instance, also where it is a failure.
    pub(crate) fn fetch(&self) -> Result<Value> {
        let output = self
            .site
            .output(&self.lab.gateway, &["list", "fetch", "--json"])?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        Ok(report["instances"][0].clone())
    }

    /// Types a block of commands of the manual.
    fn type_in(&self, page: &str, number: usize) -> Result<String> {
        type_in(&self.site, &self.lab.gateway, &block(page, "sh", number)?)
    }

    pub(crate) fn version(&self) -> Result<Value> {
        Ok(self.run(&["status"])?["list"]["version"].clone())
    }

    fn code(&self, arguments: &[&str]) -> Result<Option<i32>> {
        Ok(self
            .site
            .output(&self.lab.gateway, arguments)?
            .status
            .code())
    }

    fn way(&self, address: &str) -> Result<String> {
        Flow::new(Transport::Tcp, address, 443).talk(&self.lab.client)
    }
}

fn config(service: &FakeService, more: &str) -> String {
    let list = format!(
        "source = \"{}\"\nca_file = \"ca.pem\"\nunknown_networks = \"allow\"\n{more}",
        service.url()
    );
    CONFIG
        .replace("MODE", "route")
        .replace("source = \"builtin\"", &list)
}

/// A list with one Optimize set of these prefixes.
pub(crate) fn list(prefixes: &[&str]) -> String {
    json!([{"id": 1, "serviceArea": "Exchange", "ips": prefixes, "tcpPorts": "443", "udpPorts": "443",
            "category": "Optimize", "required": true, "somethingNew": {"a": [1.5]}}])
    .to_string()
}

fn serve(office: &Office) -> Result<impl Sized + use<>> {
    let flows = [ALWAYS, LATER, NEVER].map(|address| Flow::new(Transport::Tcp, address, 443));
    office.lab.serve(&flows)
}

fn followed() -> Result<()> {
    let office = Office::new("")?;
    let _servers = serve(&office)?;
    office
        .service
        .publish("2026070100", list(&["40.96.0.0/13"]));
    let mut daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    // What is built in is more than that, so an operator has to agree.
    daemon.wait_until(|daemon| daemon.log().contains("2026070100 is refused"))?;
    office.run(&["list", "accept", "2026070100"])?;
    ensure!(office.version()? == "2026070100");
    ensure!(office.way(LATER)? == "wan");
    let mut state = office.service.state();
    state.changes = br#"[{"id":1,"endpointSetId":1,"version":"2026080100",
        "add":{"effectiveDate":"20990101","ips":["41.0.0.0/16"]}}]"#
        .to_vec();
    drop(state);
    office
        .service
        .publish("2026080100", list(&["40.96.0.0/13", "41.0.0.0/16"]));
    let fetched = office.fetch()?;
    ensure!(
        fetched["outcome"] == "applied" && fetched["version"] == "2026080100",
        "{fetched}"
    );
    ensure!(office.way(ALWAYS)? == "internet" && office.way(LATER)? == "internet");
    ensure!(office.way(NEVER)? == "wan");
    // Additions are in force at once, and shown as pending.
    let pending = office.run(&["list", "pending"])?;
    ensure!(
        pending["pending"][0]["added"][0] == "41.0.0.0/16",
        "{pending}"
    );
    let answer = office.run(&["explain", LATER, "--proto", "tcp", "--port", "443"])?;
    ensure!(
        answer["pending_until"] == "2099-01-01T00:00:00Z",
        "{answer}"
    );
    ensure!(office.fetch()?["outcome"] == "unchanged");
    let delta = office.run(&["list", "diff", "2026070100", "2026080100"])?;
    ensure!(
        delta["sets"][0]["added"] == json!(["41.0.0.0/16"]),
        "{delta}"
    );
    let kept = office.run(&[
        "explain",
        LATER,
        "--proto",
        "tcp",
        "--port",
        "443",
        "--list",
        "2026070100",
    ])?;
    ensure!(
        kept["verdict"] == "pass" && kept["list_version"] == "2026070100",
        "{kept}"
    );
    let status = office.run(&["status"])?;
    ensure!(
        status["follow"][0]["age_seconds"].as_u64() < Some(60),
        "{status}"
    );
    ensure!(
        status["follow"][0]["is_stale"] == false && status["alerts"] == json!([]),
        "{status}"
    );
    // One GUID for this machine, in every request.
    let id = fs::read_to_string(office.site.path().join("state/client-id"))?;
    let requests = office.service.state().requests.clone();
    ensure!(
        requests.iter().all(|request| request.contains(id.trim())),
        "{requests:?}"
    );
    let history = office.run(&["history"])?;
    let last = history
        .as_array()
        .and_then(|entries| entries.last())
        .cloned()
        .unwrap_or_default();
    ensure!(
        last["who"] == "service" && last["lists"] == json!(["Worldwide 2026080100"]),
        "{last}"
    );
    // The service goes down: everything stays, and says so.
    office.service.state().mood = Mood::Status(503, None);
    let fetched = office.fetch()?;
    ensure!(fetched["outcome"] == "failed", "{fetched}");
    ensure!(office.code(&["list", "fetch"])? == Some(11));
    ensure!(office.way(LATER)? == "internet");
    office.service.state().mood = Mood::Status(429, None);
    office.fetch()?;
    let asked = office.service.requests("/");
    let output = office
        .site
        .output(&office.lab.gateway, &["list", "fetch"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(text.contains("asked to be left alone until"), "{text}");
    ensure!(
        office.service.requests("/") == asked,
        "it was asked all the same"
    );
    // A new controller starts from what is kept.
    daemon.stop()?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    ensure!(office.version()? == "2026080100" && office.way(LATER)? == "internet");
    ensure!(
        office.service.requests("/") == asked,
        "a restart does not ask again"
    );
    daemon.stop()?;
    Ok(())
}

/// A controller with a first list in force.
fn started(office: &Office) -> Result<Daemon<'_>> {
    office
        .service
        .publish("2026070100", list(&["40.96.0.0/13"]));
    let mut daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    daemon.wait_until(|daemon| daemon.log().contains("list Worldwide 2026070100"))?;
    if daemon.log().contains("2026070100 is refused") {
        // What is built in is more than that, so an operator has to agree.
        office.run(&["list", "accept", "2026070100"])?;
    }
    ensure!(office.version()? == "2026070100");
    Ok(daemon)
}

/// Everything may go at once, and nothing has a grace time.
const LENIENT: &str = "max_removed = \"100 %\"\ngrace = \"0s\"\n";

fn refused() -> Result<()> {
    let office = Office::new("grace = \"0s\"\n")?;
    let _servers = serve(&office)?;
    let daemon = started(&office)?;
    let before = office.run(&["status"])?["ruleset"].clone();
    for (number, (body, part)) in (10..).zip([
        (list(&["0.0.0.0/0", "40.96.0.0/13"]), "covers every address"),
        (
            list(&["10.3.0.0/24", "40.96.0.0/13"]),
            "no public service is",
        ),
        (
            list(&["42.0.0.0/16"]),
            "100 % of the IPv4 addresses that are steered (524288 of 524288",
        ),
        ("[]".to_owned(), "no usable endpoint set"),
        (
            "<html>log in</html>".to_owned(),
            "what was sent is kept in ",
        ),
        (list(&["40.96.0.0/13"])[..40].to_owned(), "cut off"),
    ]) {
        let version = format!("20260801{number}");
        office.service.publish(&version, body);
        let fetched = office.fetch()?;
        let why = fetched["why"].as_str().unwrap_or_default();
        ensure!(why.contains(part), "{fetched}");
        let status = office.run(&["status"])?;
        ensure!(status["ruleset"] == before, "{status}");
        ensure!(office.way(ALWAYS)? == "internet" && office.way(NEVER)? == "wan");
    }
    office.service.publish("2026090100", list(&["42.0.0.0/16"]));
    ensure!(office.fetch()?["outcome"] == "refused");
    let asked = office.service.requests("/endpoints/");
    ensure!(office.code(&["list", "fetch"])? == Some(10));
    ensure!(
        office.service.requests("/endpoints/") == asked,
        "the same list is fetched again"
    );
    ensure!(office.code(&["status", "--check"])? == Some(9));
    let status = office.run(&["status"])?;
    ensure!(
        status["follow"][0]["refused"]["version"] == "2026090100",
        "{status}"
    );
    let typed = office.type_in("docs/lists.md", 1)?;
    ensure!(typed.contains("2026090100"), "{typed}");
    ensure!(office.way(ALWAYS)? == "wan" && office.way(NEVER)? == "internet");
    ensure!(office.code(&["status", "--check"])? == Some(0));
    let history = office.run(&["history"])?;
    let text = history.to_string();
    ensure!(
        text.contains("accepted in spite of: 100 % of the IPv4 addresses"),
        "{text}"
    );
    daemon.stop()?;
    Ok(())
}

fn rollback() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let _servers = serve(&office)?;
    let daemon = started(&office)?;
    let first = office.run(&["status"])?["ruleset"]["hash"].clone();
    office.service.publish("2026080100", list(&["41.0.0.0/16"]));
    office.fetch()?;
    ensure!(office.way(LATER)? == "internet");
    let done = office.run(&["list", "rollback"])?;
    ensure!(
        done["to_hash"] == first && office.version()? == "2026070100",
        "{done}"
    );
    let generations = (
        done["from_generation"].as_u64(),
        done["to_generation"].as_u64(),
    );
    ensure!(
        generations.1 == generations.0.map(|from| from + 1),
        "{done}"
    );
    ensure!(office.way(ALWAYS)? == "internet" && office.way(LATER)? == "wan");
    // Updates are held, also by the next controller.
    office.service.publish("2026090100", list(&["42.0.0.0/16"]));
    let fetched = office.fetch()?;
    ensure!(fetched["outcome"] == "waiting", "{fetched}");
    daemon.stop()?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    ensure!(office.version()? == "2026070100" && office.way(NEVER)? == "wan");
    let status = office.run(&["status"])?;
    ensure!(
        status["ruleset"]["hash"] == first && status["follow"][0]["held"].is_string(),
        "{status}"
    );
    let plan = office.run(&["plan"])?;
    ensure!(
        plan["causes"][0] == "list Worldwide 2026090100 waits",
        "{plan}"
    );
    office.run(&["list", "release"])?;
    ensure!(office.version()? == "2026090100" && office.way(NEVER)? == "internet");
    // By name, to any that is kept.
    office.run(&["list", "rollback", "2026080100"])?;
    ensure!(office.way(LATER)? == "internet" && office.way(NEVER)? == "wan");
    ensure!(office.code(&["list", "rollback", "2020010100"])? == Some(4));
    // Back and forth, as the manual has it.
    office.run(&["list", "release"])?;
    office.type_in("docs/lists.md", 3)?;
    ensure!(office.version()? == "2026090100");
    daemon.stop()?;
    Ok(())
}

fn grace() -> Result<()> {
    let office = Office::new("max_removed = \"100 %\"\ngrace = \"12s\"\n")?;
    let _servers = serve(&office)?;
    let mut daemon = started(&office)?;
    office.service.publish("2026080100", list(&["41.0.0.0/16"]));
    office.fetch()?;
    ensure!(office.way(LATER)? == "internet");
    ensure!(office.way(ALWAYS)? == "internet", "it is in its grace time");
    let answer = office.run(&["explain", ALWAYS, "--proto", "tcp", "--port", "443"])?;
    ensure!(answer["withdrawn_since"].is_string(), "{answer}");
    let pending = office.run(&["list", "pending"])?;
    let withdrawn = pending["withdrawn"].as_array().into_iter().flatten();
    let prefixes: Vec<&Value> = withdrawn.map(|set| &set["prefixes"]).collect();
    ensure!(prefixes.contains(&&json!(["40.96.0.0/13"])), "{pending}");
    daemon.wait_until(|daemon| {
        daemon
            .log()
            .contains("the grace time of withdrawn endpoints is over")
    })?;
    daemon.wait_until(|_| office.way(ALWAYS).is_ok_and(|way| way == "wan"))?;
    ensure!(office.way(LATER)? == "internet");
    daemon.stop()?;
    Ok(())
}

fn manual() -> Result<()> {
    let office = Office::new(&format!("{LENIENT}apply = \"manual\"\n"))?;
    let _servers = serve(&office)?;
    office
        .service
        .publish("2026070100", list(&["40.96.0.0/13"]));
    let mut daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    daemon.wait_until(|daemon| {
        daemon
            .log()
            .contains("2026070100 waits for `breakout apply`")
    })?;
    let before = office.run(&["status"])?["ruleset"].clone();
    let plan = office.run(&["plan"])?;
    ensure!(
        plan["from_hash"] == before["hash"] && plan["to_hash"] != before["hash"],
        "{plan}"
    );
    ensure!(plan["delta"].to_string().contains("Worldwide 11"), "{plan}");
    ensure!(office.run(&["status"])?["ruleset"] == before);
    office.type_in("docs/lists.md", 2)?;
    let now = office.run(&["status"])?;
    ensure!(
        now["ruleset"]["hash"] == plan["to_hash"] && office.version()? == "2026070100",
        "{now}"
    );
    let plan = office.run(&["plan"])?;
    ensure!(
        plan["causes"] == json!([]) && plan["from_hash"] == plan["to_hash"],
        "{plan}"
    );
    daemon.stop()?;
    Ok(())
}

fn offline() -> Result<()> {
    let office = Office::new(LENIENT)?;
    office
        .service
        .publish("2026070100", list(&["40.96.0.0/13"]));
    let fetched = office.fetch()?;
    ensure!(
        fetched["outcome"] == "applied" && fetched["version"] == "2026070100",
        "{fetched}"
    );
    let shown = office.run(&["list", "show"])?;
    ensure!(shown["version"] == "2026070100", "{shown}");
    ensure!(
        shown["endpoint_sets"][0]["prefixes"] == json!(["40.96.0.0/13"]),
        "{shown}"
    );
    office.service.publish("2026080100", list(&["10.0.0.0/13"]));
    ensure!(office.code(&["list", "fetch"])? == Some(10));
    let history = office.run(&["list", "history"])?;
    ensure!(history.as_array().map(Vec::len) == Some(2), "{history}");
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    ensure!(office.version()? == "2026070100");
    daemon.stop()?;
    Ok(())
}

fn watched() -> Result<()> {
    let lab = Lab::build()?;
    let config = format!("source = \"list.json\"\nunknown_networks = \"allow\"\n{LENIENT}");
    let site = Site::new(
        &CONFIG
            .replace("MODE", "route")
            .replace("source = \"builtin\"", &config),
    )?;
    fs::write(site.path().join("list.json"), list(&["40.96.0.0/13"]))?;
    let mut daemon = Daemon::start(&site, &lab.gateway)?;
    let way = |address: &str| -> Result<Value> {
        let question = ["explain", address, "--proto", "tcp", "--port", "443"];
        Ok(site.json(&lab.gateway, &question)?["verdict"].clone())
    };
    daemon.wait_until(|_| way("52.98.1.1").is_ok_and(|way| way == "pass"))?;
    ensure!(way(ALWAYS)? == "steer");
    fs::write(site.path().join("list.json"), list(&["41.0.0.0/16"]))?;
    daemon.wait_until(|_| way(LATER).is_ok_and(|way| way == "steer"))?;
    fs::write(site.path().join("list.json"), "<html>")?;
    daemon.wait_until(|daemon| daemon.log().contains("HTML page"))?;
    fs::remove_file(site.path().join("list.json"))?;
    daemon.wait_until(|daemon| daemon.log().contains("No such file"))?;
    ensure!(way(LATER)? == "steer");
    let status = site.json(&lab.gateway, &["status"])?;
    ensure!(
        status["follow"][0]["failures"].as_u64() > Some(0),
        "{status}"
    );
    daemon.stop()?;
    Ok(())
}

/// The state directory is full: lists are still followed and steered by, and what is kept stays whole.
fn full_disk() -> Result<()> {
    let office = Office::new(LENIENT)?;
    let _servers = serve(&office)?;
    let state = office.site.path().join("state");
    fs::create_dir(&state)?;
    let mount = nix::mount::MsFlags::empty();
    nix::mount::mount(
        Some("tmpfs"),
        &state,
        Some("tmpfs"),
        mount,
        Some("size=256k"),
    )?;
    let outcome = with_full_disk(&office, &state);
    nix::mount::umount2(&state, nix::mount::MntFlags::MNT_DETACH)?;
    outcome
}

fn remount(state: &std::path::Path, flags: nix::mount::MsFlags) -> Result<()> {
    let none: Option<&str> = None;
    let flags = flags | nix::mount::MsFlags::MS_REMOUNT;
    Ok(nix::mount::mount(
        none,
        state,
        none,
        flags,
        Some("size=256k"),
    )?)
}

fn with_full_disk(office: &Office, state: &std::path::Path) -> Result<()> {
    let daemon = started(office)?;
    let filler = state.join("filler");
    // Until nothing more goes in.
    let _ = fs::write(&filler, vec![0; 1 << 20]);
    office.service.publish("2026080100", list(&["41.0.0.0/16"]));
    let fetched = office.fetch()?;
    ensure!(fetched["outcome"] == "failed", "{fetched}");
    ensure!(
        fetched["why"]
            .as_str()
            .is_some_and(|why| why.contains("No space")),
        "{fetched}"
    );
    ensure!(office.way(ALWAYS)? == "internet" && office.way(LATER)? == "wan");
    daemon.kill()?;
    // A controller comes back without any room, and says so.
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    ensure!(daemon.log().contains("state.json"), "{}", daemon.log());
    let status = office.site.json(&office.lab.gateway, &["status"])?;
    ensure!(
        status["alerts"].to_string().contains("state.json"),
        "{status}"
    );
    daemon.kill()?;
    // So it does where nothing may be written at all.
    remount(state, nix::mount::MsFlags::MS_RDONLY)?;
    let daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    ensure!(daemon.log().contains("Read-only"), "{}", daemon.log());
    ensure!(office.way(ALWAYS)? == "internet");
    office.lab.internet.ip("link set eth0 down")?;
    let cut = std::time::Instant::now();
    while office.way(ALWAYS)? != "wan" {
        ensure!(
            cut.elapsed() < Duration::from_secs(5),
            "a dead link is not left"
        );
    }
    office.lab.internet.ip("link set eth0 up")?;
    // Its routes went with the link.
    office
        .lab
        .internet
        .ip("route replace 10.1.0.0/24 via 10.3.0.1")?;
    daemon.kill()?;
    remount(state, nix::mount::MsFlags::empty())?;
    fs::remove_file(&filler)?;
    let mut daemon = Daemon::start(&office.site, &office.lab.gateway)?;
    daemon.wait_until(|_| office.way(ALWAYS).is_ok_and(|way| way == "internet"))?;
    ensure!(office.version()? == "2026070100" && office.way(ALWAYS)? == "internet");
    ensure!(office.fetch()?["outcome"] == "applied");
    ensure!(office.way(LATER)? == "internet");
    daemon.stop()?;
    Ok(())
}
