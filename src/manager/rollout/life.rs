//! The life of an instance, as the rollout core sees it.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::desired::RolloutTarget;

/// Names an instance for ever.
pub type InstanceId = u64;

/// One instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldInstance {
    /// Its name.
    pub id: InstanceId,
    /// Its slot.
    pub slot: u32,
    /// What it runs.
    pub target: RolloutTarget,
    /// Where it is in its life.
    pub state: LifeState,
    /// It has tunnels, as far as is known.
    pub tunnels: bool,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LifeState {
    /// Its process runs. `ready`: its readiness was seen, but `not_before` is still ahead.
    Starting {
        ready: bool,
        not_before: Instant,
        deadline: Instant,
    },
    /// It gets requests.
    Ready {
        since: Instant,
        soak_until: Option<Instant>,
    },
    /// It gets no new requests.
    Draining { deadline: Instant },
    /// It was told to stop, and ends its tunnels.
    Closing { deadline: Instant },
    /// It was told to stop; `kill_at` is empty once it was killed.
    Stopping { kill_at: Option<Instant> },
}

impl HeldInstance {
    /// It gets requests.
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
    /// Its readiness was not seen, or not long enough after its start.
    Starting,
    /// It gets requests and is watched before the next is replaced.
    Soaking,
    /// It gets requests.
    Ready,
    /// It gets no new requests.
    Draining,
    /// It was told to stop, and ends its tunnels.
    Closing,
    /// It was told to stop.
    Stopping,
}

impl LifeState {
    /// How far it is.
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
