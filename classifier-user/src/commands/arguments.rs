//! The command line.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(super) use super::lab::LabCommand;
pub(super) use super::orders::{BypassCommand, ListCommand};

use crate::addresses::AddressFormat;
use crate::config::DEFAULT_PATH;
use crate::explain::Proto;
use crate::export::Format;

const EXIT_CODES: &str = "Exit codes:
  0  success
  1  failure not listed below
  2  wrong command line
  3  the configuration cannot be read or used
  4  the list cannot be read or used
  5  not enough privileges
  6  no controller answers on the control socket
  7  an interface, gateway, kernel feature, or place for files or sockets is missing
  8  another controller is in the way
  9  something needs an operator's attention (status --check, doctor)
 10  the list was refused
 11  the list's source cannot be reached or does not answer as it should";

/// Local internet breakout of Microsoft 365 on a Linux gateway.
///
/// Recognises Microsoft 365 "Optimize" traffic in the kernel, on its first packet, and sends it out of the site's own
/// internet link. Everything else keeps the way it had.
#[derive(Debug, Parser)]
#[command(name = "breakout", version, after_help = EXIT_CODES)]
pub struct Arguments {
    /// Path of the configuration.
    #[command(flatten)]
    pub config: ConfigArgument,
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// `--config FILE`, for every command.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgument {
    /// The configuration file [default: /etc/breakout/breakout.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgument {
    /// The file to read.
    pub fn path(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| DEFAULT_PATH.into())
    }

    /// Returns why there is nothing to read, if so: none was named, and the default one does not exist or is not for this user.
    pub fn absence(&self) -> Option<io::Error> {
        let error = match self.config {
            Some(_) => None,
            None => File::open(DEFAULT_PATH).err(),
        };
        error.filter(|error| {
            matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::PermissionDenied
            )
        })
    }
}

