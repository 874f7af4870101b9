//! The `breakout` binary.

use std::process::ExitCode;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match breakout::commands::main().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("breakout: {error:#}");
            ExitCode::from(breakout::exit::code_of(&error) as u8)
        }
    }
}
