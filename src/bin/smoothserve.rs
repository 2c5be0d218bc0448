//! The smoothserve binary: decides which of its roles this process has.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use smoothserve::cli::{self, Role, Smoothserve, exit};
use smoothserve::log_level::LogLevel;
use smoothserve::logging::Logging;
use smoothserve::printable::printable;
use smoothserve::systemd::given::Given;
use smoothserve::{config, events, generator, holder, keeper, launch, manager, proxy};

/// Tells the worker how much memory it has allocated.
#[global_allocator]
static HEAP: proxy::CountingHeap = proxy::CountingHeap;

/// What the name of each process that smoothserve itself starts begins with, before its role. `ps`
/// shows the name.
const NAMED: &str = "smoothserve: ";

fn main() -> ExitCode {
    let role = match role(arguments()) {
        Ok(role) => role,
        Err(error) => return cli::end(&error),
    };
    // SAFETY: there is no other thread yet, and nothing here has taken what systemd gives.
    #[allow(unsafe_code)]
    let given = unsafe { Given::take() };
    // The kernel names a process after the file that it was started from, which is
    // /proc/self/exe. A name that cannot be set does no harm.
    let _ = rustix::thread::set_name(c"smoothserve");
    // A launcher changes its user, which requires a process with one thread, and its stderr is that
    // of the instance.
    let logs_itself = !matches!(role, Role::Launch | Role::Keeper | Role::Generate { .. });
    let mut level = LogLevel::default();
    let work: Box<dyn FnOnce() -> anyhow::Result<()>> = match role {
        Role::Run {
            config,
            bus,
            run_dir,
            log_level,
        } => {
            let options = manager::ManagerOptions {
                config_dir: config,
                run_dir: run_dir.path(),
                bus,
                log_level: log_level.and_then(|given| given.0),
            };
            // Without a level here, that of the configuration is in force once it is read.
            level = options.log_level.clone().unwrap_or_default();
            Box::new(move || manager::run(options, given?))
        }
        Role::Check { config } => return check(&config),
        Role::Proxy {
            threads,
            user,
            instances,
            unix_sockets,
            die_with_parent,
            log_level,
        } => {
            level = log_level.and_then(|given| given.0).unwrap_or_default();
            let options = proxy::WorkerOptions {
                threads,
                user,
                instances,
                needs_unix_sockets: unix_sockets,
                die_with_parent,
            };
            // The worker enters its sandbox while it has one thread. Logging may start a second.
            let worker = proxy::Worker::prepare(&options);
            Box::new(move || Ok(worker?.run()?))
        }
        Role::Launch => Box::new(launch::run),
        Role::Keeper => Box::new(keeper::run),
        Role::Hold => Box::new(holder::run),
        Role::Generate { config, normal, .. } => {
            Box::new(move || generator::run(config.as_deref(), &normal))
        }
    };
    let _logging = match logs_itself {
        true => Logging::begin(&level),
        false => Logging::without_thread(&level),
    };
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = format!("{error:#}");
            tracing::error!(message_id = events::FAILED, error, "smoothserve failed");
            // A log level that hides errors must not hide why there is no smoothserve.
            if !tracing::enabled!(tracing::Level::ERROR) {
                eprintln!("smoothserve failed: {}", printable(&error));
            }
            ExitCode::FAILURE
        }
    }
}

/// Parses the command line.
fn role(arguments: Vec<OsString>) -> Result<Role, clap::Error> {
    match arguments.as_slice() {
        // A launcher starts in the middle of traffic, and clap would take a seventh of its CPU
        // time.
        [_, role] if role == "launch" => Ok(Role::Launch),
        [_, role] if role == "keeper" => Ok(Role::Keeper),
        _ => Smoothserve::try_parse_from(arguments).map(|arguments| arguments.role),
    }
}

/// Returns the command line. If the name by which the program is called stands for a role, that
/// role is added.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().cloned().unwrap_or_default();
    let role = name.to_str().and_then(|name| name.strip_prefix(NAMED));
    if let Some(role) = role {
        arguments.insert(1, role.into());
    } else if Path::new(&name).file_name() == Some(generator::GENERATOR_NAME.as_ref()) {
        arguments.insert(1, "generate".into());
    }
    arguments
}

fn check(dir: &Path) -> ExitCode {
    match config::check(dir) {
        Ok(summary) => {
            print!("{}", printable(&summary.to_string()));
            ExitCode::SUCCESS
        }
        Err(faults) => {
            eprintln!("{}", printable(&faults.to_string()));
            ExitCode::from(exit::CONFIG)
        }
    }
}