/// Arguments of `breakout assess`.
#[derive(Clone, Debug, Args)]
pub struct AssessArguments {
    /// Assess this egress only.
    #[arg(long, value_name = "NAME")]
    pub egress: Option<String>,
    /// The time of the call to each relay.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub call: Duration,
    /// Leave a connection idle for so long, and see whether it goes on. Perimeters drop idle ones after 100 to 300 s.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub idle: Option<Duration>,
    /// Download by metered egresses too.
    #[arg(long)]
    pub load_metered: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `breakout addresses`.
#[derive(Clone, Debug, Args)]
pub struct AddressesArguments {
    /// Print JSON.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Write the ranges for one of Microsoft's interfaces.
    #[arg(long, value_enum)]
    pub format: Option<AddressFormat>,
    /// Mark the named location as trusted, which policies may take as a reason not to ask for a second factor.
    #[arg(long, requires = "format")]
    pub trusted: bool,
    /// The name that the site has there.
    #[arg(long, value_name = "NAME", default_value = "Breakout")]
    pub site: String,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller in the foreground until SIGTERM or SIGINT.
    ///
    /// Loads and attaches the programs, installs rules and routes, and serves the control socket. SIGHUP reloads. At the
    /// end everything it installed is removed. If it is killed instead, or with --leave, packets keep flowing as they
    /// did, and the next `run` takes over without a gap.
    ///
    /// Example: breakout run --config /etc/breakout/breakout.toml
    Run {
        /// Use this list, a response of the endpoints web service as saved by curl, instead of the configured one.
        #[arg(long, value_name = "FILE")]
        list: Option<PathBuf>,
        /// Log each decision of the data path. For looking at single packets only: it costs far more than the decision.
        #[arg(long)]
        trace: bool,
        /// Leave programs, rules and routes in force at the end, for the next controller to take over; `breakout unload`
        /// removes them. For service managers, which restart.
        #[arg(long)]
        leave: bool,
    },
    /// Check configuration and list, and, as root on the gateway, look at it as `doctor` does. Changes nothing.
    ///
    /// The exit code is 9 if the configuration is right, but something on the gateway loses packets. On a machine that has none of
    /// the interfaces, and for other users, only the configuration and the list are checked.
    ///
    /// Example: breakout check --config ./breakout.toml
    Check {
        /// Check with this list instead of the configured one.
        #[arg(long, value_name = "FILE")]
        list: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look for what stands in the way on this machine, and say what to do about it.
    ///
    /// Forwarding, reverse path filters, firewall rules that drop steered packets, missing translation, other users of marks,
    /// rules and tables, transparent proxies, a full connection table. Changes nothing. The exit code is 9 if there is a warning or an error.
    ///
    /// Example: breakout doctor
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure how good Microsoft 365 is by each egress, beside the limits that Microsoft publishes.
    ///
    /// DNS, TCP, TLS and HTTP of front doors, a call of ten seconds to Teams' relays, a download, routes and public addresses, by each
    /// egress and address family. Takes under two minutes, and needs the controller. What is measured leaves by the egresses whether
    /// or not anything is steered there, and is not seen by clients. The exit code is 9 if a test has failed.
    ///
    /// Example: breakout assess --egress local
    Assess(AssessArguments),
    /// Show what the running controller is doing.
    ///
    /// With --check the exit code is 9 if something needs an operator's attention: a list that is stale, refused or cannot
    /// be followed, updates that are held, a bypass or shadow, an egress that is degraded or down, a LAN interface that is
    /// missing, a program that somebody has replaced.
    ///
    /// Example: breakout status
    Status {
        /// Exit with 9 if something needs attention.
        #[arg(long)]
        check: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Watch the running controller in the terminal: egresses, rates, alerts, events.
    ///
    /// Rates are by endpoint set and by reason; what is steered has a `>`. Needs 80 columns and 24 lines; colours are
    /// no matter (NO_COLOR switches them off). The keys are shown in the last line.
    ///
    /// Example: breakout top --interval 2s
    Top {
        /// Interval at which the controller is asked.
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = turn)]
        interval: Duration,
    },
    /// Show how many packets got which verdict, by reason and by endpoint set.
    ///
    /// Example: breakout stats --json
    Stats {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what changed by itself, when and why: egresses, links, rulesets.
    ///
    /// Example: breakout events --follow
    Events {
        /// Go on as more happens.
        #[arg(short, long)]
        follow: bool,
        /// Only the newest so many at first.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Print JSON; with --follow one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show the flows that are pinned to their way, those with the latest packets first.
    ///
    /// Example: breakout flows --limit 20
    Flows {
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say where packets to a destination go, and why.
    ///
    /// Asks the tables in the kernel of the running controller. With --list, or when no controller runs, it answers offline,
    /// without root.
    ///
    /// Example: breakout explain 52.98.1.1 --proto tcp --port 443
    Explain(Explain),
    /// Write the rules for what else a site has: browsers, firewalls, routers, tunnels.
    ///
    /// From the lists that are in force and the configured policy. Formats without ports say at their head what they match
    /// beyond it.
    ///
    /// Example: breakout export --format nft
    Export(Export),
    /// Say what Breakout would do with the traffic in a capture.
    ///
    /// Each packet goes through the program in this kernel by a test run, as root, or with --pure through the same function
    /// in this process. Nothing is attached and nothing is sent. Reads pcap and pcapng with Ethernet, Linux cooked and
    /// raw IP packets. All egresses count as up, and no address as the gateway's own.
    ///
    /// Example: breakout replay --pure office.pcapng
    Replay(Replay),
    /// Make traffic for laboratories.
    ///
    /// Example: breakout lab capture --output mix.pcap
    #[command(subcommand)]
    Lab(LabCommand),
    /// Look at the lists of endpoint sets, and say which is in force.
    ///
    /// Example: breakout list show
    #[command(subcommand)]
    List(ListCommand),
    /// Read configuration and list again and put them into force in one switch.
    ///
    /// If something in them is wrong, nothing changes.
    ///
    /// Example: breakout reload
    Reload {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what an edited configuration and the lists that wait would change, without changing anything.
    ///
    /// Example: breakout plan
    Plan {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read the configuration again and put the lists that wait into force.
    ///
    /// Lists wait with [list] apply = "manual", and after a rollback.
    ///
    /// Example: breakout apply
    Apply {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Switch steering off for a time, and on again.
    ///
    /// Everything takes the ordinary path then, and is counted as `bypass` where it would be steered. It survives a restart of
    /// the controller, and ends by itself.
    ///
    /// Example: breakout bypass on --for 30m
    #[command(subcommand)]
    Bypass(BypassCommand),
    /// Show every public address that each egress has had, and write them for Microsoft's address policies.
    ///
    /// Addresses are known by STUN probes, or where an interface has a public one. Those that Microsoft does not see, or that somebody
    /// else may have tomorrow, are shown and not exported.
    ///
    /// Example: breakout addresses --format graph --site Berlin
    Addresses(AddressesArguments),
    /// Show what was put into force: when, by whom and why.
    ///
    /// Example: breakout history --limit 20
    History {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Only the newest so many changes.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Gather what a support case needs into one archive: configuration, state, counters, events, links, rules, routes, nftables.
    ///
    /// No packets are in it. Passwords in URLs are masked, and so are the addresses of clients in the networks of the LAN
    /// interfaces. Run it as root; look through it before you send it.
    ///
    /// Example: breakout sysdump --output case.tar.gz
    Sysdump {
        /// Output file [default: breakout-sysdump-TIME.tar.gz in this directory]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Leave the clients' addresses in it, and put in the flows that are pinned.
        #[arg(long)]
        clients: bool,
    },
    /// Remove what a controller that was killed, or run with --leave, has left in the kernel.
    ///
    /// Example: breakout unload --config /etc/breakout/breakout.toml
    Unload,
}

/// `breakout explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The destination address.
    pub destination: IpAddr,
    /// The protocol.
    #[arg(long, value_enum)]
    pub proto: Proto,
    /// The destination port.
    #[arg(long, value_name = "N")]
    pub port: u16,
    /// The client's address, where rules ask for sources or a share.
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,
    /// The LAN interface that the client is behind, where rules ask for it [default: the first]
    #[arg(long, value_name = "INTERFACE")]
    pub lan: Option<String>,
    /// The client's VLAN, where rules ask for it.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub vlan: Option<u16>,
    /// Answer offline from this list: a response of the endpoints web service, or the version of a kept list.
    #[arg(long, value_name = "FILE|VERSION")]
    pub list: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `breakout export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Output format.
    #[arg(long, value_enum)]
    pub format: Format,
    /// Only this rule of the policy; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub policy: Vec<String>,
    /// From this list: a response of the endpoints web service, or the version of a kept list.
    #[arg(long, value_name = "FILE|VERSION")]
    pub list: Option<PathBuf>,
    /// For pac: 1 for Optimize, 2 for Optimize and Allow.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub pac_type: u8,
    /// For pac: what all the rest takes.
    #[arg(long, value_name = "PROXY", default_value = "PROXY 10.10.10.10:8080")]
    pub proxy: String,
}

/// `breakout replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// The capture, as tcpdump -w or Wireshark writes it.
    pub capture: PathBuf,
    /// Use this list, a response of the endpoints web service, instead of the configured one.
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// Print one JSON object a packet, each on a line of its own, instead of the summary.
    #[arg(long)]
    pub json: bool,
    /// Decide in this process rather than in the kernel; needs no root.
    #[arg(long)]
    pub pure: bool,
    /// Stop after so many packets.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}

/// The time between two looks.
fn turn(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::exit::Code;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_every_code_stands_in_the_help() {
        fn has_example(command: &clap::Command) {
            let help = command.get_long_about().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(
                help.contains("Example: breakout "),
                "{}",
                command.get_name()
            );
            command.get_subcommands().for_each(has_example);
        }
        Arguments::command().get_subcommands().for_each(has_example);
        for (code, meaning) in Code::MEANINGS {
            assert!(EXIT_CODES.contains(&format!("{code:>3}  {meaning}")));
        }
    }
}
