//! Network namespaces that go away with their handle.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace made by this process.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    keep: bool,
}

impl Namespace {
    /// Makes a namespace, with its loopback interface up.
    ///
    /// # Errors
    ///
    /// When `ip` cannot make it, for example without root.
    pub fn create(name: String) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace { name, keep: false };
        // Addresses are usable at once, and nothing changes later by itself.
        namespace.sysctl("net.ipv6.conf.default.accept_dad", 0)?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the namespace there when the handle goes away.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command line, split at spaces, in the namespace. Returns what it printed.
    ///
    /// # Errors
    ///
    /// When it cannot run or fails.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        run(self.command(program).args(words))
    }

    /// Runs `ip` with these arguments, split at spaces, in the namespace.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(arguments.split_whitespace()))
    }

    /// Runs several `ip` commands, one a line, in one process.
    ///
    /// # Errors
    ///
    /// When one fails; those before it have taken effect.
    pub fn ip_lines(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        let piped = || Stdio::piped();
        let child = command.stdin(piped()).stdout(piped()).stderr(piped());
        let mut child = child
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        stdin.write_all(lines.as_bytes())?;
        drop(stdin);
        text(&command, &child.wait_with_output()?)
            .map(drop)
            .with_context(|| lines.to_owned())
    }

    /// Sets a number under `net.` in the namespace's /proc/sys. A slash in the name stands for a dot in an interface's.
    ///
    /// # Errors
    ///
    /// When the kernel has no such setting, or refuses the number.
    pub fn sysctl(&self, name: &str, value: u32) -> Result<()> {
        let swapped = |c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        let path = format!(
            "/proc/sys/{}",
            name.chars().map(swapped).collect::<String>()
        );
        self.enter(|| fs::write(&path, value.to_string()).with_context(|| path.clone()))
    }

    /// Starts a thread in the namespace. Sockets that it makes stay in the namespace. Its result is an error if the
    /// namespace cannot be entered, or as the function's.
    pub fn spawn<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let name = self.name.clone();
        thread::spawn(move || {
            enter(&name)?;
            function()
        })
    }

    /// Calls a function on a new thread in the namespace and waits for it.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, or as the function does.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&self.name)?;
                function()
            });
            thread
                .join()
                .unwrap_or_else(|_| bail!("the thread in the namespace panicked"))
        })
    }

    /// The MAC address of an interface in the namespace.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let address = self.enter(|| {
            let addresses = nix::ifaddrs::getifaddrs()?;
            let mut links = addresses.filter(|address| address.interface_name == interface);
            Ok(links.find_map(|link| link.address?.as_link_addr()?.addr()))
        })?;
        address.context("the interface has a MAC address")
    }

    /// The index of an interface in the namespace.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn index(&self, interface: &str) -> Result<u32> {
        self.enter(|| Ok(nix::net::if_::if_nametoindex(interface)?))
    }
}

/// Moves this thread into a namespace.
fn enter(name: &str) -> Result<()> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.keep {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name])
                .output();
        }
    }
}

/// Runs a command to its end. Returns what it printed to stdout.
///
/// # Errors
///
/// When it cannot run or fails; the error has what it printed to stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    text(command, &output)
}

fn text(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
