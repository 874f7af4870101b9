//! What is exported, read by the programs that it is for. Where one of them is missing, its test is reported as skipped.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::binary;
use breakout_tests::netns::{Namespace, run};
use breakout_tests::requirements;
use libtest_mimic::{Arguments, Failed, Trial};
use rquickjs::{Context as JsContext, Function, Runtime};
use serde_json::Value;

type Test = (&'static str, fn() -> Result<()>, fn() -> Option<String>);

const TESTS: &[Test] = &[
    ("a_pac_file_says_what_get_pacfile_would", pac, never_missing),
    (
        "hostile_text_stays_in_comments",
        hostile_text,
        never_missing,
    ),
    (
        "hostile_text_moves_nothing_in_the_kernel",
        hostile_text_in_the_kernel,
        requirements::missing,
    ),
    ("nft_loads_the_table", nft, requirements::missing),
    ("ip_applies_the_routes", iproute2, requirements::missing),
    ("bird_parses_the_routes", bird, || missing("usr/sbin/bird")),
    ("frr_parses_the_routes", frr, || missing("usr/bin/vtysh")),
];

const CONFIG: &str = "[list]\nsource = \"builtin\"\n[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n\
                      gateway = \"10.3.0.2\"\ngateway6 = \"fd00:3::2\"\n";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = TESTS.iter().map(|(name, test, missing)| {
        let missing = missing();
        if let Some(reason) = &missing {
            println!("skipped: {name}: {reason}");
        }
        Trial::test(*name, move || {
            test().map_err(|error| Failed::from(format!("{error:#}")))
        })
        .with_ignored_flag(missing.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn never_missing() -> Option<String> {
    None
}

/// Where the set-up has unpacked BIRD and FRRouting.
fn routers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/unpacked/root")
}

fn missing(program: &str) -> Option<String> {
    let path = routers().join(program);
    (!path.is_file()).then(|| format!("{} is not there; see cargo xtask setup", path.display()))
}

/// A router's program with its libraries.
fn router(program: &str) -> Command {
    let libraries = routers().join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(routers().join(program));
    let path = format!("{0}:{0}/frr", libraries.display());
    command.env("LD_LIBRARY_PATH", path);
    command
}

/// What `breakout export` prints, in a directory of its own.
fn exported(arguments: &[&str]) -> Result<(tempfile::TempDir, String)> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("breakout.toml");
    fs::write(&config, CONFIG)?;
    let mut command = Command::new(binary()?);
    command
        .arg("export")
        .args(arguments)
        .arg("--config")
        .arg(config);
    let text = run(&mut command)?;
    fs::write(directory.path().join("exported"), &text)?;
    Ok((directory, text))
}

/// A list as the service sends it: the real one where it is at hand, else a short one with what matters.
fn list(directory: &Path) -> Result<PathBuf> {
    let real =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/endpoints/worldwide.2025-11.json");
    if real.is_file() {
        return Ok(real);
    }
    let path = directory.join("list.json");
    let row = |id: u32, category: &str, urls: &str| {
        format!(
            r#"{{"id":{id},"category":"{category}","urls":[{urls}],"ips":["40.{id}.0.0/16"],"tcpPorts":"443"}}"#
        )
    };
    let rows = [
        row(1, "Optimize", r#""outlook.office.com","*.sharepoint.com""#),
        row(
            2,
            "Allow",
            r#""outlook.office.com","smtp.office365.com","*.teams.microsoft.com""#,
        ),
        row(
            3,
            "Default",
            r#""*-files.sharepoint.com","admin.teams.microsoft.com","*.example.net""#,
        ),
    ];
    fs::write(&path, format!("[{}]", rows.join(",")))?;
    Ok(path)
}

/// For every URL in the list, in a real JavaScript engine, with the rules of Microsoft's script written down once more here.
fn pac() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = list(directory.path())?;
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(&path)?)?;
    let file = path.to_string_lossy().into_owned();
    for kind in ["1", "2"] {
        let arguments = [
            "--format",
            "pac",
            "--pac-type",
            kind,
            "--list",
            &file,
            "--proxy",
            "PROXY p:8080",
        ];
        let (_directory, text) = exported(&arguments)?;
        let runtime = Runtime::new()?;
        let context = JsContext::full(&runtime)?;
        let (mut direct, mut proxied) = (0, 0);
        context.with(|js| -> Result<()> {
            js.eval::<(), _>(SH_EXP_MATCH)?;
            js.eval::<(), _>(text.as_str())?;
            let find: Function<'_> = js.globals().get("FindProxyForURL")?;
            for host in hosts(&rows, |_| true) {
                // A host that the pattern stands for; the pattern itself is matched by more than that.
                for host in [
                    host.clone(),
                    host.replace('*', "x"),
                    host.to_ascii_uppercase(),
                ] {
                    let answer: String = find.call((format!("https://{host}/"), host.clone()))?;
                    let expected = by_get_pacfile(&rows, kind, &host.to_ascii_lowercase());
                    ensure!(
                        answer == expected,
                        "type {kind}, {host}: {answer}, not {expected}"
                    );
                    if answer == "DIRECT" {
                        direct += 1;
                    } else {
                        proxied += 1;
                    }
                }
            }
            Ok(())
        })?;
        ensure!(
            direct > 0 && proxied > 0,
            "type {kind}: {direct} direct, {proxied} not"
        );
    }
    Ok(())
}

/// The function that browsers give to PAC files.
const SH_EXP_MATCH: &str = r#"
function shExpMatch(text, pattern) {
    var escaped = pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".");
    return new RegExp("^" + escaped + "$").test(text);
}"#;

