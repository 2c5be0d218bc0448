//! The smoothserve binary: decides which of its roles to play.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use smoothserve::cli::{Role, Smoothserve, exit};
use smoothserve::{config, generator, launch, manager, proxy};

fn main() -> ExitCode {
    let role = match Smoothserve::try_parse_from(arguments()) {
        Ok(arguments) => arguments.role,
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
    log_to_stderr();
    let result = match role {
        Role::Run {
            config,
            bus,
            run_dir,
        } => manager::run(manager::Options {
            config_dir: config,
            run_dir: run_dir.path(),
            bus,
        }),
        Role::Check { config } => return check(&config),
        Role::Proxy {
            threads,
            die_with_parent,
        } => proxy::run(&proxy::Options {
            threads,
            die_with_parent,
        })
        .map_err(Into::into),
        Role::Launch => launch::run(),
        Role::Generate { config, normal, .. } => generator::run(config.as_deref(), &normal),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "smoothserve failed");
            ExitCode::FAILURE
        }
    }
}

/// systemd starts a generator by its name and says no more, so that name stands for the role.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name == Some(OsStr::new(generator::NAME)) {
        arguments.insert(1, "generate".into());
    }
    arguments
}

fn check(dir: &Path) -> ExitCode {
    match config::check(dir) {
        Ok(summary) => {
            print!("{summary}");
            ExitCode::SUCCESS
        }
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(exit::CONFIG)
        }
    }
}

fn log_to_stderr() {
    let stderr = std::io::stderr;
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}
