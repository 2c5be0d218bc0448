//! The manager: owns the desired and the actual state of all services.

mod backoff;
mod jobs;
mod listeners;
mod rollout;
pub mod status;
mod table;
mod worker;