fn hosts(rows: &[Value], chosen: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let rows = rows
        .iter()
        .filter(|row| chosen(row["category"].as_str().unwrap_or_default()));
    let urls = rows.flat_map(|row| row["urls"].as_array().cloned().unwrap_or_default());
    urls.filter_map(|url| url.as_str().map(str::to_lowercase))
        .collect()
}

/// What a PAC file of Microsoft's script answers: the hosts of other categories that a direct pattern covers first, then
/// the direct ones.
fn by_get_pacfile(rows: &[Value], kind: &str, host: &str) -> &'static str {
    let is_direct = |category: &str| category == "Optimize" || kind == "2" && category == "Allow";
    let direct = hosts(rows, is_direct);
    let others = hosts(rows, |category| !is_direct(category));
    let first = others.iter().filter(|other| {
        direct
            .iter()
            .any(|pattern| pattern != *other && glob(pattern, other))
    });
    if first.into_iter().any(|pattern| glob(pattern, host)) {
        return "PROXY p:8080";
    }
    if direct.iter().any(|pattern| glob(pattern, host)) {
        "DIRECT"
    } else {
        "PROXY p:8080"
    }
}

/// Returns whether a pattern with asterisks covers a text.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// What whoever writes a list, or names its file, would like to have run.
const INJECTED: &str = "x\ndelete table inet other\nroute add 198.51.100.0/24 dev inet\nip route 198.51.100.0/24 inet\n\
                        /* */ evil = 1; // \r\u{85}\u{2028}}\n\u{1b}]0;x\u{7}\\";

/// A list with [`INJECTED`] wherever it has text, under a name that ends a comment, too.
fn hostile_list(directory: &Path, injected: &str) -> Result<String> {
    // A name may be 255 bytes long.
    let path = directory.join(format!("list{}", injected.replace('/', "")));
    let set = |id: u32, category: &str| {
        serde_json::json!({
            "id": id, "serviceArea": format!("Exchange{injected}"), "category": category, "tcpPorts": "443",
            "ips": ["40.96.0.0/13"], "urls": ["outlook.office.com", format!("a\"); evil = 1; (\"{injected}")],
        })
    };
    let sets = [
        set(1, "Optimize"),
        set(2, "Allow"),
        set(3, &format!("Other{injected}")),
    ];
    fs::write(&path, serde_json::to_vec(&sets)?)?;
    Ok(path.to_string_lossy().into_owned())
}

fn hostile_text() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let hostile = hostile_list(directory.path(), INJECTED)?;
    let harmless = hostile_list(directory.path(), "")?;
    for format in ["nft", "iproute2", "bird", "frr", "edl", "wireguard"] {
        let bodies = [&hostile, &harmless].map(|list| -> Result<Vec<String>> {
            let (_directory, text) = exported(&["--format", format, "--list", list])?;
            let is_plain = |character: char| character == '\n' || !character.is_control();
            ensure!(text.chars().all(is_plain), "{format}: {text:?}");
            ensure!(!text.contains("\\\n"), "{format}: {text:?}");
            let body = text.lines().map(str::trim);
            let body = body.filter(|line| !line.starts_with(['#', '!']));
            Ok(body.map(str::to_owned).collect())
        });
        let [hostile, harmless] = bodies;
        ensure!(hostile? == harmless?, "{format}");
    }
    let arguments = [
        "--format",
        "pac",
        "--list",
        &hostile,
        "--proxy",
        "PROXY p\"\n:1",
    ];
    let (_directory, text) = exported(&arguments)?;
    ensure!(text.is_ascii(), "{text:?}");
    let (runtime, host) = (Runtime::new()?, "outlook.office.com");
    JsContext::full(&runtime)?.with(|js| {
        js.eval::<(), _>(SH_EXP_MATCH)?;
        js.eval::<(), _>(text.as_str())?;
        let find: Function<'_> = js.globals().get("FindProxyForURL")?;
        let answer: String = find.call((format!("https://{host}/"), host))?;
        ensure!(answer == "DIRECT", "{answer}");
        let answer: String = find.call(("https://example.net/", "example.net"))?;
        ensure!(answer == "PROXY p\"\n:1", "{answer:?}");
        ensure!(!js.globals().contains_key("evil")?, "{text}");
        Ok(())
    })
}

