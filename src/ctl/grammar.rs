//! The command line of smoothctl. Help, manual pages and completions come from here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::bus::Bus;
use crate::cli::RunDir;
use crate::config::CONFIG_DIR;

/// Controls smoothserve
///
/// Waits until what was asked for is done, shows every step, and exits 0 only if the wanted state
/// was reached.
#[derive(Debug, Parser)]
#[command(name = "smoothctl", version, disable_help_subcommand = true)]
pub struct Smoothctl {
    /// Where smoothserve is
    #[command(flatten, next_help_heading = "Another smoothserve")]
    pub run_dir: RunDir,
    /// Ask on this bus instead of the private socket in the run directory; `auto` is the private
    /// socket, and the system bus for a user who runs no smoothserve
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        global = true,
        hide_possible_values = true
    )]
    pub bus: Bus,
    /// What to do; `status` if nothing is said
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// The commands of smoothctl.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show what runs, what is ready, what is in flight, and what went wrong last
    Status {
        /// Only these, with all their instances
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// The same for programs
        #[arg(long)]
        json: bool,
        /// Cut nothing, also on a narrow terminal
        #[arg(short = 'l', long)]
        full: bool,
    },
    /// Print the names of all services
    List,
    /// Start services
    Start(ServiceNames),
    /// Drain services and stop their instances; requests to them get 503
    Stop(ServiceNames),
    /// Replace every instance of services, one by one, without losing a request
    Restart(ServiceNames),
    /// Apply all that changed on disk: configuration, executables, environment files
    Reload(CommandOptions),
    /// Show what a service has written, and what smoothserve says about it
    Logs(LogsArguments),
    /// Check a configuration and print all its faults
    Check {
        /// The folder of smoothserve.yaml and services/
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath, default_value = CONFIG_DIR)]
        config: PathBuf,
    },
}

/// The arguments of `logs`: which part of the journal to show.
#[derive(Debug, Args)]
pub struct LogsArguments {
    /// The service
    #[arg(index = 1, value_name = "NAME")]
    pub name: String,
    /// Go on and show what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only the newest lines, or `all` [default: 100 if nothing else is said]
    #[arg(short = 'n', long, value_name = "LINES")]
    pub lines: Option<String>,
    /// Only what is newer, in the words of journalctl: `2026-01-31 12:00`, `today`, `-1h`
    #[arg(short = 'S', long, value_name = "TIME", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// More options of journalctl, like `-p err` or `-o json`
    #[arg(index = 2, last = true, value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// The arguments of commands for several services.
#[derive(Debug, Args)]
pub struct ServiceNames {
    /// Services, or `all`
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// How the command is given
    #[command(flatten)]
    pub options: CommandOptions,
}

/// The options of all commands that change something.
#[derive(Debug, Clone, Copy, Args)]
pub struct CommandOptions {
    /// Return at once instead of waiting
    #[arg(long)]
    pub no_block: bool,
    /// Fail instead of asking for a password
    #[arg(long)]
    pub no_ask_password: bool,
}
