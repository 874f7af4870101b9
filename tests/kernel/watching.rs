//! What an operator watches: `breakout top` in a real terminal, and a real Prometheus with the alerts and the dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use breakout_tests::daemon::{Daemon, Site, binary};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::netns::run;
use breakout_tests::requirements::unpacked;
use breakout_tests::running::Running;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "top_shows_the_controller_and_leaves_the_terminal_as_it_was",
        top,
    ),
    (
        "prometheus_scrapes_what_alerts_and_dashboard_name",
        prometheus,
    ),
];

const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal of 80 columns and 24 lines with a shell in it.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    fn open(directory: &Path) -> Result<Self> {
        let terminal = Terminal {
            socket: directory.join("tmux"),
        };
        let shell = "env PS1=ready: NO_COLOR=1 sh";
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            shell,
        ])?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("tmux")
            .arg("-S")
            .arg(&self.socket)
            .args(arguments))
    }

    fn type_line(&self, line: &str) -> Result<()> {
        self.tmux(&["send-keys", line, "Enter"]).map(drop)
    }

    /// What is on the screen, with its colours and other attributes.
    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen()?;
            if wanted(&screen) {
                return Ok(screen);
            }
            ensure!(Instant::now() < deadline, "the screen is still\n{screen}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

fn top() -> Result<()> {
    let flow = Flow::new(Transport::Tcp, "52.98.1.1", 443);
    let lab = Lab::build()?;
    let _servers = lab.serve(std::slice::from_ref(&flow))?;
    let site = Site::new(&CONFIG.replace("MODE", "route"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let terminal = Terminal::open(site.path())?;
    let top = format!(
        "ip netns exec {} {} top --interval 200ms --config {}",
        lab.gateway.name(),
        binary()?.display(),
        site.config().display()
    );
    let settings = site.path().join("stty");
    terminal.type_line(&format!("stty -g > {}; echo be''fore", settings.display()))?;
    terminal.wait_for(|screen| screen.contains("before"))?;
    for end in ["q", "C-c", "TERM"] {
        terminal.type_line(&top)?;
        terminal.wait_for(|screen| screen.contains("local (inet)") && screen.contains("q quit"))?;
        flow.talk(&lab.client)?;
        let screen = terminal.wait_for(|screen| {
            screen.contains("1 Exchange Optimize") && screen.contains("steered")
        })?;
        let is_coloured = |number| screen.contains(&format!("\x1b[3{number}m"));
        ensure!(!(0..=8).any(is_coloured), "there are colours: {screen:?}");
        ensure!(
            !screen.contains("before"),
            "it does not have the screen for itself:\n{screen}"
        );
        if end == "TERM" {
            let pids = run(Command::new("pgrep").args([
                "-f",
                &format!("top --interval 200ms --config {}", site.config().display()),
            ]))?;
            run(Command::new("kill").args(pids.split_whitespace()))?;
        } else {
            terminal.tmux(&["send-keys", end])?;
        }
        let screen = terminal.wait_for(|screen| screen.contains("before"))?;
        ensure!(
            !screen.contains("q quit"),
            "the screen is not as it was:\n{screen}"
        );
        let now = site.path().join("stty-now");
        terminal.type_line(&format!("stty -g > {} ; echo af''ter-{end}", now.display()))?;
        terminal.wait_for(|screen| screen.contains(&format!("after-{end}")))?;
        ensure!(
            fs::read(&settings)? == fs::read(&now)?,
            "stty is not as it was after {end}"
        );
    }
    // One that is watched while it goes away says so, and goes on when it is back.
    terminal.type_line(&top)?;
    terminal.wait_for(|screen| screen.contains("local (inet)"))?;
    daemon.stop()?;
    terminal.wait_for(|screen| screen.contains("the controller does not answer"))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    terminal.wait_for(|screen| !screen.contains("does not answer"))?;
    // One that hangs keeps no key waiting.
    daemon.signal(Signal::SIGSTOP)?;
    terminal.wait_for(|screen| screen.contains("no answer in 5s"))?;
    terminal.tmux(&["send-keys", "q"])?;
    let screen = terminal.wait_for(|screen| screen.contains("before"))?;
    daemon.signal(Signal::SIGCONT)?;
    ensure!(!screen.contains("q quit"), "it does not end:\n{screen}");
    daemon.stop()?;
    // Into a pipe it does not draw.
    let output = site.output(&lab.gateway, &["top"])?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && error.contains("needs a terminal"),
        "{output:?}"
    );
    Ok(())
}

fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../dist")
        .join(name)
}

fn prometheus() -> Result<()> {
    let lab = Lab::build()?;
    let config = CONFIG
        .replace("MODE", "route")
        .replace("probes = []", "probes = [\"icmp:10.3.0.2\"]");
    let site = Site::new(&format!("{config}[metrics]\nlisten = \"127.0.0.1:9760\"\n"))?;
    // Metrics of lists are there only for lists that are followed.
    site.configure(&format!(
        "{}[metrics]\nlisten = \"127.0.0.1:9760\"\n",
        config.replace(
            "source = \"builtin\"",
            "source = \"http://10.2.0.2:9\"\ninsecure = true"
        )
    ))?;
    let daemon = Daemon::start(&site, &lab.gateway)?;
    let promtool = unpacked("promtool").context("promtool was looked for before")?;
    let rules = dist("prometheus.rules.yml");
    run(Command::new(&promtool).args(["check", "rules"]).arg(&rules))?;
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel/prometheus.rules.test.yml");
    run(Command::new(&promtool).args(["test", "rules"]).arg(&cases))?;
    let (all, tried) = (fs::read_to_string(&rules)?, fs::read_to_string(cases)?);
    for alert in all
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        ensure!(
            tried.contains(&format!("alertname=\"{alert}\"")),
            "{alert} is not tried"
        );
    }
    let metrics = lab.gateway.exec("curl -sS http://127.0.0.1:9760/metrics")?;
    check_metrics(&promtool, &metrics)?;

    let server = site.path().join("prometheus.yml");
    fs::write(
        &server,
        format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{}]\n\
             scrape_configs:\n  - job_name: breakout\n    static_configs: [{{ targets: [127.0.0.1:9760] }}]\n",
            fs::canonicalize(&rules)?.display()
        ),
    )?;
    let program = unpacked("prometheus").context("prometheus was looked for before")?;
    let mut command = lab.gateway.command(&program.to_string_lossy());
    command
        .arg(format!("--config.file={}", server.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            site.path().join("tsdb").display()
        ))
        .args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"])
        .stdout(Stdio::null())
        .stderr(fs::File::create(site.path().join("prometheus.log"))?);
    let _prometheus = Running(command.spawn()?);
    let wanted = names(&rules, &dist("grafana.json"))?;
    ensure!(wanted.len() > 15, "only {wanted:?} are named");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let known = known(&lab).unwrap_or_default();
        let unknown: Vec<_> = wanted.difference(&known).collect();
        if unknown.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            let log = fs::read_to_string(site.path().join("prometheus.log"))?;
            bail!("Prometheus does not know {unknown:?}\n{log}");
        }
        thread::sleep(Duration::from_millis(500));
    }
    // A list that cannot be fetched and a link whose gateway is dead: the rules are evaluated without an error.
    let rules: Value = query(&lab, "rules")?;
    let groups = rules["data"]["groups"].as_array().context("groups")?;
    let all: Vec<&Value> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array())
        .flatten()
        .collect();
    ensure!(all.len() >= 8, "{rules}");
    ensure!(all.iter().all(|rule| rule["health"] != "err"), "{rules}");
    daemon.stop()?;
    Ok(())
}

fn query(lab: &Lab, path: &str) -> Result<Value> {
    let url = format!("http://127.0.0.1:9090/api/v1/{path}");
    Ok(serde_json::from_str(
        &lab.gateway.exec(&format!("curl -sS {url}"))?,
    )?)
}

/// The names that Prometheus has scraped.
fn known(lab: &Lab) -> Result<BTreeSet<String>> {
    let answer = query(lab, "label/__name__/values")?;
    Ok(serde_json::from_value(answer["data"].clone())?)
}

/// The metrics that files name.
fn names(rules: &Path, dashboard: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(rules)? + &fs::read_to_string(dashboard)?;
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("breakout_"));
    Ok(names.map(str::to_owned).collect())
}

fn check_metrics(promtool: &Path, metrics: &str) -> Result<()> {
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = check.stdin.take().context("stdin is piped")?;
    std::io::Write::write_all(&mut input, metrics.as_bytes())?;
    drop(input);
    let output = check.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}
