//! What has become of a service so far.

use serde::{Deserialize, Serialize};

use crate::status::LastError;

/// The past of a service, which outlives its instances and the manager.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    /// Whether all instances were ready at one time since the service was started.
    pub(super) came_up: bool,
    /// The newest generation that all instances had, and were ready with.
    pub(super) finished: u64,
    /// The newest generation that was ever asked for.
    pub(super) last_generation: u64,
    /// The newest version that was ever deployed.
    pub(super) last_version: u64,
    /// How often an instance ended that was ready and had not been asked to end.
    pub(super) crashes: u32,
    /// The number of requests of instances that are gone.
    pub(super) past_requests: u64,
    /// The last thing that went wrong.
    pub(super) last_error: Option<LastError>,
}
