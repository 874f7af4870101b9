//! What commands say when something is wrong, where that needs no root; and that every message is provoked by some test, or is
//! known to be out of any test's reach.

mod audit;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::binary;
use tempfile::TempDir;

const BASE: &str = "[list]\nsource = \"builtin\"\n[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n\
                    [control]\nsocket = \"control.sock\"\n[state]\ndirectory = \"state\"\n";

/// A directory with a configuration, in which commands are run.
struct Place {
    directory: TempDir,
}

impl Place {
    /// With these lines before, and other ones behind what the smallest configuration has.
    fn new(before: &str, behind: &str) -> Result<Self> {
        let place = Place {
            directory: tempfile::tempdir()?,
        };
        let base = if before.contains("[list]") {
            BASE.replace("[list]\nsource = \"builtin\"\n", "")
        } else {
            BASE.to_owned()
        };
        place.write("breakout.toml", &format!("{before}\n{base}{behind}"))?;
        Ok(place)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.path().join(name), text).context(name.to_owned())
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.path().join("breakout.toml"))
            .current_dir(self.path());
        Ok(command)
    }

    /// Runs a command that must end with this code, and say these words.
    fn says(&self, arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
        says(&mut self.command(arguments)?, code, words)
    }
}

fn says(command: &mut Command, code: i32, words: &[&str]) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{command:?} ended with {}, not {code}: {message}",
        output.status
    );
    for word in words {
        ensure!(
            message.contains(word),
            "{command:?} does not say {word:?}: {message}"
        );
    }
    Ok(())
}

#[test]
fn configurations_and_policies() -> Result<()> {
    let place = Place::new("", "")?;
    let mut elsewhere = Command::new(binary()?);
    elsewhere.args(["check", "--config", "/nonexistent/breakout.toml"]);
    says(
        &mut elsewhere,
        3,
        &[
            "cannot read the configuration",
            "Name another with --config",
        ],
    )?;
    place.says(&["check"], 0, &[])?;
    let rule =
        |more: &str| format!("[[policy]]\ncategory = \"optimize\"\n{more}\naction = \"local\"\n");
    let custom = |more: &str| {
        format!(
            "[[custom]]\nname = \"tools\"\n{more}\n[[policy]]\ncustom = \"tools\"\naction = \"local\"\n"
        )
    };
    let sources: String = (0..33)
        .map(|n| rule(&format!("sources = \"10.{n}.0.0/16\"")))
        .collect();
    let lans: String = (0..33)
        .map(|n| format!("[[lan]]\ninterface = \"l{n}\"\n"))
        .collect();
    let vlans: Vec<String> = (1..100).map(|n| n.to_string()).collect();
    let many: Vec<String> = (0..66_000u32)
        .map(|n| format!("\"{}/32\"", Ipv4Addr::from(0x0a00_0000 + 2 * n)))
        .collect();
    for (more, code, words) in [
        (custom(""), 3, "has no prefixes"),
        (
            custom("file = \"none.txt\""),
            3,
            "cannot read the prefixes of a [[custom]] set",
        ),
        (custom("file = \"tools.txt\""), 3, "tools.txt:2: "),
        (custom("file = \"/dev/zero\""), 3, "it is no regular file"),
        (custom("ports = []"), 3, "ports names none"),
        (sources, 3, "different lists of sources; share some of them"),
        (
            format!("{lans}{}", rule("lan = \"l32\"")),
            3,
            "rules can only name the first",
        ),
        (
            rule(&format!("vlan = [{}]", vlans.join(", "))),
            4,
            "the ruleset is too large: for one destination there are",
        ),
        (
            rule(&format!("sources = [{}]", many.join(", "))),
            4,
            "the ruleset is too large: the policy's sources divide the addresses into",
        ),
    ] {
        let place = Place::new("", &more)?;
        place.write("tools.txt", "192.0.2.0/28\nnonsense\n")?;
        place.says(&["check"], code, &[words])?;
    }
    Ok(())
}

