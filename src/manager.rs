//! The manager: owns the desired and the actual state of all services.
//!
//! # Theory of operation
//! One task owns all state and waits in [`owner`] for the next event: a command, a report about an
//! instance or a worker, changed files, a signal, a deadline. The service that an event concerns
//! takes it in, and the service's pure rollout core decides what to do. Then the manager compares
//! the result with what it published before: it sends the workers a new table if the table differs,
//! updates the progress of jobs, and gives readers a new snapshot. The task waits for nothing but
//! the next event, so nothing can block it: work that takes time runs in a separate task, which
//! reports back with an [`event`].
//!
//! # Floors
//! The rooms, from top to bottom. A room uses only rooms below it.
//!
//! | room | holds |
//! |---|---|
//! | [`owner`] | the task that owns all state: its loop, commands, reloads, takeover, end, output |
//! | [`dbus`] | the D-Bus objects on the private socket and on a bus; they use only [`handle`] |
//! | [`service`] | the shell around a service's rollout |
//! | [`instance`], [`worker`] | one instance; the proxy workers, listeners and certificates |
//! | [`world`] | what all services share |
//! | [`jobs`], [`handle`] | jobs and their progress; commands and snapshots for other tasks |
//! | [`event`] | the events that tasks report |
//! | [`process`] | the process of an instance |
//! | [`host`] | the machine: ports, signals, pidfds, sockets, notifications to systemd |
//! | [`rollout`] | the pure core that decides what to do next for a service |
//! | [`backoff`] | how long to wait after a failure |

mod backoff;
mod dbus;
mod event;
mod handle;
mod host;
mod instance;
mod jobs;
mod owner;
mod process;
mod rollout;
mod routes;
mod service;
mod worker;
mod world;

#[cfg(feature = "internals")]
pub use dbus::check::bus_input;
pub use owner::{ManagerOptions, run};
#[cfg(feature = "internals")]
pub use worker::check::worker_message;
