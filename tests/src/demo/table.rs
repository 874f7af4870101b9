//! What a person sees of the demo.

use std::time::Duration;

use anyhow::Result;
use breakout_tests::daemon::{Site, binary};
use breakout_tests::lab::Lab;
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::Observation;

pub(crate) fn print(observations: &[Observation], took: Duration) {
    let mut table = Table::new();
    let header = [
        "flow",
        "proto",
        "destination",
        "port",
        "belongs",
        "route",
        "redirect",
    ];
    table.load_preset(NOTHING).set_header(header);
    let in_mode = |mode: &str| {
        let of_mode: Vec<&Observation> = observations.iter().filter(|o| o.mode == mode).collect();
        of_mode
    };
    for (route, redirect) in in_mode("route").into_iter().zip(in_mode("redirect")) {
        let flow = &route.flow.flow;
        table.add_row([
            route.name.to_owned(),
            format!("{:?}", flow.transport).to_uppercase(),
            flow.destination.ip().to_string(),
            flow.destination.port().to_string(),
            route.expected.to_owned(),
            outcome(route),
            outcome(redirect),
        ]);
    }
    println!("{table}\n");
    println!(
        "Each outcome: who answered, the packets counted at that far end, and Breakout's own count of them."
    );
    let wrong = observations.iter().filter(|o| !o.ok).count();
    let steered = observations.iter().filter(|o| o.flow.steered).count();
    if wrong == 0 {
        println!(
            "All {} flows where they belong: {steered} left by the local internet link, {} by the WAN ({:.1} s).",
            observations.len(),
            observations.len() - steered,
            took.as_secs_f64()
        );
    } else {
        println!("{wrong} of {} flows WRONG.", observations.len());
    }
}

fn outcome(observation: &Observation) -> String {
    let (arrived, counted) = if observation.flow.steered {
        (observation.internet_packets, observation.steered_packets)
    } else {
        (observation.wan_packets, observation.passed_packets)
    };
    let mark = if observation.ok { "ok" } else { "WRONG" };
    format!("{mark} {} {arrived}={counted}", observation.came_out)
}

pub(crate) fn print_how_to_enter(lab: &Lab, site: &Site, pid: u32) -> Result<()> {
    let breakout = binary()?;
    let (breakout, config) = (breakout.display(), site.config());
    let config = config.display();
    eprintln!("\nThe lab stays up, in route mode. Enter it with:");
    for (role, namespace) in lab.namespaces() {
        eprintln!("  ip netns exec {} bash    # {role}", namespace.name());
    }
    eprintln!("Ask the controller (process {pid}) from anywhere:");
    eprintln!("  {breakout} status --config {config}");
    eprintln!("  {breakout} explain 52.98.1.1 --proto tcp --port 443 --config {config}");
    eprintln!("Take it down with:");
    eprintln!("  kill {pid}");
    for (_, namespace) in lab.namespaces() {
        eprintln!("  ip netns del {}", namespace.name());
    }
    eprintln!("  rm -r {}", site.path().display());
    Ok(())
}
