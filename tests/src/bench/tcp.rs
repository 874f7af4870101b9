//! Part 3, continued: real TCP through the same ways. The kernel's ways gain from receive offload (GRO); a redirect does not.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use breakout_tests::netns::run as run_command;
use breakout_tests::running::Running;
use serde_json::Value;

use crate::measure::interleaved;
use crate::report::{Report, Row};
use crate::tables::Size;
use crate::ways::{Bench, Path, Way};

/// An address of an Optimize set that lists TCP 443.
const SERVER: &str = "52.98.0.1";
const PORT: &str = "443";

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let ways = [Way::Redirect, Way::Route, Way::Routes, Way::Nftables];
    let bench = Bench::new(&ways, Size::Real)?;
    bench.with_paths(|paths| {
        let servers: Result<Vec<Running>> = paths.iter().map(serve).collect();
        let servers = servers?;
        thread::sleep(Duration::from_millis(300));
        let rounds = if report.quick { 2 } else { 3 };
        for streams in [1, 8] {
            let samples = interleaved(rounds, paths.len(), |subject| {
                talk(&paths[subject], streams)
            })?;
            let values = ways.iter().enumerate();
            let values =
                values.map(|(subject, way)| (way.label().to_owned(), samples.spread(subject)));
            report.row(Row {
                part: "tcp",
                case: format!("{streams} streams, 1500 bytes"),
                unit: "Gbit/s",
                values: values.collect(),
            });
        }
        drop(servers);
        Ok(())
    })
}

/// Starts a server at the far end of the local link. Its answers come back by the same way.
fn serve(path: &Path<'_>) -> Result<Running> {
    let far_end = &path.lab.internet;
    far_end.ip(&format!("addr add {SERVER}/32 dev lo"))?;
    let mut command = far_end.command("iperf3");
    command.args(["--server", "--bind", SERVER, "--port", PORT]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Running(child.context(
        "cannot start iperf3; install it with `cargo xtask setup`",
    )?))
}

/// Gbit/s that arrive.
fn talk(path: &Path<'_>, streams: u32) -> Result<f64> {
    let mut command = path.lab.client.command("iperf3");
    let streams = streams.to_string();
    command.args(["--client", SERVER, "--port", PORT, "--time", "2", "--json"]);
    command.args(["--parallel", &streams]);
    let text = run_command(&mut command)?;
    let result: Value = serde_json::from_str(&text)?;
    let rate = result["end"]["sum_received"]["bits_per_second"].as_f64();
    let problem = || format!("iperf3 gives no rate: {}", result["error"]);
    Ok(rate.with_context(problem)? / 1e9)
}
