//! The life of an instance, as the rollout core sees it.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::desired::RolloutTarget;
use crate::config::Times;

/// The number of an instance. No other instance ever has the same number.
pub type InstanceId = u64;

/// One instance, as the rollout core keeps it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldInstance {
    /// The number of the instance.
    pub id: InstanceId,
    /// The slot of the instance.
    pub slot: u32,
    /// The target that the instance runs.
    pub target: RolloutTarget,
    /// The state of the instance's life.
    pub state: LifeState,
    /// Whether the instance has open tunnels, as far as the core knows.
    pub tunnels: bool,
}

/// The state of an instance's life, with the times that belong to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LifeState {
    /// The process runs. `ready` is true if the instance has shown its readiness before
    /// `not_before`.
    Starting {
        ready: bool,
        not_before: Instant,
        deadline: Instant,
    },
    /// The instance gets requests.
    Ready { since: Instant, soak: Soak },
    /// The instance gets no new requests.
    Draining { deadline: Instant },
    /// The instance was told to stop, and closes its tunnels.
    Closing { deadline: Instant },
    /// The instance was told to stop. `kill_at` is empty once it was killed.
    Stopping { kill_at: Option<Instant> },
}

/// How far the soak of a ready instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Soak {
    /// The instance is watched until this time.
    Until(Instant),
    /// The time is over, and the instance has to answer a health probe that begins now.
    Asked,
    /// The instance is not watched, or not any more.
    Over,
}

impl LifeState {
    /// Returns the state of an instance that starts `now`, or whose start the next manager begins
    /// to watch `now`.
    pub(super) fn starting(now: Instant, times: &Times) -> LifeState {
        LifeState::Starting {
            ready: false,
            not_before: now + times.delay_running_time,
            deadline: now + times.start_timeout.max(times.delay_running_time),
        }
    }
}

impl HeldInstance {
    /// Returns true if the instance gets requests.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, LifeState::Ready { .. })
    }

    /// Returns true if the instance gets requests and is watched.
    pub(super) fn is_soaking(&self) -> bool {
        self.state.stage() == LifeStage::Soaking
    }

    /// Returns true if the instance gets requests, or will get them when it is ready.
    pub(super) fn is_live(&self) -> bool {
        matches!(
            self.state,
            LifeState::Starting { .. } | LifeState::Ready { .. }
        )
    }
}

/// The stage of an instance's life: a [`LifeState`] without its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifeStage {
    /// The instance has not been seen to be ready, or has not run long enough since its start.
    Starting,
    /// The instance gets requests, and is watched before the next instance is replaced.
    Soaking,
    /// The instance gets requests.
    Ready,
    /// The instance gets no new requests.
    Draining,
    /// The instance was told to stop, and closes its tunnels.
    Closing,
    /// The instance was told to stop.
    Stopping,
}

impl LifeState {
    /// Returns the stage of this state.
    pub fn stage(&self) -> LifeStage {
        match self {
            LifeState::Starting { .. } => LifeStage::Starting,
            LifeState::Ready {
                soak: Soak::Over, ..
            } => LifeStage::Ready,
            LifeState::Ready { .. } => LifeStage::Soaking,
            LifeState::Draining { .. } => LifeStage::Draining,
            LifeState::Closing { .. } => LifeStage::Closing,
            LifeState::Stopping { .. } => LifeStage::Stopping,
        }
    }
}
