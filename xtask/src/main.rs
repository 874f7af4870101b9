//! Everything a developer types. `cargo xtask --help` lists it.

mod bench;
mod chaos;
mod demo;
mod dist;
mod fuzz;
mod licences;
mod object;
mod paths;
mod process;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Breakout's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing needs, and say what and why. Does nothing the second time.
    Setup(setup::Arguments),
    /// Build `breakout` with its eBPF object.
    Build {
        /// Optimise.
        #[arg(long)]
        release: bool,
    },
    /// Send real traffic to Microsoft 365 addresses through Breakout, in network namespaces. Needs root.
    Demo(demo::Arguments),
    /// Measure Breakout beside what else could be used: about 7 minutes, with --quick 3. Needs root.
    Bench(bench::Arguments),
    /// Let everything happen to a gateway that happens to gateways, under traffic. Needs root.
    Chaos(chaos::Arguments),
    /// Build what is installed on gateways: a .deb and a .tar.gz for each kind of machine, in target/dist.
    Dist(dist::Arguments),
    /// Run every check and test. What needs root and has none is skipped, and said so.
    Test(test::Arguments),
    /// Feed the header walk and the parsers with damaged input, guided by which ways it takes.
    Fuzz(fuzz::Arguments),
    /// Run the kernel tests under Debian's 6.1 and 6.12 kernels, in qemu. Needs root to install qemu.
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Setup(arguments) => setup::run(arguments),
        Command::Build { release } => {
            setup::ensure(setup::Purpose::Build)?;
            let mut cargo = process::cargo();
            cargo.args(["build", "--locked", "--package", "breakout"]);
            if *release {
                cargo.arg("--release");
            }
            process::stream(&mut cargo)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(arguments) => demo::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Chaos(arguments) => chaos::run(arguments),
        Command::Dist(arguments) => dist::run(arguments),
        Command::Test(arguments) => test::run(arguments),
        Command::Fuzz(arguments) => fuzz::run(arguments),
        Command::Vm(arguments) => vm::run(arguments),
    }
}
