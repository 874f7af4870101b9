//! Running other programs, with progress.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// How often a long step says that it is still at work.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The cargo that runs this, in the repository's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    command
}

/// Runs a command with its output on this terminal.
pub(crate) fn stream(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Builds `breakout` and the programs of its tests, and gives one of these to be run.
pub(crate) fn test_program(name: &str) -> Result<Command> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--package", "breakout"]);
    build.args(["--package", "breakout-tests", "--bins"]);
    stream(&mut build)?;
    Ok(Command::new(paths::root().join("target/debug").join(name)))
}

/// Runs a command that says by its exit code whether all is well.
pub(crate) fn exit_code(command: &mut Command) -> Result<ExitCode> {
    Ok(match command.status()?.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What a command prints to stdout, or `None` if it cannot run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command within a time limit, with its output in the set-up's log, and says every few seconds what it last printed.
pub(crate) fn run_logged(command: &mut Command, limit: Duration) -> Result<()> {
    let path = paths::ebpf().join("setup.log");
    let mut log = File::options().create(true).append(true).open(&path)?;
    writeln!(log, "$ {}", line(command))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let started = Instant::now();
    let mut next = HEARTBEAT;
    loop {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                return Ok(());
            }
            bail!(
                "{} failed ({status}); its last words: {}\nAll of it is in {}",
                line(command),
                last_lines(&path, 5),
                path.display()
            );
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("{} took longer than {} s", line(command), limit.as_secs());
        }
        if started.elapsed() > next {
            eprintln!(
                "      {:>4} s: {}",
                started.elapsed().as_secs(),
                last_lines(&path, 1)
            );
            next += HEARTBEAT;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<&str> = text
        .lines()
        .rev()
        .filter(|l| !l.trim().is_empty())
        .take(count)
        .collect();
    lines.reverse();
    lines.join("\n")
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(key, value)| {
            Some(format!(
                "{}={}",
                key.to_string_lossy(),
                value?.to_string_lossy()
            ))
        })
        .collect();
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// The number behind a word in a text.
pub(crate) fn number_behind(text: &str, word: &str) -> Option<u64> {
    let (_, behind) = text.split_once(word)?;
    behind.split_whitespace().next()?.parse().ok()
}
