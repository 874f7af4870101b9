//! `breakout lab`.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::arguments::ConfigArgument;
use super::offline::{Offline, offline_config};
use crate::exit::{Code, WithCode};
use crate::lab::{LONGEST, Mix, SHORTEST, capture};

/// `breakout lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Write a capture with a chosen mix of flows that are steered and flows that are not, for tcpreplay, TRex and the like.
    ///
    /// By the configured policy and list, or by the built-in ones. It has what clients send; nothing is answered. `breakout
    /// replay --pure` counts the same.
    ///
    /// Example: breakout lab capture --output mix.pcap --flows 1000 --packets 100000 --steered 40
    Capture(Box<CaptureArguments>),
}

/// `breakout lab capture`.
#[derive(Debug, Args)]
pub struct CaptureArguments {
    /// Output file.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Packets in all.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    packets: u64,
    /// Flows in all.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    flows: u32,
    /// Per cent of the flows that are steered.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    steered: u8,
    /// Per cent of the flows that are IPv6.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    ipv6: u8,
    /// Length of the frames in bytes, without the checksum at their end.
    #[arg(long, value_name = "BYTES", default_value_t = SHORTEST as u16, value_parser = clap::value_parser!(u16).range(SHORTEST as i64..=LONGEST as i64))]
    size: u16,
    /// Packets a second, by the capture's clock.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// A network of clients; give one for IPv4 and one for IPv6.
    #[arg(long, value_name = "NETWORK", default_values = ["10.1.0.0/24", "fd00:1::/64"])]
    clients: Vec<IpNet>,
    /// The sender's MAC address.
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:01", value_parser = mac)]
    source_mac: Mac,
    /// The MAC address of the gateway's LAN interface.
    #[arg(long, value_name = "MAC", default_value = "02:00:00:00:00:02", value_parser = mac)]
    gateway_mac: Mac,
    /// The same number makes the same capture.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// By this list, a response of the endpoints web service, instead of the configured one.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
}

type Mac = [u8; 6];

fn mac(text: &str) -> Result<Mac, String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let bytes = bytes.and_then(|bytes| Mac::try_from(bytes).ok());
    bytes.ok_or_else(|| "not six bytes like 02:00:00:00:00:01".to_owned())
}

pub(super) fn lab(config: &ConfigArgument, command: &LabCommand) -> Result<()> {
    let LabCommand::Capture(arguments) = command;
    let offline = Offline::load(offline_config(config)?, arguments.list.as_deref())?;
    let mix = Mix {
        packets: arguments.packets,
        flows: arguments.flows,
        steered: f64::from(arguments.steered) / 100.0,
        ipv6: f64::from(arguments.ipv6) / 100.0,
        size: arguments.size.into(),
        rate: arguments.rate,
        clients: arguments.clients.clone(),
        source_mac: arguments.source_mac,
        gateway_mac: arguments.gateway_mac,
        seed: arguments.seed,
    };
    if arguments.packets < arguments.flows.into() {
        return Err(anyhow!(
            "--packets {} is less than --flows {}: not every flow would have a packet",
            arguments.packets,
            arguments.flows
        ))
        .code(Code::Usage);
    }
    let output = arguments.output.display();
    let file = File::create(&arguments.output).with_context(|| format!("cannot make {output}"))?;
    let written = capture(&offline.ruleset, &mix, &mut BufWriter::new(file))
        .with_context(|| format!("{output} is not complete"))?;
    out!(
        "{output}: {} packets of {} flows that are steered, {} packets of {} flows that are not",
        written.packets[0],
        written.flows[0],
        written.packets[1],
        written.flows[1]
    );
    Ok(())
}
