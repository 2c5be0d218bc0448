//! The life of an instance, as the rollout core sees it.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::desired::RolloutTarget;

/// The number of an instance, which no other instance ever has.
pub type InstanceId = u64;

/// One instance, as the rollout core holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldInstance {
    /// The number of the instance.
    pub id: InstanceId,
    /// The slot of the instance.
    pub slot: u32,
    /// What the instance runs.
    pub target: RolloutTarget,
    /// Where the instance is in its life.
    pub state: LifeState,
    /// Whether the instance has tunnels, as far as is known.
    pub tunnels: bool,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LifeState {
    /// The process runs. `ready`: its readiness was seen, but `not_before` is still ahead.
    Starting {
        ready: bool,
        not_before: Instant,
        deadline: Instant,
    },
    /// The instance gets requests.
    Ready {
        since: Instant,
        soak_until: Option<Instant>,
    },
    /// The instance gets no new requests.
    Draining { deadline: Instant },
    /// The instance was told to stop, and ends its tunnels.
    Closing { deadline: Instant },
    /// The instance was told to stop; `kill_at` is empty once it was killed.
    Stopping { kill_at: Option<Instant> },
}

impl HeldInstance {
    /// The instance gets requests.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, LifeState::Ready { .. })
    }

    /// Returns true if the instance gets requests, or is to.
    pub(super) fn is_live(&self) -> bool {
        matches!(
            self.state,
            LifeState::Starting { .. } | LifeState::Ready { .. }
        )
    }
}

/// A [`LifeState`] without its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifeStage {
    /// The instance was not seen to be ready, or not long enough after its start.
    Starting,
    /// The instance gets requests and is watched before the next is replaced.
    Soaking,
    /// The instance gets requests.
    Ready,
    /// The instance gets no new requests.
    Draining,
    /// The instance was told to stop, and ends its tunnels.
    Closing,
    /// The instance was told to stop.
    Stopping,
}

impl LifeState {
    /// Returns how far the life is.
    pub fn stage(&self) -> LifeStage {
        match self {
            LifeState::Starting { .. } => LifeStage::Starting,
            LifeState::Ready {
                soak_until: Some(_),
                ..
            } => LifeStage::Soaking,
            LifeState::Ready { .. } => LifeStage::Ready,
            LifeState::Draining { .. } => LifeStage::Draining,
            LifeState::Closing { .. } => LifeStage::Closing,
            LifeState::Stopping { .. } => LifeStage::Stopping,
        }
    }
}
