//! What the manager is told on its command line.

use std::path::PathBuf;

use crate::bus::Bus;

/// What the manager is told on its command line.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// The folder of `smoothserve.yaml`.
    pub config_dir: PathBuf,
    /// The folder for sockets and state.
    pub run_dir: PathBuf,
    /// Where to offer D-Bus besides the private socket.
    pub bus: Bus,
}