#[test]
fn lists() -> Result<()> {
    let place = Place::new("", "")?;
    let sets: Vec<String> = (1..=4200)
        .map(|id| {
            let (high, low) = (id / 250, id % 250);
            format!(
                "{{\"id\":{id},\"serviceArea\":\"Skype\",\"ips\":[\"52.{high}.{low}.0/24\"],\"tcpPorts\":\"443\",\"category\":\"Optimize\"}}"
            )
        })
        .collect();
    place.write("many.json", &format!("[{}]", sets.join(",")))?;
    File::create(place.path().join("large.json"))?.set_len(80 << 20)?;
    place.write(
        "odd.json",
        "[{\"id\":1,\"ips\":[\"52.96.0.0/14\"],\"tcpPorts\":\"443\",\"category\":\"Optimize\"},{\"id\":\"two\"}]",
    )?;
    fs::write(place.path().join("bytes.json"), b"[\xff]")?;
    fs::create_dir(place.path().join("empty"))?;
    let policies = "[[policy]]\nsets = 1\naction = \"pass\"\n".repeat(70_000);
    Place::new("", &policies)?.says(
        &["check"],
        3,
        &["70000 [[policy]] sections; 65535 can be told apart"],
    )?;
    for (arguments, code, words) in [
        (
            &["check", "--list", "many.json"][..],
            4,
            &[
                "endpoint sets, with those of earlier lists",
                "to number them afresh",
            ][..],
        ),
        (
            &["check", "--list", "large.json"],
            4,
            &[
                "bytes long; no list is larger than",
                "Is it the right file?",
            ],
        ),
        (
            &["list", "diff", "2026", "builtin"],
            4,
            &["there is no file 2026, and"],
        ),
        (
            &["list", "diff", "China/2026033100", "builtin"],
            4,
            &["[list] instance names no China"],
        ),
        (
            &["list", "fetch"],
            4,
            &[
                "the list is used as it is, from",
                "it is not fetched. Set [list] source to follow it",
            ],
        ),
        (
            &["list", "simulate", "--instance", "Mars", "odd.json"],
            2,
            &["there is no instance Mars"],
        ),
        (
            &["list", "simulate", "empty"],
            4,
            &["there is no list (*.json) in the directory"],
        ),
        (
            &["list", "simulate", "odd.json", "many.json"],
            10,
            &["1 of 2 lists would not have come into force"],
        ),
        (
            &["list", "simulate", "odd.json", "bytes.json"],
            10,
            &["1 of 2 lists would not have come into force"],
        ),
        (
            &["check", "--list", "bytes.json"],
            4,
            &["is no text: it is not UTF-8 from line 1 on"],
        ),
        (
            &["export", "--format", "pac"],
            4,
            &["the list has no host names, so every host would take the proxy"],
        ),
    ] {
        place.says(arguments, code, words)?;
    }
    let output = place
        .command(&["check", "--list", "odd.json", "--json"])?
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("row 2 cannot be understood"), "{text}");
    for (more, words) in [
        ("ca_file = \"none.pem\"", "cannot read [list] ca_file"),
        ("ca_file = \"empty.pem\"", "has no certificates"),
        ("ca_file = \"broken.pem\"", "has no certificates"),
        (
            "proxy = \"http://me:secret@\"",
            "[list] proxy = \"http://***@\"",
        ),
    ] {
        let place = Place::new(
            &format!("[list]\nsource = \"https://192.0.2.1\"\n{more}\n"),
            "",
        )?;
        place.write("empty.pem", "")?;
        place.write(
            "broken.pem",
            "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n",
        )?;
        place.says(&["list", "fetch"], 3, &[words])?;
    }
    let place = Place::new("", "")?;
    fs::create_dir_all(place.path().join("state/journal.jsonl"))?;
    place.says(&["history"], 1, &["cannot read ", "journal.jsonl"])?;
    Ok(())
}

