//! What the manager is told on its command line.

use std::path::PathBuf;

use crate::bus::Bus;
use crate::log_level::LogLevel;

/// What the manager is told on its command line.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// The folder of `smoothserve.yaml`.
    pub config_dir: PathBuf,
    /// The folder for sockets and state.
    pub run_dir: PathBuf,
    /// Where to offer D-Bus besides the private socket.
    pub bus: Bus,
    /// Which messages are logged, whatever the configuration says of that.
    pub log_level: Option<LogLevel>,
}
