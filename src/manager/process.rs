//! The process of an instance: what it runs, as whom, with which environment, and how it comes to
//! be.

pub mod deployment;
pub mod environment;
pub mod executable;
pub mod identity;
pub mod launcher;
mod output;
#[allow(clippy::module_inception)]
mod process;
pub mod unix_socket;

pub use process::Process;
