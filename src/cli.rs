//! The command line of smoothserve, and what both programs share: the run directory, exit statuses
//! and what clap's errors become. Help, manual pages and completions come from here; the command
//! line of smoothctl is `ctl::Smoothctl`.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValue, TypedValueParser, ValueParserFactory};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, Args, Command, Parser, Subcommand, ValueHint};

use crate::bus::Bus;
use crate::config::CONFIG_DIR;
use crate::log_level::{LEVELS, LogLevel};
use crate::printable::quotable;

/// Exit statuses of both programs, as sysexits.h and the shells have them.
pub mod exit {
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// smoothserve does not run, or went away.
    pub const UNAVAILABLE: u8 = 69;
    /// Something failed in a way that nobody foresaw.
    pub const SOFTWARE: u8 = 70;
    /// The caller lacks the permission.
    pub const NO_PERMISSION: u8 = 77;
    /// The configuration has faults.
    pub const CONFIG: u8 = 78;
    /// SIGINT ended the waiting; a shell shows this status.
    pub const INTERRUPTED: u8 = 130;
}

/// Ends a program for which clap has found nothing to run. Prints the help or the version that was
/// asked for, which is a success, or else the fault of the command line.
pub fn end(error: &clap::Error) -> ExitCode {
    // Nothing is left to do about a terminal that is gone.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(exit::USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs the web services of this server and is the proxy in front of them
///
/// Starts several instances of each configured service, spreads HTTP over them, and replaces them
/// one by one, so that no deploy, restart or changed configuration loses a request. smoothctl(1)
/// controls it.
#[derive(Debug, Parser)]
#[command(name = "smoothserve", version, disable_help_subcommand = true)]
pub struct Smoothserve {
    /// What to do
    #[command(subcommand)]
    pub role: Role,
}

/// The roles of smoothserve, each a process of its own.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Serve in the foreground; SIGTERM drains and ends, SIGHUP reloads
    Run {
        /// The folder of smoothserve.yaml and services/
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = CONFIG_DIR)]
        config: PathBuf,
        /// Where to be reached besides the private socket in the run directory; `auto` is the
        /// system bus for root and the session bus for others, if it is there and lets us
        #[arg(long, value_enum, default_value = "auto")]
        bus: Bus,
        /// Where the sockets are
        #[command(flatten)]
        run_dir: RunDir,
        /// Which messages are logged, whatever `log_level` in smoothserve.yaml says
        ///
        /// A level, or levels of single parts of smoothserve and of the libraries in it, by the
        /// beginning of their targets: `info,smoothserve::proxy=debug,h2=debug`. Libraries are not
        /// logged unless they are named. `info` if nothing is said anywhere
        #[arg(long, value_name = "LEVEL", env = "RUST_LOG")]
        log_level: Option<GivenLevel>,
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
        /// The folder of the instances' unix sockets, all that the worker sees of the files
        #[arg(long, value_name = "DIR")]
        instances: Option<PathBuf>,
        /// Connect to unix sockets also where the worker cannot be kept from seeing other files
        #[arg(long)]
        unix_sockets: bool,
        /// End when the manager ends
        #[arg(long)]
        die_with_parent: bool,
        /// Which messages are logged until a table says otherwise
        #[arg(long, value_name = "LEVEL")]
        log_level: Option<GivenLevel>,
    },
    /// An instance before it becomes one, started by `run`
    #[command(hide = true)]
    Launch,
    /// The keeper of an instance where there is no systemd, started by `run`
    #[command(hide = true)]
    Keeper,
    /// Keeps ports open while smoothserve is stopped, started by `run`
    #[command(hide = true)]
    Hold,
    /// Make socket units of the configured ports, started by systemd under the name
    /// smoothserve-generator
    #[command(hide = true)]
    Generate {
        /// The folder of smoothserve.yaml and services/ [default: as the units say, by
        /// $SYSTEMD_SCOPE]
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

/// The option `--run-dir`: the directory by which the two programs find each other.
#[derive(Debug, Args)]
pub struct RunDir {
    /// The run directory [default: /run/smoothserve for root, $XDG_RUNTIME_DIR/smoothserve for
    /// others]
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
    /// Returns true if neither the command line nor the environment names a run directory.
    pub fn is_default(&self) -> bool {
        self.path.is_none()
    }

    /// Returns the run directory that is named, or else the usual one of this user.
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

/// A log level from the command line or the environment. A variable that is set to nothing gives
/// none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenLevel(pub Option<LogLevel>);

impl ValueParserFactory for GivenLevel {
    type Parser = LevelParser;

    fn value_parser() -> LevelParser {
        LevelParser
    }
}

/// Parses a [`GivenLevel`]. Shells complete the names of the levels, but directives are as good.
#[derive(Debug, Clone, Copy)]
pub struct LevelParser;

impl TypedValueParser for LevelParser {
    type Value = GivenLevel;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<GivenLevel, clap::Error> {
        self.parse_ref_(command, argument, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        _: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<GivenLevel, clap::Error> {
        if value.is_empty() && source == ValueSource::EnvVariable {
            return Ok(GivenLevel(None));
        }
        let parse = move |text: &str| {
            let level: Result<LogLevel, _> = text.parse();
            level.map_err(|error| match source {
                ValueSource::EnvVariable => format!("the variable RUST_LOG: {error}"),
                _ => error.to_string(),
            })
        };
        let lossy = value.to_string_lossy();
        let text = match value.to_str() {
            Some(text) => text,
            None => {
                let what = match source {
                    ValueSource::EnvVariable => "the variable RUST_LOG",
                    _ => "the value of --log-level",
                };
                let shown = quotable(&lossy);
                let message =
                    format!("{what} is not UTF-8: `{shown}`; write a level like `info`\n");
                return Err(command.clone().error(ErrorKind::InvalidUtf8, message));
            }
        };
        let level = parse(text).map_err(|message| {
            let message = format!(
                "invalid value '{}' for '--log-level <LEVEL>': {message}\n",
                quotable(text)
            );
            command.clone().error(ErrorKind::ValueValidation, message)
        })?;
        Ok(GivenLevel(Some(level)))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = LEVELS.iter();
        let values = values.map(|(name, about)| PossibleValue::new(*name).help(*about));
        Some(Box::new(values))
    }
}