fn hostile_text_in_the_kernel() -> Result<()> {
    let place = Namespace::create(format!("bo{}-hostile", std::process::id()))?;
    place.ip("link add inet type veth peer name peer")?;
    place.ip_lines("link set inet up\n link set peer up\n addr add 10.3.0.1/24 dev inet")?;
    run(place.command("nft").args(["add", "table", "inet", "other"]))?;
    let directory = tempfile::tempdir()?;
    let list = hostile_list(directory.path(), INJECTED)?;
    for (format, program, option) in [("nft", "nft", "-f"), ("iproute2", "ip", "-batch")] {
        let (directory, _) = exported(&["--format", format, "--list", &list])?;
        let file = directory.path().join("exported");
        run(place.command(program).arg(option).arg(&file))?;
    }
    let tables = place.exec("nft list tables")?;
    ensure!(
        tables.contains("inet other") && tables.contains("breakout_export"),
        "{tables}"
    );
    let routes = place.ip("-4 route show")?;
    ensure!(routes.contains("40.96.0.0/13 via 10.3.0.2"), "{routes}");
    ensure!(!routes.contains("198.51.100.0"), "{routes}");
    Ok(())
}

fn nft() -> Result<()> {
    let place = Namespace::create(format!("bo{}-nft", std::process::id()))?;
    let (directory, _) = exported(&["--format", "nft"])?;
    let file = directory.path().join("exported");
    // Twice, because it replaces what it has made before.
    for _ in 0..2 {
        run(place.command("nft").arg("-f").arg(&file))?;
    }
    let loaded = place.exec("nft list table inet breakout_export")?;
    ensure!(loaded.contains("52.96.0.0/14 . tcp . 443"), "{loaded}");
    ensure!(
        loaded.contains("52.112.0.0/14 . udp . 3478-3481"),
        "{loaded}"
    );
    ensure!(loaded.contains("th dport @"), "{loaded}");
    Ok(())
}

fn iproute2() -> Result<()> {
    let place = Namespace::create(format!("bo{}-ip", std::process::id()))?;
    place.ip("link add inet type veth peer name peer")?;
    place.ip_lines(
        "link set inet up
         link set peer up
         addr add 10.3.0.1/24 dev inet
         addr add fd00:3::1/64 dev inet nodad",
    )?;
    let (directory, text) = exported(&["--format", "iproute2"])?;
    let file = directory.path().join("exported");
    run(place.command("ip").arg("-batch").arg(&file))?;
    let routes = format!(
        "{}{}",
        place.ip("-4 route show")?,
        place.ip("-6 route show")?
    );
    let wanted = text
        .lines()
        .filter_map(|line| line.strip_prefix("route replace "));
    let prefixes: Vec<&str> = wanted.filter_map(|line| line.split(' ').next()).collect();
    ensure!(prefixes.len() == 40, "{} routes", prefixes.len());
    for prefix in prefixes {
        let shown = prefix.trim_end_matches("/32").trim_end_matches("/128");
        ensure!(
            routes.contains(&format!("{shown} via ")),
            "{prefix} is not in:\n{routes}"
        );
    }
    Ok(())
}

fn bird() -> Result<()> {
    let (directory, text) = exported(&["--format", "bird"])?;
    let config = directory.path().join("bird.conf");
    fs::write(
        &config,
        format!("router id 10.0.0.1;\nprotocol device {{}}\n{text}"),
    )?;
    run(router("usr/sbin/bird").arg("-p").arg("-c").arg(&config))?;
    let broken = text.replacen(" via ", " vai ", 1);
    fs::write(&config, broken)?;
    let refused = run(router("usr/sbin/bird").arg("-p").arg("-c").arg(&config));
    ensure!(refused.is_err(), "the parser takes anything");
    Ok(())
}

fn frr() -> Result<()> {
    let (directory, text) = exported(&["--format", "frr"])?;
    let file = directory.path().join("exported");
    run(router("usr/bin/vtysh").arg("-C").arg("-f").arg(&file))
        .context("vtysh refuses the file")?;
    fs::write(&file, text.replacen("ip route ", "ip rout e ", 1))?;
    let refused = run(router("usr/bin/vtysh").arg("-C").arg("-f").arg(&file));
    ensure!(refused.is_err(), "the parser takes anything");
    Ok(())
}
