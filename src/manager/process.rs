//! The process of an instance: its program, its user, its environment, and how it is started.

pub mod deployment;
mod ending;
pub mod environment;
pub mod executable;
pub mod identity;
mod keeper_process;
mod killed;
pub mod launcher;
mod output;
mod passing;
#[allow(clippy::module_inception)]
mod process;
mod remains;
pub mod socket_folders;
pub mod unix_socket;

pub use ending::{Ending, ProcessEnd};
pub use process::{Members, Process};
