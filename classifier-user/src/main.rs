//! The `breakout` binary.

use std::process::ExitCode;

use breakout::commands::{Arguments, Command};
use clap::Parser;
use nix::sys::signal::{SigHandler, Signal, signal};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    // A reader that goes away, as in `breakout stats | head`, ends a command silently. The controller writes to no pipe
    // but its log, whose reader it must survive.
    let arguments = Arguments::parse();
    if !matches!(arguments.command, Command::Run { .. }) {
        // SAFETY: the default action runs no code of ours.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    }
    match breakout::commands::main(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("breakout: {error:#}");
            ExitCode::from(breakout::exit::code_of(&error) as u8)
        }
    }
}
