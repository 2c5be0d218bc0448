//! The harness of smoothserve's end-to-end tests and of its demo: the client and the load that
//! prove losses, deploys, a running smoothserve, and test machines with a systemd of their own.

mod build;
pub mod bus;
mod bystander;
pub mod client;
mod deploy;
mod home;
#[cfg(target_arch = "x86_64")]
pub mod injection;
pub mod load;
pub mod machine;
pub mod node;
mod pattern;
mod place;
pub mod processes;
pub mod script;
mod server;
mod shop;
pub mod websocket;

pub use build::{Build, Start};
pub use bystander::Bystander;
pub use deploy::{App, install};
pub use home::{Home, write};
pub use pattern::{Checksum, Comparison, Pattern};
pub use place::{example, free_port, free_ports, local};
pub use server::{Instance, PATIENCE, Programs, Service, Smoothserve, Status, alone};
pub use shop::Shop;
