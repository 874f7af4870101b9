//! Command line, and a module for each command.

#[macro_use]
mod output;

mod addresses;
mod arguments;
mod assess;
mod changes;
pub(crate) mod check;
mod doctor;
mod explain;
mod export;
mod lab;
mod list;
mod live;
mod offline;
mod orders;
mod replay;
mod simulate;
mod stats;
mod status;
mod sysdump;
mod top;

use anyhow::Result;

use crate::config;
use crate::control::Client;
use crate::controller;
use crate::exit::{Code, WithCode};
pub use arguments::{Arguments, Command};

/// Does what the command line says.
///
/// # Errors
///
/// Whatever went wrong, with its exit code.
pub async fn main(arguments: &Arguments) -> Result<()> {
    output::start_log(arguments)?;
    let config = &arguments.config;
    match &arguments.command {
        Command::Run { list, trace, leave } => {
            controller::run(controller::Options {
                config: config.path(),
                list: list.clone(),
                trace: *trace,
                leave: *leave,
            })
            .await
        }
        Command::Check { list, json } => check::check(config, list.as_deref(), *json).await,
        Command::Doctor { json } => doctor::doctor(config, *json).await,
        Command::Assess(arguments) => assess::assess(config, arguments).await,
        Command::Status { json, check } => {
            status::status(&mut connect(config).await?, *json, *check).await
        }
        Command::Top { interval } => top::top(&places(config).control.socket, *interval).await,
        Command::Stats { json } => stats::stats(&mut connect(config).await?, *json).await,
        Command::Events {
            json,
            follow,
            limit,
        } => live::events(config, *json, *follow, *limit).await,
        Command::Flows { json, limit } => {
            live::flows(&mut connect(config).await?, *json, *limit).await
        }
        Command::Explain(explain) => explain::explain(config, explain).await,
        Command::Export(arguments) => export::export(config, arguments),
        Command::Replay(arguments) => replay::replay(config, arguments),
        Command::Lab(command) => lab::lab(config, command),
        Command::List(command) => list::list(config, command).await,
        Command::Plan { json } => changes::print_plan(&connect(config).await?.plan().await?, *json),
        Command::Apply { json } => {
            changes::print_reloaded(&connect(config).await?.apply().await?, *json)
        }
        Command::Reload { json } => {
            changes::print_reloaded(&connect(config).await?.reload().await?, *json)
        }
        Command::Bypass(bypass) => {
            let done = connect(config).await?.bypass(bypass.order()).await?;
            changes::print_reloaded(&done, bypass.is_json())
        }
        Command::Addresses(arguments) => addresses::addresses(&places(config), arguments),
        Command::History { json, limit } => changes::history(&places(config), *json, *limit),
        Command::Sysdump { output, clients } => {
            sysdump::sysdump(config, output.as_deref(), *clients).await
        }
        Command::Unload => {
            controller::require_privileges().code(Code::Permission)?;
            let config = config::load(&config.path()).unwrap_or_else(|error| {
                // It must be possible to remove what is there whatever has become of the file.
                eprintln!("note: {error:#}");
                eprintln!("note: what belongs to the default directories is removed");
                config::Config::default()
            });
            controller::unload(&config).await
        }
    }
}

/// Connects to the controller that the configuration names.
async fn connect(config: &arguments::ConfigArgument) -> Result<Client> {
    match config::load(&config.path()) {
        Ok(config) => connect_to(&config).await,
        Err(error) => connect_beside(config, error).await,
    }
}

/// Connects to the controller of a configuration that is broken by now.
async fn connect_beside(
    config: &arguments::ConfigArgument,
    error: config::ConfigError,
) -> Result<Client> {
    // A running controller goes on by what it has read before, and can be asked and ordered.
    let places = config::places_of(&config.path());
    match Client::connect(&places.control.socket).await {
        Ok(client) => {
            eprintln!("note: {error}");
            eprintln!(
                "note: the controller that listens on {} is asked; it goes on with what it read before",
                places.control.socket.display()
            );
            Ok(client)
        }
        Err(_) => Err(error).code(Code::Config),
    }
}

/// The configuration for what only reads the state directory: of a broken file what can be read.
fn places(config: &arguments::ConfigArgument) -> config::Config {
    config::load(&config.path()).unwrap_or_else(|error| {
        eprintln!("note: {error}");
        config::places_of(&config.path())
    })
}

async fn connect_to(config: &config::Config) -> Result<Client> {
    let client = Client::connect(&config.control.socket).await;
    client.map_err(|error| {
        let code = error.code();
        crate::exit::coded(error.into(), code)
    })
}
