//! What smoothserve's end-to-end tests and its demo are made of.

mod build;
pub mod client;
mod deploy;
pub mod load;
mod pattern;
mod place;
pub mod processes;

pub use build::{Build, Start};
pub use deploy::{App, install};
pub use pattern::{Checksum, Comparison, Pattern};
pub use place::{example, free_port};
