//! The machine as the manager sees it: ports, signals, processes by their descriptors, listening
//! sockets of others, and what systemd is told. Nothing here knows of services.

pub mod ancestry;
pub mod notify;
pub mod pidfd;
pub mod ports;
pub mod signals;
pub mod sockets;
pub mod supervision;
pub mod worker_user;
