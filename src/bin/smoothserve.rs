//! The smoothserve binary: decides which of its roles to play.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use smoothserve::cli::{Role, Smoothserve, exit};
use smoothserve::logging::Logging;
use smoothserve::systemd::given::Given;
use smoothserve::{config, events, launch, manager, proxy};

fn main() -> ExitCode {
    let role = match Smoothserve::try_parse() {
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
    // SAFETY: there is no other thread yet, and nothing here has taken what systemd gives.
    #[allow(unsafe_code)]
    let given = unsafe { Given::take() };
    // A launcher changes its user, which wants a process of one thread, and its stderr is the instance's.
    let _logging = match role {
        Role::Launch => Logging::to_stderr(),
        _ => Logging::begin(),
    };
    let result = match role {
        Role::Run {
            config,
            bus,
            run_dir,
        } => given.map_err(Into::into).and_then(|given| {
            let options = manager::Options {
                config_dir: config,
                run_dir: run_dir.path(),
                bus,
            };
            manager::run(options, given)
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
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(message_id = events::FAILED, error, "smoothserve failed");
            ExitCode::FAILURE
        }
    }
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
