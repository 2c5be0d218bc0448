//! The history of a service: counters and facts that outlive its instances.

use serde::{Deserialize, Serialize};

use crate::status::LastError;

/// The history of a service, which outlives its instances and the manager.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    /// Whether all instances have been ready at the same time since the service was started.
    pub(super) came_up: bool,
    /// The newest generation with which all instances were ready.
    pub(super) finished: u64,
    /// The newest generation that was ever asked for.
    pub(super) last_generation: u64,
    /// The newest version that was ever deployed.
    pub(super) last_version: u64,
    /// How many ready instances have ended without being told to stop.
    pub(super) crashes: u32,
    /// The requests of instances that have ended.
    pub(super) past_requests: u64,
    /// The last error of the service.
    pub(super) last_error: Option<LastError>,
}
