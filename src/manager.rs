//! The manager: owns the desired and the actual state of all services.
//!
//! # Theory of operation
//! One task owns everything and waits in [`owner`] for the next thing to happen: a command, news of
//! an instance or of a worker, changed files, a signal, a deadline. Each is taken in by the service
//! that it concerns, whose pure rollout core says what to do. Then the result is compared with what
//! was published before: the workers get a new table if it differs, jobs learn how far their
//! services are, and readers get a new snapshot. Nothing here waits for anything else, so nothing
//! can hang: whatever takes time happens in a task of its own that reports back as an [`event`].
//!
//! # Floors
//! From the top; arrows point down, and no room knows one above it.
//!
//! | room | holds |
//! |---|---|
//! | [`owner`] | the one task: the loop, commands, reloads, takeover, the end, what is published |
//! | [`dbus`] | the objects on the private socket and on a bus, which know [`handle`] alone |
//! | [`service`] | the shell around a service's rollout |
//! | [`instance`], [`worker`] | an instance; the proxy workers, with listeners and certificates |
//! | [`world`] | what all services share |
//! | [`jobs`], [`handle`] | what was asked for and how far it is; how it is asked for |
//! | [`event`] | what tasks report |
//! | [`process`] | the process of an instance |
//! | [`host`] | the machine: ports, signals, pidfds, sockets, systemd |
//! | [`rollout`] | the pure core that decides what to do next for a service |
//! | [`backoff`] | how long to wait before another try |

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
mod service;
mod worker;
mod world;

pub use owner::{ManagerOptions, run};
