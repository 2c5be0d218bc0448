//! What a worker tells of its bounds: how much is in use, and who was refused because of them.

use serde::{Deserialize, Serialize};

/// The state of a worker's bounds, summed over its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BoundCounts {
    /// How many client connections there may be.
    pub most_connections: u32,
    /// Requests that wait for others to end.
    pub waiting: u32,
    /// Requests that were refused with 503, because too many were in flight or waiting.
    pub refused_requests: u64,
    /// Connections that were refused, because their client had too many.
    pub refused_connections: u64,
    /// Idle client connections that were closed to make room for others.
    pub closed_idle: u64,
}

impl std::ops::Add for BoundCounts {
    type Output = BoundCounts;

    fn add(self, other: BoundCounts) -> BoundCounts {
        BoundCounts {
            most_connections: self.most_connections.saturating_add(other.most_connections),
            waiting: self.waiting.saturating_add(other.waiting),
            refused_requests: self.refused_requests.saturating_add(other.refused_requests),
            refused_connections: self
                .refused_connections
                .saturating_add(other.refused_connections),
            closed_idle: self.closed_idle.saturating_add(other.closed_idle),
        }
    }
}
