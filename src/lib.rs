//! smoothserve runs the web services of one Linux server: it starts several instances of each
//! service, spreads HTTP over them, and replaces them one by one when a new version arrives,
//! without losing a request.
//!
//! One binary has several roles, each a process of its own:
//!
//! * the **manager** ([`manager`]) owns the desired and the actual state: configuration, instances,
//!   rollouts, file watching and D-Bus. It never parses a byte that came from the network.
//! * the **proxy worker** ([`proxy`]) accepts, routes, balances and forwards. It never sees the
//!   configuration: it knows only the numbered tables that the manager sends it.
//! * the **launcher** ([`launch`]) is the short life of an instance before it becomes the service's
//!   own program.
//! * the **keeper** ([`keeper`]) ends, where there is no systemd, what an instance has left.
//! * the **generator** ([`generator`]) tells systemd at boot which ports to listen on.
//! * the **holder** ([`holder`]) keeps ports open while smoothserve is stopped.
//!
//! The manager and the worker meet in [`ipc`] and nowhere else.

mod ancestry;
pub mod bus;
pub mod cli;
pub mod config;
#[cfg(test)]
mod corpus;
pub mod ctl;
pub mod events;
pub mod fingerprint;
pub mod generator;
pub mod holder;
pub mod ipc;
pub mod keeper;
pub mod launch;
pub mod log_level;
mod log_pace;
pub mod logging;
pub mod manager;
mod patience;
pub mod printable;
pub mod proxy;
mod run_dir;
pub mod status;
pub mod systemd;
mod tmpfs;
mod trust;
mod walk;
pub mod watch;
