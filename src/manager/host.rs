//! The machine as the manager uses it: ports, signals, pidfds, the listening sockets of other
//! programs, and notifications to systemd. Nothing in this folder knows about services.

pub mod children;
pub mod mounts;
pub mod notify;
pub mod pidfd;
pub mod ports;
pub mod signals;
pub mod sockets;
pub mod supervision;
pub mod worker_user;
