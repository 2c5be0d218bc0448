//! The names by which smoothserve is found on D-Bus, for the manager that serves and for
//! `smoothctl` that asks.

/// The well-known name that smoothserve takes on a bus that has names.
pub const BUS_NAME: &str = "org.smoothserve1";

/// The path of the manager's own object; the objects of services and jobs lie below it.
pub(crate) const MANAGER_PATH: &str = "/org/smoothserve1";

/// Which bus smoothserve is on, besides its private socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bus {
    // Both programs show this line, and the one that asks means something else by it than the one
    // that serves; the help of their options says what.
    /// The bus that fits, if there is one.
    Auto,
    /// The system bus.
    System,
    /// The session bus.
    Session,
    /// No bus.
    None,
}
