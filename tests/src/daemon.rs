//! The real `breakout`, run in the gateway.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Namespace;

mod account;

pub use account::Account;

/// How long the daemon may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(150);

/// The `breakout` that was built beside this program.
///
/// # Errors
///
/// When it is not there.
pub fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directories = own.ancestors().skip(1).take(2);
    for directory in directories {
        let candidate = directory.join("breakout");
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!(
        "there is no breakout beside {}; build it with `cargo build -p breakout`",
        own.display()
    )
}

/// The program that `cargo xtask dist` has built for this machine, if it has: another build than [`binary`].
pub fn packaged() -> Option<PathBuf> {
    let target = format!(
        "target/{}-unknown-linux-musl/release/breakout",
        std::env::consts::ARCH
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(target);
    fs::canonicalize(path).ok()
}

/// A place for a controller: configuration, socket and state in a directory of their own.
pub struct Site {
    directory: TempDir,
    /// The `breakout` that is run here.
    program: Mutex<PathBuf>,
}

impl Site {
    /// Makes a place with this configuration; the sections that name paths are added.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn new(config: &str) -> Result<Self> {
        let site = Site {
            directory: tempfile::Builder::new().prefix("breakout-lab-").tempdir()?,
            program: Mutex::new(binary()?),
        };
        Account::of_tests().own(site.path())?;
        site.configure(config)?;
        Ok(site)
    }

    /// Replaces the configuration.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn configure(&self, config: &str) -> Result<()> {
        let text = format!(
            "{config}\n[control]\nsocket = \"control.sock\"\n\n[state]\ndirectory = \"state\"\n"
        );
        fs::write(self.config(), text).context("cannot write the configuration")
    }

    fn program(&self) -> PathBuf {
        self.program.lock().expect("nobody panics here").clone()
    }

    /// Has another `breakout` run from now on.
    ///
    /// # Panics
    ///
    /// Never.
    pub fn use_program(&self, program: &Path) {
        *self.program.lock().expect("nobody panics here") = program.to_owned();
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("breakout.toml")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// What the controller logs.
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves the directory there when the handle goes away.
    pub fn keep(&mut self) {
        self.directory.disable_cleanup(true);
    }

    /// A `breakout` command with this place's configuration, to be run in a namespace.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn command(&self, namespace: &Namespace, arguments: &[&str]) -> Result<Command> {
        let mut command = namespace.command(&self.program().to_string_lossy());
        command.args(arguments).arg("--config").arg(self.config());
        Ok(command)
    }

    /// Runs a `breakout` command to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn output(&self, namespace: &Namespace, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(namespace, arguments)?.output()?)
    }

    /// Runs a `breakout` command that prints JSON.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn json(&self, namespace: &Namespace, arguments: &[&str]) -> Result<Value> {
        let output = self.command(namespace, arguments)?.arg("--json").output()?;
        if !output.status.success() {
            bail!(
                "breakout {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl Site {
    /// Returns whether the controller's redirecting egress knows the MAC addresses of both next hops, as it does soon after its
    /// start.
    pub fn next_hops_known(&self, namespace: &Namespace) -> bool {
        let status = self.json(namespace, &["status"]).unwrap_or_default();
        let local = &status["egress"]["local"];
        local["v4"]["mac"].is_string() && local["v6"]["mac"].is_string()
    }
}

/// A running controller. It is stopped, and what it installed removed, when the handle goes away.
pub struct Daemon<'a> {
    site: &'a Site,
    namespace: &'a Namespace,
    child: Child,
}

impl<'a> Daemon<'a> {
    /// Starts a controller and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it ends before that; the error has what it logged.
    pub fn start(site: &'a Site, namespace: &'a Namespace) -> Result<Self> {
        Self::start_with(site, namespace, &[])
    }

    /// Starts a controller with further arguments and waits until it is ready.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with(site: &'a Site, namespace: &'a Namespace, more: &[&str]) -> Result<Self> {
        let command = daemon_command(site, namespace, more)?;
        Self::spawn(site, namespace, command)
    }

    /// Starts a controller that tells a service manager's socket how it is, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_notifying(
        site: &'a Site,
        namespace: &'a Namespace,
        socket: &Path,
    ) -> Result<Self> {
        let mut command = daemon_command(site, namespace, &[])?;
        command.env("NOTIFY_SOCKET", socket);
        Self::spawn(site, namespace, command)
    }

    /// Starts a controller that finds programs in a directory before it finds others, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with_programs(
        site: &'a Site,
        namespace: &'a Namespace,
        programs: &Path,
    ) -> Result<Self> {
        let mut command = daemon_command(site, namespace, &[])?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", programs.display()));
        Self::spawn(site, namespace, command)
    }

    /// Starts a controller with a variable of its environment that names a file here, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with_file(
        site: &'a Site,
        namespace: &'a Namespace,
        variable: &str,
        file: &str,
    ) -> Result<Self> {
        let mut command = daemon_command(site, namespace, &[])?;
        command.env(variable, site.path().join(file));
        Self::spawn(site, namespace, command)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn spawn(site: &'a Site, namespace: &'a Namespace, mut command: Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(site.log())?)
            .spawn()?;
        let mut daemon = Daemon {
            site,
            namespace,
            child,
        };
        daemon.wait_until(|daemon| daemon.log().contains(" ready: "))?;
        Ok(daemon)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.site.log()).unwrap_or_default()
    }

    /// Waits for something to become true, while the controller runs.
    ///
    /// # Errors
    ///
    /// When it does not in time, or the controller ends.
    pub fn wait_until(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            if let Some(status) = self.child.try_wait()? {
                thread::sleep(Duration::from_millis(50));
                bail!("the controller ended with {status}:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("the controller took too long:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).context("cannot send a signal to the controller")
    }

    /// Kills it without letting it clean up.
    ///
    /// # Errors
    ///
    /// When the process is gone already.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it in order. Returns what it logged.
    ///
    /// # Errors
    ///
    /// When it fails or takes too long.
    pub fn stop(mut self) -> Result<String> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("the controller stopped with {status}:\n{}", self.log());
                }
                return Ok(self.log());
            }
            if Instant::now() > deadline {
                bail!("the controller does not stop:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets it run on when the handle goes away, and returns its process id.
    pub fn leave(self) -> u32 {
        let pid = self.child.id();
        std::mem::forget(self);
        pid
    }
}

/// `breakout run` by the account that the tests' controllers have.
fn daemon_command(site: &Site, namespace: &Namespace, more: &[&str]) -> Result<Command> {
    let mut command = match Account::of_tests() {
        Account::Root => site.command(namespace, &["run"])?,
        Account::Service => {
            let mut command = account::as_service(namespace, site.path(), &site.program())?;
            command.arg("run").arg("--config").arg(site.config());
            command
        }
    };
    command.args(more);
    Ok(command)
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let _ = self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.site.output(self.namespace, &["unload"]);
    }
}
