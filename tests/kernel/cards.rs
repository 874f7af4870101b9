//! Redirect mode on the drivers of real network cards, as qemu emulates them; see `cargo xtask vm`.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use breakout_tests::daemon::{Daemon, Site};
use breakout_tests::flow::{Flow, Transport};
use breakout_tests::lab::{CONFIG, Lab};
use breakout_tests::seen;

use crate::Test;
use crate::any_link::{forwards_nothing, leave_by_the_egress};

pub(crate) const VIRTIO: &str = "redirect_between_cards_of_virtio_net";
pub(crate) const VMXNET3: &str = "redirect_between_cards_of_vmxnet3";

pub(crate) const TESTS: &[Test] = &[
    (VIRTIO, || between("virtio_net")),
    (VMXNET3, || between("vmxnet3")),
];

/// Says what one of these tests needs and is not there.
pub(crate) fn lacks(name: &str) -> Option<&'static str> {
    let (driver, missing) = match name {
        VIRTIO => ("virtio_net", "needs four cards of virtio_net"),
        VMXNET3 => ("vmxnet3", "needs four cards of vmxnet3"),
        _ => return None,
    };
    (cards(driver).len() < 4).then_some(missing)
}

/// The cards of a driver in this namespace, in the order of their MAC addresses.
fn cards(driver: &str) -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let of_driver = names.filter(|name| {
        let link = fs::read_link(format!("/sys/class/net/{name}/device/driver"));
        link.is_ok_and(|link| link.ends_with(driver))
    });
    let mut cards: Vec<String> = of_driver.collect();
    cards.sort_by_key(|name| {
        fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap_or_default()
    });
    cards
}

/// The four cards of a driver. The kernel brings back those of a namespace that is gone some time later.
fn four_cards(driver: &str) -> Result<[String; 4]> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match cards(driver).try_into() {
            Ok(cards) => return Ok(cards),
            Err(found) => ensure!(Instant::now() < deadline, "there are only {found:?}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Steered flows leave by the egress although netfilter forwards nothing to there, whichever program the drivers let forward: also
/// where XDP forwards the replies, for which the egress has a program of its own.
fn between(driver: &str) -> Result<()> {
    for returns in [false, true] {
        let cards = four_cards(driver)?;
        let lab = Lab::on_cards(cards.each_ref().map(String::as_str))?;
        let flows = [
            Flow::new(Transport::Tcp, "52.98.1.1", 443),
            Flow::new(Transport::Udp, "52.113.0.1", 3478),
            Flow::new(Transport::Tcp, "2603:1006::1", 443),
            Flow::new(Transport::Udp, "2603:1063::1", 3478),
        ];
        let _servers = lab.serve(&flows)?;
        forwards_nothing(&lab.gateway, "lan", "inet")?;
        let config = CONFIG.replace("MODE", "redirect");
        let site = Site::new(&format!("{config}return = {returns}\n"))?;
        let mut daemon = Daemon::start(&site, &lab.gateway)?;
        daemon.wait_until(|_| site.next_hops_known(&lab.gateway))?;
        leave_by_the_egress(&lab, &flows, 1_000_000)
            .with_context(|| format!("return = {returns}"))?;
        seen::no_bad_headers(&lab.client)?;
        let status = site.json(&lab.gateway, &["status"])?;
        let (lan, egress) = (&status["lan"][0], &status["egress"]["local"]);
        println!(
            "{driver}, return = {returns}: LAN XDP {} {}, egress by {} {}",
            lan["xdp"], lan["why_no_xdp"], egress["hook"], egress["why_tc"]
        );
        daemon.stop()?;
    }
    Ok(())
}
