//! coturn as a relay of the lab.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use breakout_tests::netns::Namespace;
use breakout_tests::requirements::unpacked;
use breakout_tests::running::Running;

/// A relay at a far end. It ends with the handle.
pub(crate) struct Coturn {
    _process: Running,
    log: PathBuf,
}

impl Coturn {
    pub(crate) fn start(
        namespace: &Namespace,
        directory: &Path,
        address: &str,
        options: &[&str],
    ) -> Result<Self> {
        let program = unpacked("turnserver").context("turnserver was looked for before")?;
        let root = program.ancestors().nth(3).context("it is below a root")?;
        let log = directory.join(format!("coturn-{}-{address}.log", namespace.name()));
        let mut command = namespace.command(&program.to_string_lossy());
        command
            .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
            .arg("-n")
            .args([
                format!("--listening-ip={address}"),
                format!("--relay-ip={address}"),
            ])
            .args([
                "--no-cli",
                "--no-tls",
                "--no-dtls",
                "--log-file=stdout",
                "--simple-log",
            ])
            .arg(format!("--userdb={}", log.with_extension("db").display()))
            .arg(format!("--pidfile={}", log.with_extension("pid").display()))
            .args(options)
            .stdout(File::create(&log)?)
            .stderr(Stdio::null());
        let process = Running(command.spawn().context("turnserver")?);
        Ok(Coturn {
            _process: process,
            log,
        })
    }

    /// Reads what it has logged.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }
}
