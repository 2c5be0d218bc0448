//! The command lines of both programs. Help, manual pages and completions come from here.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::ArgValueCompleter;

use crate::ctl::complete;
use crate::manager::dbus::Bus;

/// Exit statuses, as sysexits.h and the shells have them.
pub mod exit {
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// smoothserve does not run, or went away.
    pub const UNAVAILABLE: u8 = 69;
    /// Something failed in a way that nobody foresaw.
    pub const SOFTWARE: u8 = 70;
    /// The caller may not do that.
    pub const NO_PERMISSION: u8 = 77;
    /// The configuration has faults.
    pub const CONFIG: u8 = 78;
    /// The waiting was ended by SIGINT, as a shell shows it.
    pub const INTERRUPTED: u8 = 130;
}

/// Where the configuration is if nothing is said.
pub const CONFIG_DIR: &str = "/etc/smoothserve";

/// Runs the web services of this server and is the proxy in front of them
///
/// Starts several instances of each configured service, spreads HTTP over them, and replaces them one by one, so that
/// no deploy, restart or changed configuration loses a request. smoothctl(1) controls it.
#[derive(Debug, Parser)]
#[command(name = "smoothserve", version, disable_help_subcommand = true)]
pub struct Smoothserve {
    /// What to do
    #[command(subcommand)]
    pub role: Role,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Serve in the foreground; SIGTERM drains and ends, SIGHUP reloads
    Run {
        /// The folder of smoothserve.yaml and services/
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = CONFIG_DIR)]
        config: PathBuf,
        /// Where to be reached besides the private socket in the run directory; `auto` is the system bus for root and the
        /// session bus for others, if it is there and lets us
        #[arg(long, value_enum, default_value = "auto")]
        bus: Bus,
        /// Where the sockets are
        #[command(flatten)]
        run_dir: RunDir,
    },
    /// Check a configuration and print all its faults, each with its line; exits 78 if there is one
    Check {
        /// The folder of smoothserve.yaml and services/
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath, default_value = CONFIG_DIR)]
        config: PathBuf,
    },
    /// The proxy worker, started by `run`
    #[command(hide = true)]
    Proxy {
        /// How many data threads; by default one for each core
        #[arg(long)]
        threads: Option<NonZeroUsize>,
        /// Become this user
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// End when the manager ends
        #[arg(long)]
        die_with_parent: bool,
    },
    /// An instance before it becomes one, started by `run`
    #[command(hide = true)]
    Launch,
    /// Make socket units of the configured ports, started by systemd under the name smoothserve-generator
    #[command(hide = true)]
    Generate {
        /// The folder of smoothserve.yaml and services/ [default: as the units say, by $SYSTEMD_SCOPE]
        #[arg(long, value_name = "DIR")]
        config: Option<PathBuf>,
        /// Where the units are made
        #[arg(value_name = "NORMAL")]
        normal: PathBuf,
        /// For units that take precedence over others, or give it; not used
        #[arg(value_name = "EARLY LATE", num_args = 0..=2)]
        others: Vec<PathBuf>,
    },
}

/// The run directory, by which the two programs find each other.
#[derive(Debug, Args)]
pub struct RunDir {
    /// The run directory [default: /run/smoothserve for root, $XDG_RUNTIME_DIR/smoothserve for others]
    #[arg(
        long = "run-dir",
        value_name = "DIR",
        value_hint = ValueHint::DirPath,
        env = "SMOOTHSERVE_RUN_DIR",
        global = true
    )]
    path: Option<PathBuf>,
}

impl RunDir {
    /// Nothing was said about it.
    pub fn is_default(&self) -> bool {
        self.path.is_none()
    }

    /// What was said, or where it is for this user.
    pub fn path(&self) -> PathBuf {
        if let Some(path) = &self.path {
            return path.clone();
        }
        let uid = rustix::process::geteuid();
        let user_dir =
            std::env::var_os("XDG_RUNTIME_DIR").filter(|path| Path::new(path).is_absolute());
        match user_dir {
            _ if uid.is_root() => PathBuf::from("/run/smoothserve"),
            Some(path) => PathBuf::from(path).join("smoothserve"),
            None => PathBuf::from(format!("/tmp/smoothserve-{}", uid.as_raw())),
        }
    }
}

/// Controls smoothserve
///
/// Waits until what was asked for is done, shows every step, and exits 0 only if the wanted state was reached.
#[derive(Debug, Parser)]
#[command(name = "smoothctl", version, disable_help_subcommand = true)]
pub struct Smoothctl {
    /// Where smoothserve is
    #[command(flatten)]
    pub run_dir: RunDir,
    /// Ask on this bus instead of the private socket in the run directory; `auto` is the private socket, and the system
    /// bus for a user who runs no smoothserve
    #[arg(long, value_enum, default_value = "auto", global = true)]
    pub bus: Bus,
    /// What to do; `status` if nothing is said
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// What smoothctl can be told.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show what runs, what is ready, what is in flight, and what went wrong last
    Status {
        /// Only these, with all their instances
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::service))]
        names: Vec<String>,
        /// The same for programs
        #[arg(long)]
        json: bool,
    },
    /// Print the names of all services
    List,
    /// Start services
    Start(Names),
    /// Drain services and stop their instances; requests to them get 503
    Stop(Names),
    /// Replace every instance of services, one by one, without losing a request
    Restart(Names),
    /// Apply all that changed on disk: configuration, executables, environment files
    Reload {
        /// Return at once instead of waiting
        #[arg(long)]
        no_block: bool,
    },
    /// Show what a service has written, and what smoothserve says about it
    Logs(Logs),
    /// Check a configuration and print all its faults
    Check {
        /// The folder of smoothserve.yaml and services/
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath, default_value = CONFIG_DIR)]
        config: PathBuf,
    },
}

/// Which part of the journal.
#[derive(Debug, Args)]
pub struct Logs {
    /// The service
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::service))]
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
    #[arg(last = true, value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// Which services.
#[derive(Debug, Args)]
pub struct Names {
    /// Services, or `all`
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(complete::service_or_all))]
    pub names: Vec<String>,
    /// Return at once instead of waiting
    #[arg(long)]
    pub no_block: bool,
}
