//! What the service's user can write must not lead root anywhere: links and pipes in the state directory, under commands that root
//! runs. And what the controller must not take: memory that is not there.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::Site;
use breakout_tests::netns::{Namespace, run};
use nix::sys::stat::Mode;

use crate::Test;
use crate::office::{config, list};

pub(crate) const TESTS: &[Test] = &[
    ("links_in_the_state_directory_lead_root_nowhere", links),
    (
        "prefixes_beyond_memory_are_refused_before_anything_changes",
        memory,
    ),
];

/// Somebody who has become the service's user.
const USER: u32 = 65_534;
const SECRET: &str = "root:$6$secret:19000";
const NAMES: [&str; 8] = [
    "lock",
    "state.json",
    "journal.jsonl",
    "events.jsonl",
    "client-id",
    "lists",
    "rulesets",
    "lists/Worldwide",
];
const COMMANDS: [&str; 8] = [
    "unload",
    "list fetch",
    "list history",
    "list show",
    "history",
    "check",
    "doctor",
    "sysdump --output OUT",
];

fn links() -> Result<()> {
    let namespace = Namespace::create(format!("bo{}-links", std::process::id()))?;
    let site = Site::new(&config("probes = []\n").replace(
        "file = \"list.json\"",
        // Nobody listens there; the state directory is used before that is known.
        "source = \"https://127.0.0.1:9\"",
    ))?;
    let state = site.path().join("state");
    let rootly = site.path().join("rootly");
    fs::create_dir(&rootly)?;
    chown(&rootly, Some(0), Some(0))?;
    let (secret, dangling) = (rootly.join("secret"), rootly.join("made"));
    for name in NAMES {
        for kind in ["link", "link into nothing", "link to a directory", "pipe"] {
            for command in COMMANDS {
                let what = || format!("{kind} at {name}, {command}");
                let _ = fs::remove_dir_all(&state);
                fs::create_dir(&state)?;
                fs::write(&secret, SECRET)?;
                let path = state.join(name);
                if let Some(parent) = path.parent().filter(|parent| *parent != state) {
                    fs::create_dir(parent)?;
                    chown(parent, Some(USER), Some(USER))?;
                }
                match kind {
                    "link" => symlink(&secret, &path)?,
                    "link into nothing" => symlink(&dangling, &path)?,
                    "link to a directory" => symlink(&rootly, &path)?,
                    _ => nix::unistd::mkfifo(&path, Mode::S_IRWXU)?,
                }
                chown(&state, Some(USER), Some(USER))?;
                let output = attempt(&site, &namespace, command).with_context(what)?;
                ensure!(!output.contains(SECRET), "{}: {output}", what());
                untouched(&rootly, &secret).with_context(what)?;
            }
        }
    }
    Ok(())
}

/// Runs a command as root, and returns all that it says and writes.
fn attempt(site: &Site, namespace: &Namespace, command: &str) -> Result<String> {
    let archive = site.path().join("case.tar.gz");
    let _ = fs::remove_file(&archive);
    let command = command.replace("OUT", &archive.display().to_string());
    let arguments: Vec<&str> = command.split(' ').collect();
    // One that waits for the other end of a pipe would wait for ever.
    let mut breakout = namespace.command("timeout");
    breakout.arg("20").arg(breakout_tests::daemon::binary()?);
    breakout.args(&arguments).arg("--config").arg(site.config());
    let output = breakout.output()?;
    ensure!(output.status.code() != Some(124), "it hangs");
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said += &String::from_utf8_lossy(&output.stderr);
    if archive.exists() {
        let mut tar = Command::new("tar");
        said += &run(tar.args(["-xzOf"]).arg(&archive))?;
    }
    Ok(said)
}

fn untouched(rootly: &Path, secret: &Path) -> Result<()> {
    let data = fs::metadata(secret)?;
    ensure!((data.uid(), data.gid()) == (0, 0), "it has another owner");
    ensure!(fs::read_to_string(secret)? == SECRET, "it was written to");
    let names: Vec<_> = fs::read_dir(rootly)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure!(names == ["secret"], "there are {names:?}");
    Ok(())
}

/// A million prefixes in a control group of 64 MiB, of whichever version is mounted.
fn memory() -> Result<()> {
    let namespace = Namespace::create(format!("bo{}-memory", std::process::id()))?;
    let site = Site::new(&config(
        "probes = []\n[[custom]]\nname = \"many\"\nfile = \"many.txt\"\n[[policy]]\ncustom = \"many\"\naction = \"local\"\n",
    ))?;
    fs::write(site.path().join("list.json"), list(&[]))?;
    let prefixes: String = (0..1_000_000u32)
        .map(|n| format!("2a00:{:x}:{:x}::/48\n", n >> 16, n & 0xffff))
        .collect();
    fs::write(site.path().join("many.txt"), prefixes)?;
    let limits = [
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ];
    let Some((mount, limit)) = limits.into_iter().find(|(mount, limit)| {
        Path::new(mount).join("cgroup.procs").exists() && {
            let probe = Path::new(mount).join(format!("bo{}-probe", std::process::id()));
            let has_limit = fs::create_dir(&probe).is_ok() && probe.join(limit).exists();
            let _ = fs::remove_dir(&probe);
            has_limit
        }
    }) else {
        println!("skipped: there is no control group of memory");
        return Ok(());
    };
    let group = Path::new(mount).join(format!("bo{}", std::process::id()));
    fs::create_dir(&group)?;
    fs::write(group.join(limit), (64u32 << 20).to_string())?;
    // By `ip netns exec` there is another /sys, in which no control group can be seen.
    let script = format!(
        "echo $$ >{}/cgroup.procs; exec ip netns exec {} \"$@\"",
        group.display(),
        namespace.name()
    );
    let mut check = Command::new("sh");
    check.args(["-c", &script, "sh"]);
    check.arg(breakout_tests::daemon::binary()?);
    let output = check
        .arg("check")
        .arg("--config")
        .arg(site.config())
        .output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    fs::remove_dir(&group)?;
    let said = said?;
    ensure!(
        said.contains("with 1000000 prefixes needs about") && said.contains("of the control group"),
        "{said}"
    );
    Ok(())
}
