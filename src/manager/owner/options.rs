//! The options of the manager from its command line.

use std::path::PathBuf;

use crate::bus::Bus;
use crate::log_level::LogLevel;

/// The options of the manager from its command line.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// The folder of `smoothserve.yaml`.
    pub config_dir: PathBuf,
    /// The folder for sockets and state.
    pub run_dir: PathBuf,
    /// The bus on which to offer D-Bus, besides the private socket.
    pub bus: Bus,
    /// The log level of the command line, which overrides that of the configuration.
    pub log_level: Option<LogLevel>,
}
