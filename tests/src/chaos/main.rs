//! `cargo xtask chaos`: a gateway with traffic to which everything happens that happens to gateways, in an order that one number
//! decides. Ends with the first thing that does not hold.

mod actions;
mod resources;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::Lab;
use breakout_tests::live::{Connections, Stream};
use breakout_tests::requirements;
use clap::Parser;
use fastrand::Rng;

use actions::{Action, configuration, list};
use resources::Resources;

/// Does everything to a gateway that happens to gateways, under traffic.
#[derive(Parser)]
struct Arguments {
    /// How long, in seconds, for each mode.
    #[arg(long, default_value_t = 450)]
    seconds: u64,
    /// What decides the order; the same number gives the same order.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this mode: route or redirect.
    #[arg(long)]
    mode: Option<String>,
}

/// Steered, and never so.
const MAIL: &str = "52.98.1.1:443";
const MEDIA: &str = "52.113.0.1:3478";
const OTHER: &str = "203.0.113.1:443";
const OTHER_MEDIA: &str = "203.0.113.1:3478";
/// Connections that are watched.
const CONNECTIONS: usize = 20;
/// Packets of a stream that a link takes along when it fails, or an interface whose program changes.
const LOST_BY_A_LINK: usize = 60;
const LOST_BY_A_PROGRAM: usize = 5;
/// How long everything may take to be right again.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(missing) = requirements::missing() {
        eprintln!("chaos: {missing}");
        return ExitCode::FAILURE;
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let modes = ["route", "redirect"].into_iter();
    let wanted = arguments.mode.as_deref();
    for mode in modes.filter(|mode| wanted.is_none_or(|wanted| wanted == *mode)) {
        let duration = Duration::from_secs(arguments.seconds);
        if let Err(error) = chaos(mode, duration, &mut Rng::with_seed(seed)) {
            eprintln!("chaos in {mode} mode, seed {seed}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A gateway with traffic.
pub(crate) struct Place<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) site: &'a Site,
    pub(crate) mode: &'static str,
    daemon: Option<Daemon<'a>>,
}

impl<'a> Place<'a> {
    pub(crate) fn daemon(&self) -> Result<&Daemon<'a>> {
        self.daemon.as_ref().context("a controller runs")
    }

    /// Kills the controller and starts another one.
    pub(crate) fn restart(&mut self) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        self.daemon = Some(Daemon::start(self.site, &self.lab.gateway)?);
        Ok(())
    }

    /// Runs a command of ours, which must succeed.
    pub(crate) fn breakout(&self, line: &str) -> Result<()> {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = self.site.output(&self.lab.gateway, &arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "breakout {line}: {said}");
        Ok(())
    }

    /// Returns whether new connections go where they should.
    fn is_right(&self) -> bool {
        let way = |address| Flow::new(Transport::Tcp, address, 443).talk(&self.lab.client);
        way("52.98.1.1").is_ok_and(|way| way == "internet")
            && way("203.0.113.1").is_ok_and(|way| way == "wan")
    }

    fn wait_until_right(&self) -> Result<()> {
        let started = Instant::now();
        while !self.is_right() {
            ensure!(
                started.elapsed() < PATIENCE,
                "new connections do not go where they should:\n{}",
                self.daemon()?.log()
            );
        }
        Ok(())
    }

    fn connections(&self, to: &str) -> Result<Connections> {
        Connections::open(&self.lab.client, &[to.parse()?], CONNECTIONS)
    }
}

/// Everything lives in a directory of its own with little room.
fn with_small_disk(site: &Site, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let state = site.path().join("state");
    std::fs::create_dir(&state)?;
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &state, Some("tmpfs"), flags, Some("size=2m"))?;
    let outcome = work();
    nix::mount::umount2(&state, nix::mount::MntFlags::MNT_DETACH)?;
    outcome
}

fn chaos(mode: &'static str, duration: Duration, rng: &mut Rng) -> Result<()> {
    let lab = Lab::build()?;
    let flows = [
        Flow::new(Transport::Tcp, "52.98.1.1", 443),
        Flow::new(Transport::Udp, "52.113.0.1", 3478),
        Flow::new(Transport::Tcp, "203.0.113.1", 443),
        Flow::new(Transport::Udp, "203.0.113.1", 3478),
    ];
    let _servers = lab.serve(&flows)?;
    let site = Site::new(&configuration(mode, false))?;
    std::fs::write(site.path().join("list.json"), list(0))?;
    std::fs::write(site.path().join("custom.txt"), "198.51.100.0/24\n")?;
    with_small_disk(&site, || {
        let daemon = Some(Daemon::start(&site, &lab.gateway)?);
        let mut place = Place {
            lab: &lab,
            site: &site,
            mode,
            daemon,
        };
        go_on(&mut place, duration, rng)
    })
}

fn go_on(place: &mut Place<'_>, duration: Duration, rng: &mut Rng) -> Result<()> {
    place.wait_until_right()?;
    let call = Stream::start(&place.lab.client, MEDIA.parse()?)?;
    let other = Stream::start(&place.lab.client, OTHER_MEDIA.parse()?)?;
    let others = place.connections(OTHER)?;
    let mut mails = place.connections(MAIL)?;
    std::thread::sleep(Duration::from_secs(2));
    let started = Instant::now();
    let first = Resources::of(place)?;
    println!("{}: at first {first}", place.mode);
    let (mut links, mut programs, mut moved, mut done) = (0, 0, 0, 0);
    while started.elapsed() < duration {
        let action = Action::choose(rng, place.mode);
        action.carry_out(place, rng).with_context(|| action.name)?;
        done += 1;
        links += usize::from(action.loses_a_link);
        programs += usize::from(action.changes_programs);
        std::thread::sleep(Duration::from_millis(300));
        let ended = mails
            .now()
            .iter()
            .filter(|mail| mail.error.is_some())
            .count();
        ensure!(
            ended == 0 || action.may_move,
            "{ended} of {CONNECTIONS} connections ended after: {}\n{}",
            action.name,
            place.daemon()?.log()
        );
        if ended > 0 {
            moved += ended;
            place.wait_until_right()?;
            mails = place.connections(MAIL)?;
        }
        let ended = others.now().into_iter().find_map(|one| one.error);
        ensure!(
            ended.is_none(),
            "an unsteered connection ended after {}: {ended:?}",
            action.name
        );
    }
    place.wait_until_right()?;
    std::thread::sleep(Duration::from_secs(2));
    let last = Resources::of(place)?;
    println!("{}: at last {last}", place.mode);
    last.compare(&first)?;
    let lost = other.lost_since(started);
    let who = other.who_since(started);
    ensure!(
        who == ["wan"],
        "what is not steered was answered by {who:?}"
    );
    ensure!(
        lost <= programs * LOST_BY_A_PROGRAM,
        "{lost} unsteered packets were lost"
    );
    let lost_steered = call.lost_since(started);
    let most = links * LOST_BY_A_LINK + programs * LOST_BY_A_PROGRAM;
    ensure!(
        lost_steered <= most,
        "{lost_steered} steered packets were lost, {most} at most by links"
    );
    println!(
        "{}: {done} actions in {} s, {links} links cut, {moved} connections moved by them; lost: {lost_steered} steered packets, {lost} others",
        place.mode,
        started.elapsed().as_secs()
    );
    place.daemon.take().context("a controller runs")?.stop()?;
    Ok(())
}
