//! What a person types: the command line and what each command does.

mod arguments;
mod check;
mod explain;
mod list;
mod output;
mod replay;
mod stats;
mod status;

use anyhow::Result;
use clap::Parser;

use crate::config;
use crate::control::Client;
use crate::controller;
use crate::exit::{Code, WithCode};
pub use arguments::{Arguments, Command};
use output::print_json;

/// Parses the command line and does what it says.
///
/// # Errors
///
/// Whatever went wrong, with its exit code.
pub async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    output::start_log(&arguments)?;
    let config = &arguments.config;
    match &arguments.command {
        Command::Run { list, trace } => {
            controller::run(controller::Options {
                config: config.path(),
                list: list.clone(),
                trace: *trace,
            })
            .await
        }
        Command::Check { list, json } => check::check(config, list.as_deref(), *json),
        Command::Status { json } => status::status(&mut connect(config).await?, *json).await,
        Command::Stats { json } => stats::stats(&mut connect(config).await?, *json).await,
        Command::Explain(explain) => explain::explain(config, explain).await,
        Command::Replay(arguments) => replay::replay(config, arguments),
        Command::List(arguments::ListCommand::Show { list, json }) => {
            list::show(config, list.as_deref(), *json).await
        }
        Command::Reload { json } => reload(&mut connect(config).await?, *json).await,
        Command::Unload => {
            controller::require_privileges().code(Code::Permission)?;
            let config = config::load(&config.path()).code(Code::Config)?;
            controller::unload(&config).await
        }
    }
}

/// Connects to the controller that the configuration names.
async fn connect(config: &arguments::ConfigArgument) -> Result<Client> {
    let config = config::load(&config.path()).code(Code::Config)?;
    Client::connect(&config.control.socket)
        .await
        .map_err(|error| {
            let code = error.code();
            crate::exit::coded(error.into(), code)
        })
}

async fn reload(client: &mut Client, json: bool) -> Result<()> {
    let reloaded = client.reload().await?;
    if json {
        return print_json(&reloaded);
    }
    let version = reloaded.list.version.as_deref().unwrap_or("unknown");
    println!(
        "generation {} -> {}: {}; list {} version {version} from {}",
        reloaded.from_generation,
        reloaded.to_generation,
        if reloaded.changed {
            "what is matched or steered has changed"
        } else {
            "the same rules as before"
        },
        reloaded.list.instance,
        reloaded.list.source,
    );
    Ok(())
}
