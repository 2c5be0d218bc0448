//! `smoothctl`, and `smoothtool`, its name in older installations.

mod client;
pub mod complete;
mod logs;
mod render;
mod wait;
mod words;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Names, Smoothctl, Verb, exit};
use crate::config;
use crate::manager::status::Snapshot;
use client::Client;

/// Why a command failed: what to say and how to exit.
#[derive(Debug)]
struct Failed {
    message: String,
    status: u8,
}

impl Failed {
    fn new(status: u8, message: impl Into<String>) -> Failed {
        Failed {
            message: message.into(),
            status,
        }
    }
}

/// Runs the program with its arguments, its own name first.
pub fn main(arguments: Vec<String>) -> ExitCode {
    let arguments = match words::arrange(&arguments) {
        Ok(arguments) => arguments,
        Err(usage) => return fail(&Failed::new(exit::USAGE, usage)),
    };
    let arguments = match Smoothctl::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing is left to do about a terminal that is gone.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(exit::USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(Failed::new(exit::SOFTWARE, error.to_string())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => fail(&failed),
    }
}

fn fail(failed: &Failed) -> ExitCode {
    eprintln!("smoothctl: {}", failed.message.trim_end());
    ExitCode::from(failed.status)
}

async fn run(arguments: Smoothctl) -> Result<(), Failed> {
    let verb = arguments.verb.unwrap_or(Verb::Status {
        names: Vec::new(),
        json: false,
    });
    if let Verb::Check { config } = verb {
        let summary = config::check(&config)
            .map_err(|faults| Failed::new(exit::CONFIG, faults.to_string()))?;
        print!("{summary}");
        return Ok(());
    }
    let client = Client::connect(&arguments.run_dir, arguments.bus).await?;
    match verb {
        Verb::Status { names, json } => {
            let (json_text, snapshot) = client.dump().await?;
            if json {
                println!("{json_text}");
            } else if names.is_empty() {
                print!("{}", render::overview(&snapshot));
            } else {
                print!("{}", render::services(&snapshot, &known(names, &snapshot)?));
            }
            Ok(())
        }
        Verb::List => {
            let (_, snapshot) = client.dump().await?;
            snapshot.services.keys().for_each(|name| println!("{name}"));
            Ok(())
        }
        Verb::Logs(logs) => {
            let (_, snapshot) = client.dump().await?;
            known(vec![logs.name.clone()], &snapshot)?;
            Err(logs::show(&logs, &snapshot))
        }
        Verb::Start(names) => each(&client, "StartService", names).await,
        Verb::Stop(names) => each(&client, "StopService", names).await,
        Verb::Restart(Names { names, no_block }) if names == ["all"] => {
            let jobs = client.command_all("RestartAll").await?;
            wait::for_jobs(&client, jobs, no_block).await
        }
        Verb::Restart(names) => each(&client, "RestartService", names).await,
        Verb::Reload { no_block } => {
            let jobs = vec![client.command("Reload", &()).await?];
            wait::for_jobs(&client, jobs, no_block).await
        }
        Verb::Check { .. } => unreachable!("done above"),
    }
}

/// Gives the same command for several services and waits for all of them.
async fn each(
    client: &Client,
    member: &str,
    Names { names, no_block }: Names,
) -> Result<(), Failed> {
    let (_, snapshot) = client.dump().await?;
    let names = match names.as_slice() {
        [all] if all == "all" => snapshot.services.keys().cloned().collect(),
        _ => known(names, &snapshot)?,
    };
    let mut jobs = Vec::new();
    for name in names {
        jobs.push(client.command(member, &(name,)).await?);
    }
    wait::for_jobs(client, jobs, no_block).await
}

/// Nothing is done if one of the names is wrong.
fn known(names: Vec<String>, snapshot: &Snapshot) -> Result<Vec<String>, Failed> {
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
    let hint = similar
        .map(|(_, name)| format!("; did you mean {name}?"))
        .unwrap_or_default();
    Err(Failed::new(
        1,
        format!("no service is named {unknown}{hint}"),
    ))
}
