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
    /// Bytes of memory in use, in whole MiB so that they do not change all the time.
    pub memory: u64,
    /// How many bytes of memory may be in use.
    pub most_memory: u64,
    /// What is done to need less memory.
    pub overload: Overload,
    /// Streams of HTTP/2 that were refused, because their connection held too much memory.
    pub refused_streams: u64,
    /// Busy client connections that were closed, because they held most of the memory.
    pub closed_largest: u64,
}

/// What a worker does to need less memory. Each step does what the ones before it do, too.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Overload {
    /// Nothing.
    #[default]
    None,
    /// Idle client connections are closed.
    Idle,
    /// Connections that hold much memory get no new streams of HTTP/2.
    Streams,
    /// The connections that hold most memory are closed.
    Largest,
    /// No connections are accepted.
    Connections,
}

impl Overload {
    /// All steps, in their order.
    pub const STEPS: [Overload; 5] = [
        Overload::None,
        Overload::Idle,
        Overload::Streams,
        Overload::Largest,
        Overload::Connections,
    ];

    /// Returns what is done, in words for people; `None` if nothing is done.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Overload::None => None,
            Overload::Idle => Some("closing idle connections"),
            Overload::Streams => Some("refusing streams of connections that hold much"),
            Overload::Largest => Some("closing the connections that hold most"),
            Overload::Connections => Some("accepting no connections"),
        }
    }
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
            memory: self.memory.saturating_add(other.memory),
            most_memory: self.most_memory.saturating_add(other.most_memory),
            overload: self.overload.max(other.overload),
            refused_streams: self.refused_streams.saturating_add(other.refused_streams),
            closed_largest: self.closed_largest.saturating_add(other.closed_largest),
        }
    }
}
