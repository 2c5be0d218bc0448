//! smoothctl, and smoothtool, its name in older installations: asks the manager over D-Bus.
//!
//! `words` puts the words of a command line into the order that `grammar` has, and `hints` answers
//! words that it does not have. `client` asks the manager, with `agent` beside it for passwords,
//! `render` and `wait` show what comes of it, and `logs` hands over to journalctl.

mod agent;
mod client;
pub mod complete;
mod error;
mod files;
mod grammar;
mod hints;
mod logs;
mod render;
mod reports;
mod screen;
mod text;
mod wait;
mod words;

use std::process::ExitCode;

use clap::Parser;

use crate::bus::Bus;
use crate::cli::{self, RunDir, exit};
use crate::config;
use crate::status::Snapshot;
use client::ManagerClient;
use error::CtlError;
use grammar::{CommandOptions, ServiceNames, Verb};

pub use grammar::Smoothctl;

/// Runs smoothctl with its arguments, its own name first.
pub fn main(arguments: Vec<String>) -> ExitCode {
    let arguments = match words::arrange(&arguments) {
        Ok(arguments) => arguments,
        Err(usage) => return CtlError::new(exit::USAGE, usage).report(),
    };
    let arguments = match Smoothctl::try_parse_from(&arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            return match hints::instead(&error, &arguments) {
                Some(hint) => CtlError::new(exit::USAGE, hint).report(),
                None => cli::end(&error),
            };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(CtlError::new(exit::SOFTWARE, error.to_string())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

async fn run(arguments: Smoothctl) -> Result<(), CtlError> {
    let verb = arguments.verb.unwrap_or(Verb::Status {
        names: Vec::new(),
        json: false,
        full: false,
    });
    if let Verb::Check { config } = verb {
        let summary = config::check(&config)
            .map_err(|faults| CtlError::new(exit::CONFIG, faults.to_string()))?;
        screen::print(&summary.to_string());
        return Ok(());
    }
    let place = (&arguments.run_dir, arguments.bus);
    let client = ManagerClient::connect(&arguments.run_dir, arguments.bus).await?;
    match verb {
        Verb::Status { names, json, full } => {
            let (json_text, mut snapshot) = client.dump().await?;
            let names = known(names, &snapshot)?;
            if json {
                screen::print_json(&render::json(&json_text, &names));
                return Ok(());
            }
            let mut text = screen::text(full);
            if names.is_empty() {
                let failing = render::failing(&snapshot);
                reports::add_to_services(&client, &mut snapshot, failing.iter()).await;
                let waiting = files::waiting(&snapshot);
                render::overview(&snapshot, &waiting, &mut text);
            } else {
                reports::add_to_services(&client, &mut snapshot, names.iter()).await;
                let waiting = files::waiting(&snapshot);
                render::services(&snapshot, &names, &waiting, &mut text);
            }
            screen::print_text(text);
            Ok(())
        }
        Verb::List => {
            let (_, snapshot) = client.dump().await?;
            let names = snapshot.services.keys();
            screen::print(&names.map(|name| format!("{name}\n")).collect::<String>());
            Ok(())
        }
        Verb::Logs(logs) => {
            let (_, snapshot) = client.dump().await?;
            known(vec![logs.name.clone()], &snapshot)?;
            Err(logs::show(&logs, &snapshot))
        }
        Verb::Start(names) => each(client, place, "StartService", names).await,
        Verb::Stop(names) => each(client, place, "StopService", names).await,
        Verb::Restart(ServiceNames { names, options }) if names == ["all"] => {
            let commands = client.commands(!options.no_ask_password);
            let jobs = commands.give_to_all("RestartAll").await?;
            drop(commands);
            wait::for_jobs(client, place, jobs, options.no_block).await
        }
        Verb::Restart(names) => each(client, place, "RestartService", names).await,
        Verb::Reload(CommandOptions {
            no_block,
            no_ask_password,
        }) => {
            let commands = client.commands(!no_ask_password);
            let jobs = vec![commands.give("Reload", &()).await?];
            drop(commands);
            wait::for_jobs(client, place, jobs, no_block).await
        }
        Verb::Check { .. } => unreachable!("done above"),
    }
}

/// Gives the same command for several services and waits for all of them.
async fn each(
    client: ManagerClient,
    place: (&RunDir, Bus),
    member: &str,
    ServiceNames { names, options }: ServiceNames,
) -> Result<(), CtlError> {
    let (_, snapshot) = client.dump().await?;
    let names = match names.as_slice() {
        // A service that was removed can only be stopped.
        [all] if all == "all" => {
            let services = snapshot.services.iter();
            let services = services.filter(|(_, it)| !it.removed || member == "StopService");
            services.map(|(name, _)| name.clone()).collect()
        }
        _ => known(names, &snapshot)?,
    };
    let commands = client.commands(!options.no_ask_password);
    let mut jobs = Vec::new();
    for name in names {
        jobs.push(commands.give(member, &(name,)).await?);
    }
    drop(commands);
    wait::for_jobs(client, place, jobs, options.no_block).await
}

/// Checks that there are services of all these names, before anything is done for one of them.
fn known(names: Vec<String>, snapshot: &Snapshot) -> Result<Vec<String>, CtlError> {
    let unknown = names
        .iter()
        .find(|name| !snapshot.services.contains_key(*name));
    let Some(unknown) = unknown else {
        return Ok(names);
    };
    let similar = snapshot
        .services
        .keys()
        .map(|name| (strsim::damerau_levenshtein(name, unknown), name))
        .filter(|(distance, _)| *distance <= 2)
        .min();
    let hint = match similar {
        Some((_, name)) => format!("; did you mean {name}?"),
        None => "; if its file is new, `smoothctl reload` applies it".to_owned(),
    };
    Err(CtlError::new(
        1,
        format!("no service is named {unknown}{hint}"),
    ))
}
