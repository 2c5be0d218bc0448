//! The proxy workers and what they get from the manager: listening sockets, certificates and
//! tables.

pub mod certificates;
#[cfg(any(test, feature = "internals"))]
pub mod check;
pub mod listeners;
mod port_socket;
mod process;
mod sieve;
mod workers;

pub use process::{SavedWorker, is_scope_name, scope_name};
pub use sieve::ExpectedReport;
pub use workers::{IDLE_WHEN_REPLACED, Workers};
