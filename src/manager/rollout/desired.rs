//! The desired state of a service, as the rollout core compares it with the actual state.

use serde::{Deserialize, Serialize};

use crate::config::Times;

/// A target: what every slot should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutTarget {
    /// The generation, which grows with every deploy and restart.
    pub generation: u64,
    /// The version, which is equal for generations of the same content.
    pub version: u64,
}

/// The desired state of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Whether the service should run.
    pub running: bool,
    /// The number of slots.
    pub count: u32,
    /// The newest target that was asked for.
    pub target: RolloutTarget,
    /// How instances are replaced, and how fast.
    pub policy: RolloutPolicy,
    /// True: the service is to take over sites that another one serves, so its first instance
    /// soaks although there is no older one.
    #[serde(default)]
    pub takes_over: bool,
}

/// How instances are replaced, and the times that bound each state of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutPolicy {
    /// Whether the old instance of a slot drains before the new one starts.
    pub in_place: bool,
    /// The timeouts of the service's file.
    #[serde(flatten)]
    pub times: Times,
}
