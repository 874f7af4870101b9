//! What happens to a gateway.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use breakout_tests::netns::run;
use fastrand::Rng;

use crate::Place;

type Do = fn(&mut Place<'_>, &mut Rng) -> Result<()>;

/// Something that happens.
pub(crate) struct Action {
    pub(crate) name: &'static str,
    carry_out: Do,
    /// True if steered connections may have to move. Nothing else may end one.
    pub(crate) may_move: bool,
    /// True if the link is cut, with what is on it.
    pub(crate) loses_a_link: bool,
    /// True if programs come to interfaces that had none.
    pub(crate) changes_programs: bool,
}

const fn action(name: &'static str, carry_out: Do) -> Action {
    Action {
        name,
        carry_out,
        may_move: false,
        loses_a_link: false,
        changes_programs: false,
    }
}

const fn moving(name: &'static str, carry_out: Do) -> Action {
    Action {
        may_move: true,
        ..action(name, carry_out)
    }
}

const ACTIONS: &[Action] = &[
    action("another configuration", reconfigure),
    action("another list", relist),
    action("kill", |place, _| place.restart()),
    action("a kill on a full disk", kill_on_full_disk),
    action("a full disk", full_disk),
    action("routes come and go", routes),
    action("neighbours come and go", neighbours),
    action("questions", questions),
    action("pins removed", unpin),
    Action {
        loses_a_link: true,
        ..moving("a link that flaps", flap)
    },
    moving("rules deleted", unrule),
    moving("bypass", bypass),
    Action {
        changes_programs: true,
        ..moving("a program detached", detach)
    },
];

impl Action {
    pub(crate) fn choose(rng: &mut Rng, mode: &str) -> &'static Action {
        loop {
            let action = &ACTIONS[rng.usize(..ACTIONS.len())];
            // In redirect mode no packet goes by them.
            if mode == "route" || action.name != "rules deleted" {
                return action;
            }
        }
    }

    pub(crate) fn carry_out(&self, place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
        (self.carry_out)(place, rng)
    }
}

/// The configuration for a mode, with or without a set of our own.
pub(crate) fn configuration(mode: &str, with_custom: bool) -> String {
    let custom = if with_custom {
        "[[custom]]\nname = \"own\"\nfile = \"custom.txt\"\n[[policy]]\ncustom = \"own\"\naction = \"local\"\n\
         [[policy]]\ncategory = \"optimize\"\naction = \"local\"\n"
    } else {
        ""
    };
    format!(
        "[list]\nfile = \"list.json\"\n[[lan]]\ninterface = \"lan\"\n[egress.local]\ninterface = \"inet\"\n\
         gateway = \"10.3.0.2\"\nmode = \"{mode}\"\nprobes = []\n[health]\nhold_down = \"500ms\"\n{custom}"
    )
}

/// A list with mail and media, and one of several other sets.
pub(crate) fn list(variant: u8) -> String {
    format!(
        r#"[{{"id":1,"serviceArea":"Exchange","ips":["52.98.0.0/16"],"tcpPorts":"443","category":"Optimize"}},
            {{"id":11,"serviceArea":"Skype","ips":["52.112.0.0/14"],"udpPorts":"3478-3481","category":"Optimize"}},
            {{"id":31,"serviceArea":"SharePoint","ips":["104.{variant}.0.0/17"],"tcpPorts":"443","category":"Optimize"}}]"#
    )
}

fn reconfigure(place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
    place
        .site
        .configure(&configuration(place.mode, rng.bool()))?;
    place.breakout("reload")
}

fn relist(place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
    fs::write(place.site.path().join("list.json"), list(rng.u8(..)))?;
    place.breakout("reload")
}

fn fill(place: &Place<'_>) -> Result<std::path::PathBuf> {
    let filler = place.site.path().join("state/filler");
    // Until nothing more goes in.
    let _ = fs::write(&filler, vec![0; 4 << 20]);
    Ok(filler)
}

fn full_disk(place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
    let filler = fill(place)?;
    let outcome = relist(place, rng);
    fs::remove_file(filler)?;
    outcome
}

fn kill_on_full_disk(place: &mut Place<'_>, _: &mut Rng) -> Result<()> {
    let filler = fill(place)?;
    let outcome = place.restart();
    fs::remove_file(filler)?;
    outcome
}

fn routes(place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
    let base = rng.u8(..);
    for verb in ["add", "del"] {
        let lines: String = (0..2000)
            .map(|n| {
                format!(
                    "route {verb} 100.{base}.{}.{}/32 via 10.2.0.2\n",
                    n >> 8,
                    n & 255
                )
            })
            .collect();
        place.lab.gateway.ip_lines(&lines)?;
    }
    Ok(())
}

fn neighbours(place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
    let byte = rng.u8(..);
    let lines: String = (3..250)
        .map(|n| {
            format!("neigh replace 10.2.0.{n} lladdr 02:00:00:00:{byte:02x}:{n:02x} dev wan\n")
        })
        .collect();
    place.lab.gateway.ip_lines(&lines)
}

fn questions(place: &mut Place<'_>, _: &mut Rng) -> Result<()> {
    let archive = place.site.path().join("case.tar.gz");
    let _ = fs::remove_file(&archive);
    place.breakout(&format!("sysdump --output {}", archive.display()))?;
    ["status", "stats", "flows", "events", "doctor --json"]
        .into_iter()
        .try_for_each(|line| match place.breakout(line) {
            // It ends with another code where there is something to tell.
            Err(_) if line.starts_with("doctor") => Ok(()),
            outcome => outcome,
        })
}

fn flap(place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
    place.lab.internet.ip("link set eth0 down")?;
    sleep(Duration::from_millis(rng.u64(50..1500)));
    place.lab.internet.ip("link set eth0 up")?;
    // Its routes went with the link.
    place
        .lab
        .internet
        .ip("route replace 10.1.0.0/24 via 10.3.0.1")?;
    Ok(())
}

fn unrule(place: &mut Place<'_>, _: &mut Rng) -> Result<()> {
    // Our own may be back already; there need be none.
    let _ = place.lab.gateway.ip("rule del pref 900");
    Ok(())
}

fn bypass(place: &mut Place<'_>, _: &mut Rng) -> Result<()> {
    place.breakout("bypass on")?;
    place.breakout("bypass off")
}

/// The controller's directory of pins.
fn pins(place: &Place<'_>) -> Result<std::path::PathBuf> {
    let tag = place.site.path().to_string_lossy().replace(['/', '.'], "-");
    let home = fs::read_dir("/sys/fs/bpf/breakout").context("there are pins")?;
    let names = home.flatten().map(|entry| entry.path());
    let mut own = names.filter(|path| path.to_string_lossy().contains(tag.trim_matches('-')));
    own.next().context("the controller has pins")
}

fn unpin(place: &mut Place<'_>, _: &mut Rng) -> Result<()> {
    run(Command::new("rm").arg("-r").arg(pins(place)?))?;
    // They are looked at every ten seconds.
    sleep(Duration::from_secs(11));
    pins(place).map(drop)
}

fn detach(place: &mut Place<'_>, rng: &mut Rng) -> Result<()> {
    let links = fs::read_dir(pins(place)?.join("v2"))?.flatten();
    let links = links.map(|entry| entry.path());
    let is_link = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("tc-") || name.starts_with("xdp-")
    };
    let links: Vec<_> = links.filter(is_link).collect();
    let link = &links[rng.usize(..links.len())];
    run(Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(link))?;
    sleep(Duration::from_secs(11));
    Ok(())
}
