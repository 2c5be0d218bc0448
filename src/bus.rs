//! The names by which D-Bus clients find smoothserve. The manager serves under these names, and
//! `smoothctl` calls them.

/// The well-known name that smoothserve takes on the system bus or the session bus.
pub const BUS_NAME: &str = "org.smoothserve1";

/// The path of the manager's object. The paths of services and jobs begin with this path.
pub(crate) const MANAGER_PATH: &str = "/org/smoothserve1";

/// Which bus smoothserve is on, besides its private socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bus {
    // The help of both programs shows this line, but "fits" means something else for each: the help
    // of the option `--bus` explains it.
    /// The bus that fits, if there is one.
    Auto,
    /// The system bus.
    System,
    /// The session bus.
    Session,
    /// No bus.
    None,
}