#[test]
fn questions_captures_and_archives() -> Result<()> {
    let place = Place::new("", "")?;
    let flow = ["--proto", "tcp", "--port", "443"];
    let explain = |more: &[&'static str]| [&["explain", "52.98.1.1"][..], &flow[..], more].concat();
    place.write("text.pcap", "this is no capture")?;
    for (arguments, code, words) in [
        (explain(&["--lan", "x"]), 3, &["there is no [[lan]] x"][..]),
        (
            explain(&["--from", "fd00::1"]),
            2,
            &["--from fd00::1 is of another address family than"],
        ),
        (
            vec!["lab", "capture", "--output", "a.pcap", "--packets", "5"],
            2,
            &["not every flow would have a packet"],
        ),
        (
            vec!["lab", "capture", "--output", "/nonexistent/a.pcap"],
            1,
            &["cannot make /nonexistent/a.pcap"],
        ),
        (
            vec![
                "lab",
                "capture",
                "--output",
                "a.pcap",
                "--ipv6",
                "50",
                "--clients",
                "10.1.0.0/24",
            ],
            1,
            &[
                "a.pcap is not complete",
                "network of clients is given; see --clients and --ipv6",
            ],
        ),
        (
            vec![
                "lab",
                "capture",
                "--output",
                "a.pcap",
                "--source-mac",
                "02:00",
            ],
            2,
            &["not six bytes like 02:00:00:00:00:01"],
        ),
        (
            vec!["replay", "--pure", "none.pcap"],
            1,
            &["cannot open none.pcap"],
        ),
        (vec!["replay", "--pure", "."], 1, &["it cannot be read"]),
        (
            vec!["replay", "--pure", "text.pcap"],
            1,
            &["it is neither pcap nor pcapng; save it with tcpdump -w or Wireshark"],
        ),
        (vec!["top", "--interval", "0s"], 2, &["at least 100ms"]),
        (
            vec!["sysdump", "--output", "/nonexistent/a.tar.gz"],
            1,
            &["cannot make /nonexistent/a.tar.gz"],
        ),
    ] {
        place.says(&arguments, code, words)?;
    }
    let mut command = place.command(&["check"])?;
    says(
        command.env("BREAKOUT_LOG", "a=b=c"),
        2,
        &["is no log filter; try debug"],
    )
}

/// A disk that is full, where standard output is a file.
#[test]
fn nothing_can_be_written() -> Result<()> {
    let place = Place::new("", "")?;
    place.says(
        &["lab", "capture", "--output", "a.pcap", "--packets", "2000"],
        0,
        &[],
    )?;
    for arguments in [
        &["check"][..],
        &["check", "--json"],
        &["list", "show"],
        &["export", "--format", "nft"],
        &["replay", "--pure", "a.pcap"],
        &["replay", "--pure", "--json", "a.pcap"],
    ] {
        let mut command = place.command(arguments)?;
        command.stdout(File::options().write(true).open("/dev/full")?);
        let output = command.stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && message.contains("cannot write to stdout"),
            "{arguments:?} {}: {message}",
            output.status
        );
    }
    Ok(())
}

/// What listens on the control socket is no controller, or one of another version.
#[test]
fn answers_that_are_none() -> Result<()> {
    for (answer, words) in [
        ("", "the controller broke off the answer to /v1/status"),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno",
            "the controller answered /v1/status with 404",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            "the controller's answer is not understood; is it another version of breakout?",
        ),
    ] {
        let place = Place::new("", "")?;
        let listener = UnixListener::bind(place.path().join("control.sock"))?;
        let server = thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request)?;
            stream.write_all(answer.as_bytes())?;
            Ok(())
        });
        let mut command = place.command(&["status"])?;
        let output = command.stdin(Stdio::null()).output()?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && message.contains(words),
            "{words}: {message}"
        );
        server.join().expect("the server does not panic")?;
    }
    Ok(())
}
